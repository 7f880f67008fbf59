// Random instructions against the host's processor, against Unicorn, and regions against stepping, a bounded number of
// each; `npm run fuzz` runs millions. And the fuzzer itself: that a seed is always the same cases, and that it sees a
// wrong outcome.

import { createHash } from "node:crypto";
import { Code, Mnemonic } from "iced-x86";
import { describe, expect, test } from "vitest";
import { liftedMnemonics } from "../../src/x86/lift/table.ts";
import { nativeSkipReason } from "../native/oracle.ts";
import { steppedEngine } from "../x86/cases-engine.ts";
import { decodeAll } from "../x86/cases-flags.ts";
import type { Outcome, Program } from "../x86/cases-model.ts";
import { parseCase } from "../x86/cases-text.ts";
import { OWN_SIZE } from "./address.ts";
import { Batch } from "./batch.ts";
import { BulkEngine, faultOf } from "./bulkEngine.ts";
import { forms } from "./forms.ts";
import { Generator, type GeneratorOptions } from "./generator.ts";
import { OUTCOME } from "./outcomes.ts";
import { close, openHost, openSteps, openUnicorn, type Reference } from "./reference.ts";
import { describeDifference, programOf } from "./report.ts";
import { type FuzzOptions, type FuzzResult, fuzz } from "./run.ts";

const skip = await nativeSkipReason();
if (skip !== undefined) console.log(`instructions are not fuzzed against the processor: ${skip}`);

function generator(options: Partial<GeneratorOptions>): Generator {
  return new Generator({ seed: 0, states: 32, ...options });
}

function fingerprint(options: Partial<GeneratorOptions>): string {
  const batch = new Batch(2048);
  generator(options).fill(batch, 2048);
  return createHash("sha256").update(batch.bytes).digest("hex");
}

/** Runs the cases, and fails with what differs. */
async function expectSame(reference: Reference, options: Partial<FuzzOptions>): Promise<FuzzResult> {
  const given = {
    seed: 2,
    cases: 30_000,
    states: 32,
    engines: ["stepped", "regions"],
    regionsEvery: 2,
  } as const;
  const result = await fuzz({ ...given, ...options }, reference);
  const described = await Promise.all(
    result.shown.map((difference) => describeDifference(difference, reference)),
  );
  expect(described.map((lines) => lines.join("\n"))).toEqual([]);
  expect(result.differenceCount).toBe(0);
  return result;
}

