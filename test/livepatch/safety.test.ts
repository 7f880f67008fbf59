// What could make a transition come to its end, or code go, while somebody is in it: each was possible once.

import { afterEach, beforeEach, expect, test } from "vitest";
import { Lab } from "../../src/lab.ts";
import type { FunctionSpec, PatchSpec } from "../../src/livepatch/patch.ts";
import type { Vcpu } from "../../src/machine/vcpu.ts";
import { Userland } from "../kernel/userland.ts";

let lab: Lab;
beforeEach(async () => {
  lab = await Lab.open();
});
afterEach(() => lab.dispose());

/** A function, traced or not, of `body`. */
const source = (name: string, body: string, isTraced = false) => ({
  name,
  assembly: `
	.globl ${name}
	.type ${name}, @function
${name}:
${isTraced ? '1:	call __fentry__\n	.pushsection __mcount_loc,"a",@progbits\n	.quad 1b\n	.popsection\n' : ""}
${body}
	ret
	.size ${name}, . - ${name}
`,
});
const FRAME = ["	push %rbp", "	mov %rsp, %rbp"];
const calling = (target: string) => [...FRAME, `	call ${target}`, "	pop %rbp"].join("\n");
const patching = (
  name: string,
  func: FunctionSpec,
  more: Partial<PatchSpec> = {},
  object?: string,
): PatchSpec => ({
  name,
  objects: [{ ...(object === undefined ? {} : { name: object }), functions: [func] }],
  ...more,
});
const at = (name: string) => lab.symbol(name).address;

/** Takes all steps that can be taken, up to `stop`, while CPUs stand still but for serialising. */
function steps(stop: () => boolean = () => false): void {
  const { agenda, cpus } = lab.kernel;
  agenda.live = true;
  for (let [next] = agenda.ready(); next !== undefined && !stop(); [next] = agenda.ready()) {
    agenda.step(next);
    for (const { struct } of cpus) struct.set("sync_done", struct.getNumber("sync_wanted"));
  }
}

/** Executes up to where `name` begins. */
function reach(vcpu: Vcpu, name: string): void {
  for (let n = 0; n < 500 && !lab.code.describe(vcpu.rip).startsWith(`${name}+`); n++) vcpu.step();
  expect(lab.code.describe(vcpu.rip)).toMatch(new RegExp(`^${name}\\+`));
}

test("a task that was asked to switch itself in one transition does not in the next, before that has begun", async () => {
  await lab.loadModule("m", [source("busy", calling("cond_resched"), true)]);
  const vcpu = lab.begin(at("busy"), []);
  vcpu.run({ until: at("cond_resched"), budget: 1000 });
  const task = lab.kernel.current(vcpu)!;
  lab.kernel.agenda.live = true;
  lab.livepatch.enable(patching("first", { name: "leaf", replacement: at("leaf_new") }));
  steps();
  expect(lab.livepatch.tasks.isPending(task)).toBe(true);
  reach(vcpu, "hypercall"); // the flag was looked at
  lab.kernel.agenda.live = false;
  lab.livepatch.retry();
  expect(lab.livepatch.transition).toBeUndefined();

  lab.kernel.agenda.live = true;
  lab.livepatch.enable(patching("second", { name: "busy", replacement: at("leaf_new") }, {}, "m"));
  steps(() => lab.kernel.patchState(task) === "KLP_UNPATCHED");
  for (let n = 0; n < 20; n++) lab.kernel.run(vcpu, { budget: 1 });
  expect(lab.kernel.patchState(task)).toBe("KLP_UNPATCHED");
  steps();
  expect(lab.livepatch.transition?.patch.name).toBe("second");
});

test("where a transition was forced, a later one looks for all that tasks may have stayed in", async () => {
  const helper = source("helper", "	mov $1, %eax");
  await lab.patch(patching("one", { name: "leaf", replacement: "leaf_one" }), [
    source("leaf_one", calling("helper")),
    helper,
  ]);
  const vcpu = lab.begin(at("leaf"), [1n]);
  reach(vcpu, "helper");
  const two = lab.livepatch.enable(patching("two", { name: "leaf", replacement: at("leaf_new") }));
  expect(lab.livepatch.transition?.patch).toBe(two);
  lab.livepatch.force(two);
  expect(lab.livepatch.transition).toBeUndefined();
  const replace = patching("three", { name: "tail", replacement: at("leaf_new") }, { replace: true });
  lab.livepatch.enable(replace);
  expect(lab.livepatch.blockers().map(({ why }) => why)).toEqual([
    expect.stringContaining("in leaf (leaf_one+"),
  ]);
  expect(() => lab.modules.remove("one")).toThrow("in use");
  expect(lab.finish(vcpu)).toBe(1n);
  lab.livepatch.retry();
  expect(lab.livepatch.patches.map(String)).toEqual(["three"]);
  lab.modules.remove("one");
});

