// Tasks in guest memory: their stacks and what guards them, who is current where, and that runs repeat.

import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Addr, addr, hex, offset, PAGE_SIZE, toWord } from "../../src/base/addr.ts";
import { DIRECT_MAP, STACKS } from "../../src/image/layout.ts";
import { CPU, PATCH_STATE, type PatchState, TASK } from "../../src/kernel/layout.ts";
import { Lab } from "../../src/lab.ts";
import { STACK_SIZE } from "../../src/machine/callRecord.ts";
import { WORKLOADS } from "../lab/workloads.ts";
import { chooser, interleave } from "./interleave.ts";

let lab: Lab;
let folder: string;

beforeAll(async () => {
  lab = await Lab.open({ vcpus: 3, recordCalls: true });
  folder = mkdtempSync(join(tmpdir(), "fentrylab-"));
  const source = join(folder, "recurse.S");
  writeFileSync(
    source,
    `.include "macros.inc"
     .text
     traced recurse
	frame_begin
	call recurse
	frame_end
	ret
     done recurse
     untraced write_below
	movb $1, -1(%rdi)
	ret
     done write_below`,
  );
  await lab.loadModule("recurse", [source]);
});
afterAll(() => rmSync(folder, { recursive: true }));

const target = (name: string) => lab.symbol(name).address;
const raw = (at: Addr, size: number) => Buffer.from(lab.machine.memory.read(at, size));

describe("tasks", () => {
  test("have stacks of their own, the kernel's size, aligned to it, with a guard below", () => {
    const { tasks } = lab.kernel;
    expect(tasks.map(({ pid }) => pid)).toEqual([1, 2, 3]);
    const idle = lab.kernel.cpus.map((cpu) => cpu.idle);
    for (const [n, { stack }] of [...idle, ...tasks].entries()) {
      expect(stack).toEqual({
        low: offset(STACKS, 2 * n * STACK_SIZE),
        high: offset(STACKS, (2 * n + 1) * STACK_SIZE),
      });
      expect(lab.machine.memory.isMapped(stack.low, STACK_SIZE)).toBe(true);
      for (let page = PAGE_SIZE; page <= STACK_SIZE; page += PAGE_SIZE)
        expect(lab.machine.memory.isMapped(offset(stack.low, -page), 1)).toBe(false);
      expect(lab.machine.memory.find(stack.low)!.access).toEqual({
        write: true,
        execute: false,
        user: false,
      });
    }
  });

  test("are structures in guest memory, as the assembler's constants have them", () => {
    for (const { struct, pid, stack } of lab.kernel.tasks) {
      expect(raw(struct.at, 4).readInt32LE()).toBe(pid);
      expect(raw(offset(struct.at, TASK.fields.patch_state.offset), 4).readInt32LE()).toBe(-1);
      expect(raw(offset(struct.at, 8), 16).readBigUInt64LE(0)).toBe(toWord(stack.low));
      expect(raw(offset(struct.at, 8), 16).readBigUInt64LE(8)).toBe(toWord(stack.high));
    }
  });

  test("keep their patch state in guest memory, where either side changes it", () => {
    const [task, other] = lab.kernel.tasks;
    const place = offset(task!.struct.at, TASK.fields.patch_state.offset);
    for (const state of ["KLP_UNPATCHED", "KLP_PATCHED", "KLP_UNDEFINED"] as PatchState[]) {
      lab.kernel.setPatchState(task!, state);
      expect(raw(place, 4).readInt32LE()).toBe(PATCH_STATE[state]);
      expect(lab.kernel.patchState(task!)).toBe(state);
    }
    lab.machine.memory.write(place, Uint8Array.of(1, 0, 0, 0));
    expect(lab.kernel.patchState(task!)).toBe("KLP_PATCHED");
    expect(lab.kernel.patchState(other!)).toBe("KLP_UNDEFINED");
    expect(task!.struct.getNumber("pid")).toBe(task!.pid); // its neighbour in the structure
    lab.kernel.setPatchState(task!, "KLP_UNDEFINED");
  });
});

