// Who runs: switches that tasks ask for, switches that interrupts make, and what interrupts leave as it was.

import { beforeEach, describe, expect, test } from "vitest";
import { type Addr, offset, toWord } from "../../src/base/addr.ts";
import type { Task } from "../../src/kernel/kernel.ts";
import { INACTIVE_TASK_FRAME, THREAD_FLAG, VECTORS } from "../../src/kernel/layout.ts";
import { Lab } from "../../src/lab.ts";
import { PT_REGS } from "../../src/machine/ptRegs.ts";
import { StructView } from "../../src/machine/struct.ts";
import type { Vcpu } from "../../src/machine/vcpu.ts";
import { FLAG } from "../../src/x86/register.ts";
import { beginWorkload, WORKLOADS } from "../lab/workloads.ts";

let lab: Lab;
let vcpu: Vcpu;
let first: Task;
let idle: Task;
const at = (name: string): Addr => lab.symbol(name).address;
const cpu = () => lab.kernel.cpus[0]!;

beforeEach(async () => {
  lab?.dispose();
  lab = await Lab.open({ recordCalls: true });
  vcpu = lab.machine.vcpus[0]!;
  first = lab.kernel.tasks[0]!;
  idle = cpu().idle;
});

/** Runs to where the CPU waits in `task`. */
function runToHalt(task: Task): void {
  expect(lab.kernel.run(vcpu, { budget: 10_000 })).toMatchObject({ kind: "halt" });
  expect(lab.kernel.current(vcpu)).toBe(task);
}

function wake(task: Task): void {
  lab.kernel.setNext(vcpu, task);
  vcpu.interrupt(VECTORS.TIMER_VECTOR);
}

describe("a task that sleeps", () => {
  test("leaves the CPU to the next, and comes back with all that it had", () => {
    lab.begin(at("nap_between"), [5n]);
    lab.kernel.setNext(vcpu, idle);
    runToHalt(idle);
    expect(vcpu.rsp).toBeGreaterThan(idle.stack.low);
    expect(vcpu.rsp).toBeLessThan(idle.stack.high);
    const start = lab.kernel.startOf(first)!;
    expect(lab.code.describe(start.ip)).toMatch(/^__schedule\+/);
    wake(first);
    expect(lab.finish(vcpu)).toBe(6n);
    expect([vcpu.rsp, lab.kernel.current(vcpu)]).toEqual([first.stack.high, first]);
  });

  test("keeps its callee-saved registers where struct inactive_task_frame says", () => {
    lab.begin(at("nap"), []);
    lab.kernel.setNext(vcpu, idle);
    const values = { rbx: 0x11n, r12: 0x22n, r13: 0x33n, r14: 0x44n, r15: 0x55n } as const;
    for (const [name, value] of Object.entries(values)) vcpu.set(name as keyof typeof values, value);
    expect(lab.kernel.run(vcpu, { until: at("switch_to"), budget: 200 }).kind).toBe("reached");
    const rbp = vcpu.getNumber("rbp");
    const slot = vcpu.rsp;
    const own = Object.keys(values).map((name) => vcpu.get(name as keyof typeof values));
    runToHalt(idle);
    const frame = new StructView(
      lab.machine.memory,
      INACTIVE_TASK_FRAME,
      first.struct.getNumber("sp") as Addr,
    );
    expect([frame.get("bx"), frame.get("r12"), frame.get("r13"), frame.get("r14"), frame.get("r15")]).toEqual(
      own,
    );
    expect(frame.getNumber("bp")).toBe(rbp);
    expect(lab.kernel.startOf(first)).toEqual({
      from: "switched-out",
      ip: frame.getNumber("ret_addr"),
      slot,
      bp: rbp,
    });
    wake(first);
    lab.finish(vcpu);
    for (const [name, value] of Object.entries(values))
      expect(vcpu.get(name as keyof typeof values)).toBe(value);
  });

  test("goes on at once if nobody else is to run, with interrupts as they were", () => {
    lab.begin(at("nap_between"), [5n]);
    expect(lab.finish(vcpu)).toBe(6n);
    lab.begin(at("schedule"), []);
    vcpu.rflags &= ~FLAG.IF;
    lab.finish(vcpu);
    expect(vcpu.rflags & FLAG.IF).toBe(0n);
  });
});

