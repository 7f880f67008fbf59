// Exceptions of kernel code: taken by guest handlers, reported with their place, and gone on from.

import { beforeAll, describe, expect, test } from "vitest";
import { offset } from "../../src/base/addr.ts";
import { Lab } from "../../src/lab.ts";
import { INT3_GAP, PT_REGS } from "../../src/machine/ptRegs.ts";
import { GPR } from "../../src/x86/register.ts";

let lab: Lab;
beforeAll(async () => {
  lab = await Lab.open({ recordCalls: true });
});

/** Each function of asm/faults.S: what is said of it, and how many bytes the saved rip is from there. */
const FAULTS: readonly [name: string, message: RegExp, behind: number][] = [
  ["fault_divide", /#DE at fault_divide\+0x9\/.*divisor/, 0],
  ["fault_debug", /#DB at fault_debug\+0x6\//, 0],
  ["fault_breakpoint", /#BP at fault_breakpoint\+0x5\//, 1],
  ["fault_overflow", /#OF at fault_overflow\+0x5\//, 2],
  ["fault_bounds", /#BR at fault_bounds\+0x5\//, 2],
  ["fault_invalid", /#UD at fault_invalid\+0x5\//, 0],
  ["fault_device", /#NM at fault_device\+0x5\//, 2],
  ["fault_stack", /#SS\(0\) at fault_stack\+0x13\//, 0],
  ["fault_protection", /#GP\(0\) at fault_protection\+0xf\/.*not canonical/, 0],
  ["fault_page", /#PF: read at 0x0000000000000000, not mapped, at fault_page\+0xb\//, 0],
];

test("every function of asm/faults.S is tried here", () => {
  const functions = lab.image.symbols.flatMap(({ name }) => (name.startsWith("fault_") ? [name] : []));
  expect(FAULTS.map(([name]) => name).sort()).toEqual(functions.sort());
});

describe.each(FAULTS)("%s", (name, message, behind) => {
  test("is refused by `call`, with exception and place", () => {
    expect(() => lab.call(name)).toThrow(expect.objectContaining({ code: "call-failed" }));
    expect(() => lab.call(name)).toThrow(message);
  });

  test("is taken with all registers saved, and is a frame of the true chain", () => {
    const vcpu = lab.begin(lab.symbol(name).address, []);
    const before = vcpu.instructions;
    // Up to where the handler is entered: what the function's registers are, is what the handler finds.
    let [registers, rip] = [vcpu.registers(), vcpu.rip];
    while (!lab.code.describe(vcpu.rip).startsWith("asm_exc_")) {
      [registers, rip] = [vcpu.registers(), vcpu.rip];
      expect(vcpu.step()).toBeUndefined();
      expect(vcpu.instructions - before).toBeLessThan(20);
    }
    const exit = vcpu.run({ budget: 100 });
    const taken = lab.kernel.exception(vcpu, exit)!;
    expect(lab.describe({ kind: "fault", ip: taken.ip, fault: taken.fault })).toMatch(
      new RegExp(message.source.split(".*")[0]!),
    );
    const saved = taken.regs;
    expect(saved.getNumber("ip")).toBe(offset(taken.ip, behind));
    expect(rip).toBe(taken.fault.vector === "#DB" ? offset(taken.ip, -1) : taken.ip);
    for (const register of GPR) {
      const field = register.slice(1).replace(/^(\d)/, "r$1") as keyof typeof PT_REGS.fields;
      expect(saved.get(field), register).toBe(registers[register]);
    }
    expect(saved.getNumber("cs")).toBe(0x10);
    const chain = lab.machine.trueChain(vcpu.rsp);
    expect(chain.map(({ kind }) => kind)).toEqual(["call", "call", "interrupt", "call"]);
    // Entry code moves a breakpoint's frame down.
    const moved = name === "fault_breakpoint" ? INT3_GAP : 0;
    expect(chain[2]!.slot).toBe(offset(saved.at, PT_REGS.fields.ip.offset + moved));
    // A handler that skips what cannot be done: the function returns as if nothing had been.
    saved.set("ip", BigInt(lab.symbol(name).address) + BigInt(lab.symbol(name).size) - 1n);
    if (/stack|page/.test(name))
      saved.set("ip", BigInt(lab.symbol(name).address) + BigInt(lab.symbol(name).size) - 2n);
    lab.finish(vcpu);
    expect(vcpu.rsp).toBe(lab.kernel.tasks[0]!.stack.high);
    expect(vcpu.get("rbx")).toBe(registers.rbx);
  });
});

test("an exit that is no exception's is none", () => {
  const vcpu = lab.begin(lab.symbol("leaf").address, [1n]);
  const exit = vcpu.run({ budget: 1000 });
  expect(lab.kernel.returned(exit)).toBe(true);
  expect(lab.kernel.exception(vcpu, exit)).toBeUndefined();
});

test("an exception in an exception's handler is taken as well", () => {
  // exception_handler itself is fine; its caller's stack is not: the page fault comes from inside an NMI.
  const vcpu = lab.begin(lab.symbol("leaf").address, [1n]);
  vcpu.nmi();
  vcpu.run({ until: lab.symbol("nmi_handler").address, budget: 100 });
  vcpu.rip = lab.symbol("fault_page").address;
  const taken = lab.kernel.exception(vcpu, vcpu.run({ budget: 1000 }))!;
  expect(taken.fault.vector).toBe("#PF");
  const [, nmiStack] = lab.kernel.cpus[0]!.exceptionStacks;
  expect(taken.regs.at).toBeGreaterThan(nmiStack!.low);
  expect(taken.regs.at).toBeLessThan(nmiStack!.high);
  expect(lab.machine.trueChain(vcpu.rsp).map(({ kind }) => kind)).toEqual([
    "call",
    "call",
    "interrupt",
    "call",
    "interrupt",
  ]);
});