describe.skipIf(skip !== undefined)("the generator", () => {
  test.each([1, 6])("makes the same cases of the same seed, and others of another: %i in a row", (length) => {
    expect(fingerprint({ seed: 7, length })).toBe(fingerprint({ seed: 7, length }));
    expect(fingerprint({ seed: 8, length })).not.toBe(fingerprint({ seed: 7, length }));
  });

  test("makes one case alone as it makes it among the others", () => {
    const batch = new Batch(4096);
    generator({ seed: 3 }).fill(batch, 4096);
    for (const n of [0, 1, 700, 4000]) {
      const alone = generator({ seed: 3 }).only(batch.numbers[n]!);
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
    const all = generator({ seed: 11, length: 1, states: 4 });
    for (let n = 1; n <= 10 && wanted.size > 0; n++) {
      all.fill(batch, n * 65_536);
      for (const { code } of batch.codes) wanted.delete(code);
    }
    expect([...wanted].map((code) => Code[code])).toEqual([]);
  });

  test("makes sequences with branches and loops in them, most of which run to their ends", async () => {
    const batch = new Batch(4096);
    generator({ seed: 4, length: 8, states: 1 }).fill(batch, 2000);
    const targets = [...new Set(batch.codes)].map(({ bytes }) =>
      decodeAll(bytes).map((instruction) => {
        const distance = Number(instruction.nearBranchTarget - instruction.ip);
        const loops = instruction.isJccNear && distance < 0;
        instruction.free();
        return loops ? "back" : distance > 0 && distance < OWN_SIZE ? "ahead" : "none";
      }),
    );
    const share = (kind: string) => targets.filter((kinds) => kinds.includes(kind as never)).length;
    expect(share("ahead")).toBeGreaterThan(batch.count / 3);
    expect(share("back")).toBeGreaterThan(batch.count / 8);
    const { oracle } = openSteps();
    const { words, starts } = await oracle.run(batch);
    const faults = batch.codes.filter((code, n) => faultOf(code, words, starts[n]!) !== undefined);
    expect(faults.length).toBeLessThan(batch.count / 2);
  });
});

describe.skipIf(skip !== undefined)("this engine and the host's processor", () => {
  test.each([
    ["mostly single instructions", undefined, 30_000],
    ["sequences of 12", 12, 5000],
    ["sequences of 3", 3, 5000],
  ])("do the same with random cases: %s", async (_, length, cases) => {
    const host = await openHost();
    const result = await expectSame(host, { length, cases });
    close(host);
    expect(result.ran.stepped).toBeGreaterThan(0.95 * cases);
  });
});

describe("regions", () => {
  test.each([2, 7, 12])("do what stepping does, whatever the host: sequences of %i", async (length) => {
    const engines = ["regions"] as const;
    const result = await expectSame(openSteps(), { length, cases: 4000, engines });
    expect(result.ran.regions).toBeGreaterThan(3800);
  });
});

test("this engine and Unicorn do the same, but for Unicorn's known faults", async (ctx) => {
  const unicorn = await openUnicorn();
  if ("missing" in unicorn) {
    console.log(`instructions are not fuzzed against Unicorn: ${unicorn.missing}`);
    return ctx.skip(unicorn.missing);
  }
  const engines = ["stepped"] as const;
  const result = await expectSame(unicorn, { seed: 5, cases: 30_000, states: 8, length: 1, engines });
  close(unicorn);
  expect(result.explained.size).toBeGreaterThan(15);
  const judged = unicorn.arbiter !== undefined;
  for (const { count, confirmed, open } of result.explained.values())
    expect(confirmed + open).toBe(judged ? count : 0);
});

describe.skipIf(skip !== undefined)("a wrong outcome", () => {
  test.each([
    ["a register", 1, 2 * 13, 1],
    ["a register's upper half", 1, 2 * 5 + 1, 1 << 31],
    ["a flag", 1, 2 * 17, 0x40],
    ["rip", 1, 2 * 16, 1],
    ["a register after several instructions", 5, 2 * 13, 1],
    ["how many there were of them", 5, OUTCOME.retired, 1],
  ])("is seen in the bulk: %s", async (_, length, word, bit) => {
    const batch = new Batch(1024);
    generator({ seed: 5, length, only: length === 1 ? Mnemonic.Add : undefined }).fill(batch, 1024);
    const { oracle, strict } = openSteps();
    const outcomes = await oracle.run(batch);
    const engine = new BulkEngine("regions", strict);
    const differing: number[] = [];
    const look = (words: Int32Array) =>
      engine.compare(
        batch,
        { ...outcomes, words },
        () => true,
        (n) => differing.push(n),
      );
    look(outcomes.words);
    expect(differing).toEqual([]);
    const words = new Int32Array(outcomes.words);
    words[outcomes.starts[600]! + word]! ^= bit;
    look(words);
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
    const host = await openHost();
    const add = generator({ only: Mnemonic.Add }).only(0).codes[0]!;
    const code = { ...add, bytes: program.bytes, undefinedFlags: () => 0 };
    const lines = await describeDifference({ number: 0, engine: "stepped", code, program }, host, broken);
    close(host);
    expect(lines).toEqual([
      "48 01 d8 | add %rbx,%rax | rax=7 rbx=1 => rax=8 ; Add_rm64_r64",
      "  rax: expected 8, got 9",
    ]);
    const [text] = lines;
    expect(parseCase(text!, "try.case", 1)?.bytes).toEqual(program.bytes);
  });
});