describe("a task that was never run", () => {
  test("has nothing on its stack but where it begins", () => {
    const start = lab.kernel.startOf(idle);
    expect(start).toEqual({ from: "unstarted", ip: at("ret_from_kthread"), sp: idle.stack.high });
    expect(lab.kernel.startOf(first)).toBeUndefined();
    expect(lab.machine.trueChain(idle.stack.high)).toEqual([]);
  });

  test("begins at its function, with its argument, interrupts on; and is nobody's callee", () => {
    const task = lab.kernel.createTask({ function: at("leaf"), argument: 41n });
    lab.begin(at("nap"), []);
    lab.kernel.setNext(vcpu, task);
    expect(lab.kernel.run(vcpu, { until: at("leaf"), budget: 400 }).kind).toBe("reached");
    expect([vcpu.get("rdi"), vcpu.rflags & FLAG.IF]).toEqual([41n, FLAG.IF]);
    expect(lab.kernel.current(vcpu)).toBe(task);
    const chain = lab.machine.trueChain(vcpu.rsp);
    expect(chain.map((frame) => frame.kind === "call" && lab.code.describe(frame.returnAddress))).toEqual([
      expect.stringMatching(/^ret_from_kthread\+/),
    ]);
    // When its function returns, it tells the laboratory.
    expect(vcpu.run({ budget: 100 })).toMatchObject({ kind: "hypercall" });
    expect(vcpu.get("rax")).toBe(42n);
  });
});

test("two tasks take turns, each on its own stack, and both end right", () => {
  const { kernel } = lab;
  const second = kernel.createTask({ function: at("nap_between"), argument: 7n });
  lab.begin(at("nap_between"), [5n]);
  for (const [task, next] of [
    [first, second],
    [second, first],
  ] as const) {
    expect(kernel.run(vcpu, { until: at("nap"), budget: 1000 }).kind).toBe("reached");
    expect(kernel.current(vcpu)).toBe(task);
    kernel.setNext(vcpu, next);
  }
  // The second sleeps while the first runs to its end.
  expect(lab.finish(vcpu)).toBe(6n);
  const start = kernel.startOf(second)!;
  const slot = start.from === "switched-out" ? start.slot : expect.fail(start.from);
  const chain = lab.machine.trueChain(slot);
  expect(chain.map((frame) => frame.kind === "call" && place(frame.returnAddress))).toEqual([
    "__schedule",
    "schedule",
    "nap",
    "nap_between",
    "ret_from_kthread",
  ]);
  // A call in the first that goes to sleep lets it come to its end.
  lab.begin(at("nap"), []);
  kernel.setNext(vcpu, second);
  expect(kernel.run(vcpu, { budget: 1000 })).toMatchObject({ kind: "hypercall" });
  expect([kernel.current(vcpu), vcpu.get("rax")]).toEqual([second, 8n]);
});

const place = (ip: Addr) => lab.code.describe(ip).split("+")[0]!;

describe("a timer interrupt", () => {
  test("is handled on the CPU's interrupt stack, whose topmost word leads back to the registers", () => {
    lab.begin(at("loop"), [3n]);
    vcpu.run({ until: at("leaf"), budget: 100 });
    const before = { rip: vcpu.rip, rsp: vcpu.rsp };
    vcpu.interrupt(VECTORS.TIMER_VECTOR);
    expect(vcpu.run({ until: at("timer_tick"), budget: 200 }).kind).toBe("reached");
    const { low, high } = cpu().irqStack;
    expect(vcpu.rsp > low && vcpu.rsp < high).toBe(true);
    const regs = lab.machine.memory.readNumber(offset(high, -8)) as Addr;
    expect(vcpu.get("rdi")).toBe(toWord(regs));
    const saved = new StructView(lab.machine.memory, PT_REGS, regs);
    expect([saved.getNumber("ip"), saved.getNumber("sp")]).toEqual([before.rip, before.rsp]);
    expect(
      lab.machine
        .trueChain(vcpu.rsp)
        .map((frame) => (frame.kind === "call" ? place(frame.returnAddress) : `in ${place(frame.ip)}`)),
    ).toEqual(["interrupt_handler", "interrupt_common", "in leaf", "loop", "lab_call"]);
    expect(lab.finish(vcpu)).toBe(9n);
    expect(cpu().struct.get("ticks")).toBe(1n);
  });

  test.for([
    {
      name: "if it may be preempted and somebody is to run",
      interrupts: true,
      count: 0,
      next: true,
      switched: true,
    },
    { name: "not while interrupts are off", interrupts: false, count: 0, next: true, switched: false },
    { name: "not while preemption is off", interrupts: true, count: 1, next: true, switched: false },
    { name: "not if nobody is to run", interrupts: true, count: 0, next: false, switched: false },
  ])("switches what it interrupted: $name", ({ interrupts, count, next, switched }) => {
    lab.begin(at("loop"), [3n]);
    vcpu.run({ until: at("leaf"), budget: 100 });
    if (!interrupts) vcpu.rflags &= ~FLAG.IF;
    cpu().struct.set("preempt_count", count);
    if (next) lab.kernel.setNext(vcpu, idle);
    vcpu.interrupt(VECTORS.TIMER_VECTOR);
    if (switched) {
      runToHalt(idle);
      wake(first);
    }
    expect(lab.finish(vcpu)).toBe(9n);
    expect(lab.kernel.current(vcpu)).toBe(first);
    expect(cpu().struct.get("ticks")).toBe(interrupts ? (switched ? 2n : 1n) : 0n);
    const pending = first.struct.getNumber("thread_flags") & THREAD_FLAG.TIF_NEED_RESCHED;
    expect(pending !== 0).toBe(next && interrupts && !switched);
    expect(vcpu.rflags & FLAG.IF).toBe(interrupts ? FLAG.IF : 0n);
  });

  test("that could not switch leaves it to the next that can", () => {
    lab.begin(at("loop"), [3n]);
    vcpu.run({ until: at("leaf"), budget: 100 });
    cpu().struct.set("preempt_count", 1);
    lab.kernel.setNext(vcpu, idle);
    vcpu.interrupt(VECTORS.TIMER_VECTOR);
    vcpu.run({ until: at("leaf"), budget: 400 });
    cpu().struct.set("preempt_count", 0);
    vcpu.interrupt(VECTORS.TIMER_VECTOR);
    runToHalt(idle);
    wake(first);
    expect(lab.finish(vcpu)).toBe(9n);
  });
});