describe("the current task", () => {
  test("is what gs leads to, on whichever vCPU it was put", () => {
    const { tasks } = lab.kernel;
    const { vcpus } = lab.machine;
    for (let turn = 0; turn < 3; turn++) {
      for (const vcpu of vcpus) {
        const task = tasks[(vcpu.index + turn) % 3]!;
        lab.begin(target("leaf"), [1n], { task, vcpu });
        expect(lab.kernel.current(vcpu)).toBe(task);
        expect(vcpu.rsp).toBe(task.stack.high);
        const cpu = addr(vcpu.gsBase);
        expect(raw(cpu, 8).readBigUInt64LE()).toBe(toWord(task.struct.at));
        expect(raw(offset(cpu, CPU.fields.number.offset), 4).readInt32LE()).toBe(vcpu.index);
      }
      expect(vcpus.map((vcpu) => lab.finish(vcpu))).toEqual([2n, 2n, 2n]);
    }
    expect(new Set(vcpus.map(({ gsBase }) => gsBase)).size).toBe(3);
  });

  test("is what guest code reads", () => {
    const redirect = lab.redirect("leaf", target("leaf_new"));
    redirect.transition = true;
    redirect.enable();
    for (const vcpu of lab.machine.vcpus) {
      const task = lab.kernel.tasks[2 - vcpu.index]!;
      lab.begin(target("leaf"), [1n], { task, vcpu });
      vcpu.run({ until: target("klp_ftrace_handler"), budget: 1000 });
      // mov, mov %gs:, as gcc has them
      for (let n = 0; n < 2; n++) vcpu.step();
      expect(vcpu.get("rdx")).toBe(toWord(task.struct.at));
      lab.finish(vcpu);
    }
    redirect.disable();
  });
});

/** What do_exception, which gcc compiled, executes up to its call of the handler: it asks if it is a breakpoint's, and looks at every fixup. */
const DO_EXCEPTION = 30;

