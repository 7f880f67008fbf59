// Random instructions against the host's processor, a bounded number; `npm run fuzz` runs millions. And the fuzzer
// itself: that a seed is always the same cases, and that it sees a wrong outcome.

import { createHash } from "node:crypto";
import { Code, Mnemonic } from "iced-x86";
import { describe, expect, test } from "vitest";
import { liftedMnemonics } from "../../src/x86/lift/table.ts";
import { nativeSkipReason } from "../native/oracle.ts";
import { steppedEngine } from "../x86/cases-engine.ts";
import type { Outcome, Program } from "../x86/cases-model.ts";
import { parseCase } from "../x86/cases-text.ts";
import { Batch } from "./batch.ts";
import { BulkEngine } from "./bulkEngine.ts";
import { BulkOracle } from "./bulkOracle.ts";
import { forms } from "./forms.ts";
import { Generator } from "./generator.ts";
import { describeDifference, programOf } from "./report.ts";
import { fuzz } from "./run.ts";

const skip = await nativeSkipReason();
if (skip !== undefined) console.log(`instructions are not fuzzed: ${skip}`);

function fingerprint(seed: number): string {
  const batch = new Batch(2048);
  new Generator({ seed }).fill(batch, 2048);
  return createHash("sha256").update(batch.bytes).digest("hex");
}

describe.skipIf(skip !== undefined)("the generator", () => {
  test("makes the same cases of the same seed, and others of another", () => {
    expect(fingerprint(7)).toBe(fingerprint(7));
    expect(fingerprint(8)).not.toBe(fingerprint(7));
  });

  test("makes one case alone as it makes it among the others", () => {
    const batch = new Batch(4096);
    new Generator({ seed: 3 }).fill(batch, 4096);
    for (const n of [0, 1, 700, 4000]) {
      const alone = new Generator({ seed: 3 }).only(batch.numbers[n]!);
      expect(programOf(alone, 0)).toEqual(programOf(batch, n));
    }
  });

  test("leaves no mnemonic out without a reason", () => {
    const { included, excluded } = forms();
    const known = new Set([...included, ...excluded].map(({ mnemonic }) => mnemonic));
    expect(
      liftedMnemonics()
        .filter((mnemonic) => !known.has(mnemonic))
        .map((one) => Mnemonic[one]),
    ).toEqual([]);
  });

  test("makes every encoding that it says it makes", () => {
    const { included } = forms();
    const wanted = new Set(included.map(({ code }) => code));
    const batch = new Batch(65_536);
    const generator = new Generator({ seed: 11 });
    for (let n = 1; n <= 10 && wanted.size > 0; n++) {
      generator.fill(batch, n * 65_536);
      for (const { code } of batch.instructions) wanted.delete(code);
    }
    expect([...wanted].map((code) => Code[code])).toEqual([]);
  });
});

describe.skipIf(skip !== undefined)("this engine and the host's processor", () => {
  test("do the same with 30,000 random cases", async () => {
    const engines = ["stepped", "regions"] as const;
    const result = await fuzz({ seed: 2, cases: 30_000, engines, regionsEvery: 2 });
    const described = await Promise.all(result.shown.map((difference) => describeDifference(difference)));
    expect(described.map((lines) => lines.join("\n"))).toEqual([]);
    expect(result.ran.stepped).toBeGreaterThan(29_000);
  });
});

describe.skipIf(skip !== undefined)("a wrong outcome", () => {
  test.each([
    ["a register", 2 * 13, 1],
    ["a register's upper half", 2 * 5 + 1, 1 << 31],
    ["a flag", 2 * 17, 0x40],
    ["rip", 2 * 16, 1],
  ])("is seen in the bulk: %s", async (_, word, bit) => {
    const batch = new Batch(1024);
    new Generator({ seed: 5, only: Mnemonic.Add }).fill(batch, 1024);
    const oracle = await BulkOracle.open();
    const outcomes = await oracle.run(batch);
    oracle.close();
    const engine = new BulkEngine("stepped");
    const differing: number[] = [];
    const look = () =>
      engine.compare(
        batch,
        outcomes,
        1,
        (n) => differing.push(n),
        () => {},
      );
    look();
    expect(differing).toEqual([]);
    const words = new Int32Array(outcomes.words);
    words[outcomes.starts[600]! + word]! ^= bit;
    engine.compare(
      batch,
      { ...outcomes, words },
      1,
      (n) => differing.push(n),
      () => {},
    );
    expect(differing).toEqual([600]);
  });

  test("is reported as a case, with both outcomes", async () => {
    const line = "48 01 d8 | add %rbx,%rax | rax=7 rbx=1 r9=0x1234";
    const program = parseCase(line, "try.case", 1)!;
    // An adder that forgets the lowest bit
    const broken = () => {
      const engine = steppedEngine();
      return (given: Program): Outcome => {
        const outcome = engine(given);
        return { ...outcome, registers: { ...outcome.registers, rax: (outcome.registers.rax & ~1n) | 1n } };
      };
    };
    const lines = await describeDifference({ number: 0, engine: "stepped", program }, broken);
    expect(lines).toEqual([
      "48 01 d8 | add %rbx,%rax | rax=7 rbx=1 => rax=8 ; Add_rm64_r64",
      "  rax: expected 8, got 9",
    ]);
    const [text] = lines;
    expect(parseCase(text!, "try.case", 1)?.bytes).toEqual(program.bytes);
  });
});