describe("an NMI", () => {
  test("is handled on its own stack, interrupts on or off, and never switches", () => {
    for (const interrupts of [true, false]) {
      lab.begin(at("loop"), [3n]);
      vcpu.run({ until: at("leaf"), budget: 100 });
      if (!interrupts) vcpu.rflags &= ~FLAG.IF;
      lab.kernel.setNext(vcpu, idle);
      first.struct.set("thread_flags", THREAD_FLAG.TIF_NEED_RESCHED);
      vcpu.nmi();
      expect(vcpu.run({ until: at("nmi_handler"), budget: 200 }).kind).toBe("reached");
      const { low, high } = cpu().exceptionStacks[1]!;
      expect(vcpu.rsp > low && vcpu.rsp < high).toBe(true);
      expect(lab.finish(vcpu)).toBe(9n);
      expect(lab.kernel.current(vcpu)).toBe(first);
    }
    expect(cpu().struct.get("nmis")).toBe(2n);
  });

  test("inside an interrupt, on its stack, comes back to it", () => {
    lab.begin(at("loop"), [3n]);
    vcpu.interrupt(VECTORS.TIMER_VECTOR);
    vcpu.run({ until: at("timer_tick"), budget: 200 });
    vcpu.nmi();
    vcpu.run({ until: at("nmi_handler"), budget: 200 });
    const kinds = lab.machine.trueChain(vcpu.rsp).map(({ kind }) => kind);
    expect(kinds).toEqual(["call", "interrupt", "call", "call", "interrupt"]);
    expect(lab.finish(vcpu)).toBe(9n);
    expect([cpu().struct.get("ticks"), cpu().struct.get("nmis")]).toEqual([1n, 1n]);
  });
});

test.each(["timer", "NMI"])(
  "at every boundary: after a %s interrupt every register is what it was",
  (kind) => {
    const { machine } = lab;
    // What sleeps and what is interrupted at its very start, too: a call of every kind.
    const calls = WORKLOADS.filter(({ name }) => ["loop", "zero_read", "tail"].includes(name));
    let boundaries = 0;
    for (const workload of calls) {
      beginWorkload(lab, workload);
      for (;;) {
        const state = () => ({ ...vcpu.registers(), rip: vcpu.rip, rflags: vcpu.rflags });
        const [before, snapshot] = [state(), machine.snapshot()];
        const chain = machine.trueChain(vcpu.rsp);
        const seen = cpu().struct.get(kind === "timer" ? "ticks" : "nmis");
        if (kind === "timer") vcpu.interrupt(VECTORS.TIMER_VECTOR);
        else vcpu.nmi();
        vcpu.step();
        expect(vcpu.rip).toBe(at(kind === "timer" ? "asm_sysvec_apic_timer_interrupt" : "asm_exc_nmi"));
        expect(vcpu.run({ until: before.rip, budget: 200 }).kind).toBe("reached");
        expect(state()).toEqual(before);
        expect(machine.trueChain(vcpu.rsp)).toEqual(chain);
        expect(cpu().struct.get(kind === "timer" ? "ticks" : "nmis")).toBe(seen + 1n);
        machine.restore(snapshot);
        snapshot.dispose();
        boundaries++;
        const exit = vcpu.step();
        if (exit === undefined) continue;
        expect([lab.kernel.returned(exit), vcpu.get("rax")]).toEqual([true, workload.result]);
        break;
      }
    }
    expect(boundaries).toBeGreaterThan(80);
  },
);