describe("a stack that overflows", () => {
  const [task, vcpu] = [() => lab.kernel.tasks[1]!, () => lab.machine.vcpus[0]!];

  function overflow(run: boolean) {
    lab.begin(target("recurse"), [], { task: task(), vcpu: vcpu() });
    const before = vcpu().instructions;
    let exit = run ? vcpu().run({ budget: 1_000_000 }) : vcpu().step();
    for (let n = 0; n < 1_000_000 && exit === undefined; n++) exit = vcpu().step();
    return { exit, instructions: vcpu().instructions - before, rsp: vcpu().rsp };
  }

  test.each(["stepped", "run"])("is a double fault, taken on a stack of its own, %s", (how) => {
    const below = lab.machine.memory.read(lab.kernel.tasks[0]!.stack.low, STACK_SIZE);
    const { exit, rsp, instructions } = overflow(how === "run");
    const { low } = task().stack;
    const taken = lab.kernel.exception(vcpu(), exit!)!;
    expect(taken.fault).toEqual({ vector: "#DF", errorCode: 0 });
    expect(taken.regs.getNumber("sp")).toBe(low);
    const missed = Number(BigInt.asIntN(64, vcpu().system.getWord("cr2"))) - low; // of the page fault before it
    expect(missed).toBeLessThan(0);
    expect(missed).toBeGreaterThanOrEqual(-PAGE_SIZE);
    const [doubleFaultStack] = lab.kernel.cpus[0]!.exceptionStacks;
    expect(rsp).toBeGreaterThan(doubleFaultStack!.low);
    expect(rsp).toBeLessThan(doubleFaultStack!.high);
    // lab_call pushes one word and each level two, in four instructions: NOP, push, mov, call.
    // Then push and jmp, the test of cs, 15 words saved, lea, cld, two movs and a call; what do_exception executes; at
    // last push, mov, vmcall.
    const toHandler = 2 + 4 * (STACK_SIZE / 16) - 1 + 2 + 2 + (15 + 5);
    expect(instructions).toBe(toHandler + DO_EXCEPTION + 3);
    expect(lab.code.describe(taken.ip)).toMatch(/^recurse\+0x9\//);
    expect(lab.machine.memory.read(lab.kernel.tasks[0]!.stack.low, STACK_SIZE)).toEqual(below);
    const [handler, entry, fault] = lab.machine.trueChain(rsp);
    const caller = (frame: typeof entry) =>
      lab.code.describe(frame?.kind === "call" ? frame.returnAddress : addr(0));
    expect(caller(handler)).toMatch(/^do_exception\+/);
    expect(caller(entry)).toMatch(/^exception_common\+/);
    expect(fault).toMatchObject({ kind: "interrupt", vector: 8, ip: taken.ip, rsp: low });
    expect(lab.machine.trueStack(offset(low, 8)).length).toBe(STACK_SIZE / 16);
  });

  test("is refused by `call`, with the place and what to look for", () => {
    const act = () => lab.call("recurse", [], { task: task(), vcpu: vcpu() });
    expect(act).toThrow(
      /^the call did not return: #DF\(0\) at recurse\+0x9\/.*its stack overflowed: look for endless recursion$/,
    );
  });

  test("spoils nothing for the next call, of that task or another", () => {
    overflow(true);
    expect(lab.call("loop", [3], { task: task(), vcpu: vcpu() }).result).toBe(9n);
    expect(lab.call("loop", [3]).result).toBe(9n);
  });

  test("and a byte below it is guarded as well", () => {
    const act = () => lab.call("write_below", [BigInt(task().stack.low)]);
    const at = hex(offset(task().stack.low, -1));
    expect(act).toThrow(new RegExp(`#PF: write at ${at}, not mapped, at write_below`));
  });
});

test("more arguments than registers are refused", () => {
  expect(() => lab.call("leaf", [1, 2, 3, 4, 5, 6, 7])).toThrow(
    expect.objectContaining({ code: "too-many-arguments" }),
  );
});

describe("the same seed", () => {
  async function run(seed: number) {
    const own = await Lab.open({ vcpus: 2, recordCalls: true });
    const { machine, kernel } = own;
    const redirect = own.redirect("leaf", own.symbol("leaf_new").address);
    redirect.transition = true;
    redirect.enable();
    kernel.setPatchState(kernel.tasks[0]!, "KLP_PATCHED");
    kernel.setPatchState(kernel.tasks[1]!, "KLP_UNPATCHED");
    const choose = chooser(seed);
    const trace: string[] = [];
    const results = [];
    for (const { target, args } of WORKLOADS) {
      const vcpus = machine.vcpus.map((vcpu, n) =>
        own.begin(own.symbol(target).address, args(own), { vcpu, task: kernel.tasks[n]! }),
      );
      results.push(
        interleave(own, vcpus, choose, (vcpu) => trace.push(`${vcpu.index} ${own.code.describe(vcpu.rip)}`)),
      );
    }
    const { memory } = machine;
    const areas = [
      ...own.image.segments.map(({ address, size }) => memory.read(address, size)),
      ...kernel.tasks.map(({ stack }) => memory.read(stack.low, STACK_SIZE)),
      memory.read(DIRECT_MAP, PAGE_SIZE),
    ];
    return {
      results,
      trace,
      instructions: machine.vcpus.map(({ instructions }) => instructions),
      registers: machine.vcpus.map((vcpu) => ({ ...vcpu.registers(), rip: vcpu.rip, rflags: vcpu.rflags })),
      memory: areas.map((bytes) => Buffer.from(bytes).toString("base64")),
    };
  }

  test("gives the same run: instructions, registers and memory; another seed another", async () => {
    const first = await run(7);
    expect(await run(7)).toEqual(first);
    const other = await run(8);
    expect(other.trace).not.toEqual(first.trace);
    // Nothing the calls return hangs on the order here but the file position, which they share.
    expect(other.results.slice(0, 4)).toEqual(first.results.slice(0, 4));
  });
});
