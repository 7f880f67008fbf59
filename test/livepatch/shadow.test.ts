// Shadow variables beyond what the kernel's own scenario has: callbacks that look, memory that is still being read, and what is refused.

import { afterEach, beforeEach, expect, test } from "vitest";
import { addr } from "../../src/base/addr.ts";
import { Lab } from "../../src/lab.ts";

/** A constructor that looks for what it makes; one that refuses; one that fails if it is called. */
const assembly = `
	.globl	looks, refuses
	.type	looks, @function
looks:
	push	%rbx
	mov	%rdi, %rbx
	mov	$7, %esi
	call	klp_shadow_get
	neg	%rax			# nothing is there yet
	pop	%rbx
	ret
	.size	looks, . - looks
	.type	refuses, @function
refuses:
	mov	$-12, %eax
	ret
	.size	refuses, . - refuses
`;
const OBJECT = 0x1000n;
const ID = 7n;

let lab: Lab;
beforeEach(async () => {
  lab = await Lab.open({ vcpus: 2 });
  await lab.loadModule("callbacks", [{ name: "callbacks", assembly }]);
});
afterEach(() => lab.dispose());

const call = (name: string, ...args: readonly bigint[]) => lab.call(name, [OBJECT, ID, ...args]).result;
const alloc = (ctor = 0n, id = ID) => lab.call("klp_shadow_alloc", [OBJECT, id, 8n, ctor, 0n]).result;
const at = (name: string) => BigInt(lab.symbol(name).address);
const log = () => lab.kernel.log.lines.map((line) => line.replace(/^\[[^\]]*\] /, ""));

test("constructors and destructors may look for variables themselves", () => {
  expect(alloc(at("looks"))).not.toBe(0n);
  expect(call("klp_shadow_get")).not.toBe(0n);
  call("klp_shadow_free", at("looks"));
  expect(call("klp_shadow_get")).toBe(0n);
});

test("what is there already is not made again, nor what its constructor refuses: the log says so", () => {
  expect(alloc(at("refuses"))).toBe(0n);
  expect(alloc()).not.toBe(0n);
  expect(alloc()).toBe(0n);
  expect(log()).toEqual([
    "Failed to construct shadow variable <0000000000001000, 7> (-12)",
    "Duplicate shadow variable <0000000000001000, 7>",
  ]);
});

test("what was freed is given out again once nobody reads it who does so with preemption off", () => {
  const [, other] = lab.kernel.cpus;
  const first = alloc();
  lab.machine.memory.write(addr(first), Uint8Array.of(1, 2, 3));
  other!.struct.set("preempt_count", 1);
  call("klp_shadow_free", 0n);
  expect(lab.machine.memory.read(addr(first), 3)).toEqual(Uint8Array.of(1, 2, 3));
  const second = alloc();
  expect(second).not.toBe(first);
  other!.struct.set("preempt_count", 0);
  lab.kernel.agenda.finish();
  call("klp_shadow_free", 0n);
  expect(new Set([alloc(), alloc(0n, 8n)])).toEqual(new Set([first, second]));
});
