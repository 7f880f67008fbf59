// What the judge of runs with patches makes of a forced transition: what tasks were in then is theirs to end, and nothing else.

import { afterEach, beforeEach, expect, test } from "vitest";
import type { Task } from "../../src/kernel/kernel.ts";
import { MODULE } from "../../src/kernel/layout.ts";
import { Lab } from "../../src/lab.ts";
import type { Patch } from "../../src/livepatch/patch.ts";
import { Universe } from "../../src/livepatch/universe.ts";
import type { Vcpu } from "../../src/machine/vcpu.ts";

const assembly = `
	.globl	leaf_fixed
	.type	leaf_fixed, @function
leaf_fixed:
	nop
	lea	40(%rdi), %rax
	ret
	.size	leaf_fixed, . - leaf_fixed
`;

let lab: Lab;
let universe: Universe;
let patch: Patch;
let vcpu: Vcpu;
let task: Task;
beforeEach(async () => {
  lab = await Lab.open({ recordCalls: true });
  const { kernel, livepatch, code, modules } = lab;
  universe = new Universe({ kernel, livepatch, code, modules: () => modules.loaded });
  expect(look()).toBeUndefined();
  const functions = [{ name: "leaf", replacement: "leaf_fixed" }];
  patch = await lab.patch({ name: "fix", objects: [{ functions }] }, [{ name: "fix", assembly }]);
  task = kernel.tasks[0]!;
  expect(look()).toBeUndefined();
});
afterEach(() => lab.dispose());

function look(): string | undefined {
  lab.machine.keeper.changes++;
  return universe.check();
}

/** Puts the task, which calls leaf three times, into its replacement, and has the patch go nevertheless. */
function force(): void {
  vcpu = lab.begin(lab.symbol("loop").address, [3n], { task });
  vcpu.run({ until: lab.symbol("leaf_fixed").address, budget: 1000 });
  vcpu.step();
  lab.livepatch.disable(patch);
  expect(patch.blockers().map(({ reason }) => reason.kind)).toEqual(["on-stack"]);
  lab.livepatch.force(patch);
  expect(lab.livepatch.transition).toBeUndefined();
}

test("who is in it may stay there", () => {
  force();
  expect(look()).toBeUndefined();
  vcpu.step();
  expect(look()).toBeUndefined();
  expect(lab.finish(vcpu)).toBe(43n + 3n + 2n);
  expect(look()).toBeUndefined();
});

test("but must not go there again", () => {
  force();
  expect(look()).toBeUndefined();
  while (!lab.code.describe(vcpu.rip).startsWith("loop+")) vcpu.step();
  expect(look()).toBeUndefined();
  vcpu.run({ until: lab.symbol("leaf").address, budget: 1000 });
  expect(look()).toBeUndefined();
  vcpu.rip = lab.symbol("leaf_fixed").address;
  expect(look()).toMatch(/is in leaf of fix, which is gone/);
});

test("and its module stays counted as needed", () => {
  force();
  const offered = lab.modules.loaded.find(({ name }) => name === "fix");
  expect(offered?.users).toBe(1);
  expect(() => lab.modules.remove("fix")).toThrow("module 'fix' is in use (EAGAIN)");
  expect(look()).toBeUndefined();
  // As if it had been given up.
  const struct = lab.machine.memory.readNumber(lab.symbol("modules").address)!;
  lab.machine.memory.write(
    (struct + MODULE.fields.refcnt.offset) as typeof task.struct.at,
    new Uint8Array(4),
  );
  expect(look()).toMatch(/is in fix, which nobody needs/);
});
