// The judge of runs with patches, itself judged: what is put wrong in the guest while nothing is being done is named.

import { beforeEach, expect, test } from "vitest";
import { offset } from "../../src/base/addr.ts";
import { NOP5 } from "../../src/ftrace/site.ts";
import { Lab } from "../../src/lab.ts";
import type { FunctionStack } from "../../src/livepatch/functionStack.ts";
import { Universe } from "../../src/livepatch/universe.ts";

let lab: Lab;
let universe: Universe;
let stack: FunctionStack;
beforeEach(async () => {
  lab = await Lab.open({ recordCalls: true });
  const { kernel, livepatch, code, modules } = lab;
  universe = new Universe({ kernel, livepatch, code, modules: () => modules.loaded });
  expect(universe.check()).toBeUndefined();
  const replacement = lab.symbol("leaf_new").address;
  for (const name of ["one", "two"])
    livepatch.enable({ name, objects: [{ functions: [{ name: "leaf", replacement }] }] });
  expect(universe.check()).toBeUndefined();
  [stack] = [...livepatch.stacks.all.values()] as [FunctionStack];
  return () => lab.dispose();
});

/** Looks again, as after a change of what TypeScript keeps. */
function look(): string | undefined {
  lab.machine.keeper.changes++;
  return universe.check();
}

test.each<[string, () => void, string]>([
  [
    "the top of its stack",
    () => stack.ops.struct.set("private", stack.original.at),
    "the guest's stack of leaf leads elsewhere",
  ],
  [
    "what is below",
    () => stack.functions[0]!.struct.set("next", stack.original.at),
    "the guest's stack of leaf leads elsewhere",
  ],
  [
    "what is at the bottom",
    () => stack.functions[1]!.struct.set("next", 0),
    "the guest's stack of leaf does not end with the original",
  ],
  [
    "a flag that should be off",
    () => stack.functions[0]!.struct.set("transition", 1),
    "a function of leaf is in transition yet",
  ],
  [
    "the site",
    () => lab.machine.memory.write(stack.site.ip, NOP5),
    "the site of leaf does not lead to its functions",
  ],
  [
    "where the site leads",
    () => lab.machine.memory.write(offset(stack.site.ip, 1), Uint8Array.of(1)),
    "the site of leaf does not lead to its functions",
  ],
  [
    "a patch that the stack does not know",
    () => lab.livepatch.patch("one").objects[0]!.change({ functions: [] }),
    "the stack of leaf has other functions than the patches",
  ],
])("%s", (_, spoil, problem) => {
  expect(look()).toBeUndefined();
  spoil();
  expect(look()).toBe(problem);
});
