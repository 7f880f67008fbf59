// The cases as text: what a line means, what an unreadable one is told, and that a wrong right-hand side
// is found, whatever part of it is wrong.

import { readFileSync } from "node:fs";
import { Mnemonic } from "iced-x86";
import { describe, expect, test } from "vitest";
import { CASES_FOLDER, caseFiles, loadCases } from "./cases.ts";
import { decodeAll, flagEffect } from "./cases-flags.ts";
import { bytesOf, type Case, CODE, DATA, FLAGS, type Outcome, windowOf } from "./cases-model.ts";
import { parseCase, withRightSide } from "./cases-text.ts";
import { differences } from "./cases-verdict.ts";

const ADD = "01 d8 | add %ebx,%eax | rax=0xffffffff rbx=1 => rax=0 cf=1 pf=1 af=1 zf=1 sf=0 of=0 ; wraps";
const STORE =
  "48 89 03 | mov %rax,(%rbx) | rbx=data+0xffc rax=0x1122334455667788 => [data+0xffc]=0x1122334455667788:8";

function read(line: string): Case {
  return parseCase(line, "try.case", 7) ?? expect.fail("not a case");
}

/** The outcome that the right-hand side describes. */
function outcomeOf(theCase: Case): Outcome {
  const after = theCase.after!;
  const window = windowOf(theCase);
  const changed = [...bytesOf(after.memory)].filter(([offset, byte]) => window[offset] !== byte);
  return { ...after, changed: new Map(changed.sort(([a], [b]) => a - b)) };
}

describe("a line", () => {
  test("names what it changes and keeps the rest", () => {
    const { name, bytes, before, after } = read(ADD);
    expect(name).toBe("try.case:7 add %ebx,%eax");
    expect(bytes).toEqual(Uint8Array.of(0x01, 0xd8));
    expect(before.registers.rbx).toBe(1n);
    expect(after?.registers).toEqual({ ...before.registers, rax: 0n });
    expect(after?.rflags).toBe(FLAGS.cf | FLAGS.pf | FLAGS.af | FLAGS.zf);
    expect(after?.rip).toBe(BigInt(CODE + 2));
  });

  test("reads data, code, negative numbers, undefined flags, branches and faults", () => {
    const line =
      "c3 | ret | rax=-1 [data+8]=code-2:8 => rcx=data+0x10 af=? rip=-0x20 fault=#PF(data-1,write) ; no";
    const { before, after } = read(line);
    expect(before.registers.rax).toBe(0xffff_ffff_ffff_ffffn);
    expect(before.memory).toEqual([{ at: DATA + 8, size: 8, value: BigInt(CODE - 2) }]);
    expect(after).toMatchObject({ undefinedFlags: FLAGS.af, rip: BigInt(CODE - 0x20) });
    expect(after?.fault).toEqual({ name: "#PF", address: BigInt(DATA - 1), access: "write" });
  });

  test("may be blank, a comment, or still without a right-hand side", () => {
    expect(parseCase("", "try.case", 1)).toBeNull();
    expect(parseCase("# add", "try.case", 1)).toBeNull();
    expect(read("90 | nop | rax=1").after).toBeNull();
  });

  test.each([
    ["90 | nop", "a case is: bytes | text | before => after ; comment"],
    ["9 | nop | =>", "not hex bytes: 9"],
    ["90 | nop | eax=1 =>", "'eax' is no register, flag or [data+N]"],
    ["90 | nop | rax=0x1ffffffffffffffff =>", "0x1ffffffffffffffff does not fit 64 bits"],
    ["90 | nop | rax=twelve =>", "'twelve' is not a value"],
    ["90 | nop | [data+0x1ffd]=0:4 =>", "[data+0x1ffd] is outside the data window"],
    ["90 | nop | [data]=256:1 =>", "256 does not fit 8 bits"],
    ["90 | nop | [data]=1 =>", "'1' has no size: write value:1, :2, :4 or :8"],
    ["90 | nop | cf=? =>", "cf is 0 or 1, not '?'"],
    ["90 | nop | rip=+1 =>", "rip and fault belong to the right-hand side"],
    ["90 | nop | => fault=#XY", "'#XY' is no fault"],
    ["90 | nop | => fault=#PF", "'#PF': #PF alone has (address,access)"],
    ["90 | nop | => oops", "'oops' is not name=value"],
  ])("is refused with its place: %s", (line, reason) => {
    expect(() => read(line)).toThrow(`try.case:7: ${reason}`);
  });
});