test("a module does not go before a patch whose code it has, whatever it is called", async () => {
  await lab.loadModule("other", [source("leaf_other", "	mov $77, %eax")]);
  const patch = lab.livepatch.enable(patching("fix", { name: "leaf", replacement: at("leaf_other") }));
  expect(() => lab.modules.remove("other")).toThrow("module 'other' is in use (EAGAIN)");
  expect(lab.call("leaf", [1]).result).toBe(77n);
  lab.livepatch.disable(patch);
  lab.modules.remove("other");
  expect(lab.call("leaf", [1]).result).toBe(2n);
});

test("modules that were offered follow snapshots, as patches do", async () => {
  const { machine, modules, livepatch } = lab;
  const before = machine.snapshot();
  const patch = await lab.patch(patching("fix", { name: "leaf", replacement: "fixed" }), [
    source("fixed", "	mov $77, %eax"),
  ]);
  const patched = machine.snapshot();
  livepatch.disable(patch);
  modules.remove("fix");
  modules.withdraw("fix");
  machine.restore(patched);
  expect([lab.call("leaf", [1]).result, modules.has("fix")]).toEqual([77n, true]);
  livepatch.disable(patch);
  modules.remove("fix");
  machine.restore(before);
  expect([lab.call("leaf", [1]).result, modules.has("fix")]).toEqual([2n, false]);
});

test("a module that is being inserted here is not mapped a second time for guest code", async () => {
  await lab.offerModule("v", [source("v", "	mov $1, %eax")]);
  lab.kernel.agenda.live = true;
  lab.modules.insert("v");
  expect(lab.modules.map("v")).toBeUndefined();
});

test("a task that has ended is not waited for, wherever it was when it did", async () => {
  const userland = await Userland.open(`
.text
program parent
	xor %edi, %edi			# a child, on a stack of its own, that ends at once
	mov $0x100, %edi
	lea stacks-4096(%rip), %rsi
	sys NR_clone
	test %eax, %eax
	jz 1f
2:	sys NR_sched_yield		# and is never waited for
	jmp 2b
1:	xor %edi, %edi
	sys NR_exit
	ud2
done parent
`);
  const { kernel, livepatch, modules } = userland.lab;
  await userland.lab.loadModule("copy", [source("do_exit_new", "	ud2")]);
  userland.start("parent");
  userland.run(5_000);
  const child = kernel.tasks.find((task) => task.letter === "Z");
  expect(child?.hasEnded).toBe(true);
  const patch = livepatch.enable(
    patching("fix", { name: "do_exit", replacement: userland.lab.symbol("do_exit_new").address }),
  );
  expect(patch.blockers().map(({ task }) => task)).not.toContain(child);
  expect(modules.loaded.map(({ name }) => name)).toEqual(["copy"]);
  userland.lab.dispose();
});

test("what waits for a handler goes on when that has ended, and says so until then", () => {
  const patch = lab.livepatch.enable(patching("one", { name: "tail", replacement: at("leaf_new") }));
  const tracer = lab.ftrace.makeOps({ name: "tracer", handler: () => {} });
  lab.ftrace.setFilter(tracer, ["tail"]);
  lab.ftrace.register(tracer); // so that the site does not jump
  const vcpu = lab.begin(at("tail"), [1n]);
  for (const { cpus } = lab.kernel; cpus[0]!.struct.getNumber("preempt_count") === 0; ) vcpu.step();
  lab.livepatch.disable(patch);
  lab.kernel.setPatchState(lab.kernel.current(vcpu)!, "KLP_UNPATCHED");
  lab.livepatch.retry();
  expect([patch.blockers(), lab.livepatch.waitsFor]).toEqual([
    [],
    "wait until every CPU has been preemptible",
  ]);
  lab.finish(vcpu);
  expect([lab.livepatch.patches, lab.livepatch.waitsFor]).toEqual([[], undefined]);
});
