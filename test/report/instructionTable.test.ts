// The committed list of instructions is what the code can do, and the sweep that finds them misses none.

import { readFileSync } from "node:fs";
import { beforeAll, describe, expect, test } from "vitest";
import { renderInstructions } from "../../src/report/instructionTable.ts";
import { Mnemonic } from "../../src/x86/decode.ts";
import { type InstructionSet, instructionSet } from "../../src/x86/instructionSet.ts";
import { liftedMnemonics } from "../../src/x86/lift/table.ts";

let set: InstructionSet;
beforeAll(() => {
  set = instructionSet();
}, 60_000);

test("docs/INSTRUCTIONS.md is current", () => {
  const committed = readFileSync(new URL("../../docs/INSTRUCTIONS.md", import.meta.url), "utf8");
  expect(committed, "out of date: npm run instructions").toBe(renderInstructions(set));
});

describe("the sweep", () => {
  const named = (name: string) => set.forms.filter(({ mnemonic }) => mnemonic === name);

  test("finds every instruction that is lifted", () => {
    const found = new Set(set.forms.map(({ mnemonic }) => mnemonic));
    const names = liftedMnemonics().map((mnemonic) => Mnemonic[mnemonic]!.toLowerCase());
    expect(names.filter((name) => !found.has(name))).toEqual([]);
  });

  test("tells forms of one instruction apart", () => {
    expect(
      named("jmp")
        .filter(({ lifted }) => lifted)
        .map(({ opcode }) => opcode),
    ).toEqual(["E9 cd", "EB cb", "FF /4"]);
    expect(named("ud1").map(({ opcode }) => opcode)).toEqual(["0F B9 /r"]);
  });

  test("finds what 64-bit mode dropped, and does not call it that where another size is left", () => {
    const dropped = set.invalid.map(({ mnemonic, opcode }) => `${mnemonic} ${opcode}`);
    for (const form of ["into CE", "bound 62 /r", "inc 40+r", "push 06", "add 82 /0 ib"])
      expect(dropped).toContain(form);
    expect(dropped.filter((form) => form.startsWith("jo ") || form.startsWith("mov "))).toEqual([]);
  });
});

test("an instruction that nothing is said about is an error, with its name", () => {
  const odd = { mnemonic: "frob", opcode: "0F FF", feature: "ODD", privileged: false, lifted: false };
  expect(() => renderInstructions({ forms: [odd], invalid: [] })).toThrow(/frob \(ODD\)/);
});