describe("a wrong right-hand side", () => {
  test("is none when it is the outcome", () => {
    for (const line of [ADD, STORE]) expect(differences(read(line), outcomeOf(read(line)))).toEqual([]);
  });

  test.each([
    [ADD, "rax=0 ", "rax=1 ", ["rax: expected 1, got 0"]],
    [ADD, "rax=0 ", "rax=0 r15=3 ", ["r15: expected 3, got 0x5a5a5a5a5a5a5a5f"]],
    [ADD, "of=0", "of=1", ["of: expected 1, got 0"]],
    [ADD, "of=0", "df=1", ["df: expected 1, got 0"]],
    [ADD, "cf=1 pf=1", "cf=0 pf=0", ["cf: expected 0, got 1", "pf: expected 0, got 1"]],
    [ADD, "of=0", "rip=+3", ["rip: expected code+3, got code+2"]],
    [ADD, "of=0", "rip=+2 fault=#DE", ["fault: expected #DE, got none"]],
    [STORE, "=> [data+0xffc]=0x11", "=> [data+0xffc]=0x12", ["[data+0x1003]: expected 0x12, got 0x11"]],
    [
      STORE,
      "[data+0xffc]=0x1122334455667788:8",
      "[data+0xffc]=0x55667788:4",
      ["[data+0x1000]: expected 0xa5, got 0x44"],
    ],
    [STORE, "=>", "=> [data+0x1fff]=0:1", ["[data+0x1fff]: expected 0x00, got 0xa5"]],
  ])("%s with %s as %s", (line, right, wrong, expected) => {
    const found = differences(read(line.replace(right, wrong)), outcomeOf(read(line)));
    for (const difference of expected) expect(found).toContain(difference);
  });

  test("says so when it is missing", () => {
    const [reason] = differences(read("90 | nop |"), outcomeOf(read("90 | nop | =>")));
    expect(reason).toContain("no right-hand side");
  });
});

describe("undefined flags, by the manual", () => {
  const named = (mask: number) => Object.entries(FLAGS).flatMap(([name, bit]) => (mask & bit ? name : []));
  test.each([
    ["d3 e0 | shl %cl,%eax | rcx=0", "", ""],
    ["d3 e0 | shl %cl,%eax | rcx=0x20", "", ""],
    ["48 d3 e0 | shl %cl,%rax | rcx=0x20", "cf pf zf sf", "af of"],
    ["d1 e0 | shl %eax |", "cf pf zf sf of", "af"],
    ["c0 e0 07 | shl $7,%al |", "cf pf zf sf", "af of"],
    ["c0 e0 08 | shl $8,%al |", "pf zf sf", "cf af of"],
    ["c0 f8 08 | sar $8,%al |", "cf pf zf sf", "af of"],
    ["c1 c0 01 | rol $1,%eax |", "cf of", ""],
    ["c1 c0 21 | rol $33,%eax |", "cf of", ""],
    ["c1 c0 02 | rol $2,%eax |", "cf", "of"],
    ["c1 d0 00 | rcl $0,%eax |", "", ""],
    ["0f a4 d8 04 | shld $4,%ebx,%eax |", "cf pf zf sf", "af of"],
    ["21 d8 | and %ebx,%eax |", "cf pf zf sf of", "af"],
    ["f7 e3 | mul %ebx |", "cf of", "pf af zf sf"],
    ["0f bc c3 | bsf %ebx,%eax |", "zf", "cf pf af sf of"],
    ["ff c0 | inc %eax |", "pf af zf sf of", ""],
    ["f7 e3 01 d8 | mul %ebx ; add %ebx,%eax |", "cf pf af zf sf of", ""],
  ])("%s", (line, written, unknown) => {
    const effect = flagEffect(read(line), false);
    expect([named(effect.written).join(" "), named(effect.undefined).join(" ")]).toEqual([written, unknown]);
  });
});

describe("the committed cases", () => {
  const cases = loadCases();

  test.each(caseFiles())("%s has right-hand sides, written as they would be written again", (file) => {
    for (const [index, line] of readFileSync(new URL(file, CASES_FOLDER), "utf8").split("\n").entries()) {
      const theCase = parseCase(line, file, index + 1);
      if (theCase === null) continue;
      const { after, name } = theCase;
      expect(after, name).not.toBeNull();
      const { written } = flagEffect(theCase, after!.fault !== null);
      expect(withRightSide(line, theCase, after!, written), name).toBe(line);
    }
  });

  test("cover every mnemonic that kernel text uses", () => {
    const covered = new Set<string>();
    for (const { bytes } of cases) for (const mnemonic of mnemonics(bytes)) covered.add(mnemonic);
    expect(REQUIRED.filter((name) => !covered.has(name))).toEqual([]);
  });
});

function mnemonics(bytes: Uint8Array): string[] {
  return decodeAll(bytes).map((instruction) => {
    const name = Mnemonic[instruction.mnemonic]!.toLowerCase();
    instruction.free();
    return name;
  });
}

const CONDITIONS = "o no b ae e ne be a s ns p np l ge le g".split(" ");
const REQUIRED = [
  ..."mov movzx movsx movsxd lea xchg push pop pushfq popfq call ret jmp leave nop endbr64".split(" "),
  ..."add adc sub sbb cmp inc dec neg not and or xor test mul imul div idiv cwd cdq cqo cbw cwde cdqe".split(
    " ",
  ),
  ..."shl shr sar rol ror rcl rcr shld shrd bt bts btr btc bsf bsr tzcnt lzcnt popcnt bswap".split(" "),
  ..."xadd cmpxchg cld std cmc clc stc lahf sahf int3 ud2".split(" "),
  ...["movs", "stos", "lods", "scas", "cmps"].flatMap((name) =>
    ["b", "w", "d", "q"].map((size) => name + size),
  ),
  ...CONDITIONS.flatMap((condition) => [`j${condition}`, `set${condition}`, `cmov${condition}`]),
];
