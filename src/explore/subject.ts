// The system that an audit runs on: a kernel's CPUs, their interrupts, its tasks, and what walkers may ask.

import type { Addr } from "../base/addr.ts";
import { bug, refuse } from "../base/refuse.ts";
import type { Ftrace } from "../ftrace/ftrace.ts";
import type { Panic } from "../kernel/hypercall.ts";
import type { Kernel, Task } from "../kernel/kernel.ts";
import { VECTORS } from "../kernel/layout.ts";
import type { UnwindingParts } from "../kernel/unwindContext.ts";
import { fetch } from "../machine/code.ts";
import { describeExit, type Exit } from "../machine/exit.ts";
import type { Machine } from "../machine/machine.ts";
import type { Vcpu } from "../machine/vcpu.ts";
import type { UnwindContext } from "../unwind/walk.ts";
import { FLAG } from "../x86/register.ts";
import type { Sites } from "./truth.ts";

export interface SubjectParts {
  readonly machine: Machine;
  readonly kernel: Kernel;
  readonly ftrace: Ftrace;
  readonly unwinding: UnwindingParts;
}

/** Exceptions that would come again; others, and what `int n` raises, resume behind the instruction. */
const RESTARTED: readonly string[] = ["#DE", "#UD", "#SS", "#GP", "#PF"];

export interface Interrupt {
  readonly request: () => void;
  readonly entry: Addr;
}

/** Instructions from an interrupt to where the CPU waits. */
const SWITCH_LIMIT = 10_000;
/** Less than from one switch to the next. */
const SWITCH_STEP = 50;

export class Subject implements Sites {
  readonly machine: Machine;
  readonly kernel: Kernel;
  private readonly parts: SubjectParts;
  private readonly nmiHandler: Addr;
  private readonly nmiEntry: Addr;
  private readonly timerEntry: Addr;
  private readonly timerLock: Addr;
  /** By CPU, and the task that is current there, as its structure's address. */
  private readonly contexts: readonly Map<number, UnwindContext>[];

  constructor(parts: SubjectParts) {
    this.parts = parts;
    this.machine = parts.machine;
    this.kernel = parts.kernel;
    this.timerLock = this.symbol("timer_lock");
    this.contexts = this.kernel.cpus.map(() => new Map<number, UnwindContext>());
    this.nmiHandler = this.symbol("nmi_handler");
    this.nmiEntry = this.symbol("asm_exc_nmi");
    this.timerEntry = this.symbol("asm_sysvec_apic_timer_interrupt");
  }

  isSite(at: Addr): boolean {
    return this.parts.ftrace.at(at)?.target.kind === "call";
  }

  read(at: Addr): Addr | undefined {
    return this.machine.memory.readNumber(at) as Addr | undefined;
  }

  /** What an address is told as: in a copy of a template, which comes and goes, the place in the template. */
  origin(at: Addr): Addr {
    const made = this.parts.unwinding.code.rangeAt(at);
    const template = made?.range.template;
    return template === undefined ? at : ((template + made!.offset) as Addr);
  }

  /** For walks of what runs on `vcpu`. */
  contextOfCpu(vcpu: Vcpu): UnwindContext {
    const contexts = this.contexts[vcpu.index]!;
    const current = this.kernel.cpus[vcpu.index]!.struct.getNumber("current");
    let context = contexts.get(current);
    if (context === undefined) {
      context = this.kernel.unwindContextOf(vcpu, this.parts.unwinding);
      contexts.set(current, context);
    }
    return context;
  }

  contextOfTask(task: Task): UnwindContext {
    return this.kernel.unwindContext(task, this.parts.unwinding);
  }

  /** Whether the assembly declares that nothing is known of the stack at `at`. */
  isDeclaredUndefined(at: Addr): boolean {
    return this.parts.unwinding.orc.find(at)?.type === "UNDEFINED";
  }

  /** Interrupts what is between two instructions on `vcpu`, which switches to another; undefined if it may not be preempted. */
  preempt(vcpu: Vcpu): Task | undefined {
    const { kernel } = this;
    const task = kernel.current(vcpu);
    const { idle, struct } = kernel.cpus[vcpu.index]!;
    if (task === undefined || task === idle || (vcpu.rflags & FLAG.IF) === 0n) return undefined;
    if (struct.getNumber("preempt_count") !== 0 || this.isHeldUp(vcpu)) return undefined;
    kernel.setNext(vcpu, idle);
    vcpu.interrupt(VECTORS.TIMER_VECTOR);
    for (let run = 0; run < SWITCH_LIMIT; run += SWITCH_STEP) {
      const exit = kernel.run(vcpu, { budget: SWITCH_STEP });
      if (!task.onCpu) return task;
      if (exit.kind !== "budget") return this.astray("the switch to idle", exit);
    }
    return this.astray("the switch to idle", { kind: "budget", ip: vcpu.rip });
  }

  /** Whether another CPU, which stands still meanwhile, holds what an interrupt or a switch has to wait for. */
  private isHeldUp({ index }: Vcpu): boolean {
    const { kernel, machine } = this;
    if (machine.vcpus.length === 1) return false;
    return (
      machine.memory.readInt(this.timerLock) !== 0 ||
      kernel.cpus.some(({ struct }, n) => n !== index && struct.getNumber("rq_lock") !== 0) ||
      kernel.tasks.some(({ struct }) => struct.getNumber("lock") !== 0)
    );
  }

  /** Into the handler of an NMI; false if one is being handled already. */
  enterNmi(vcpu: Vcpu): boolean {
    if (vcpu.system.getWord("nmiBlocked") !== 0n) return false;
    vcpu.nmi();
    const exit = vcpu.run({ until: this.nmiHandler, budget: SWITCH_LIMIT });
    return exit.kind === "reached" ? true : this.astray("an NMI", exit);
  }

  /** Ways to interrupt what is between two instructions on `vcpu`, and the entry code that each leads to. */
  interrupts(vcpu: Vcpu): Interrupt[] {
    const ways: Interrupt[] = [];
    if ((vcpu.rflags & FLAG.IF) !== 0n)
      ways.push({ request: () => vcpu.interrupt(VECTORS.TIMER_VECTOR), entry: this.timerEntry });
    if (vcpu.system.getWord("nmiBlocked") === 0n)
      ways.push({ request: () => vcpu.nmi(), entry: this.nmiEntry });
    return ways;
  }

  /** Goes on behind an instruction that raised an exception, as a fixup would; false if `exit` is no exception's. */
  skipException(vcpu: Vcpu, exit: Exit): boolean {
    const taken = this.kernel.exception(vcpu, exit);
    if (taken === undefined) return false;
    if (!RESTARTED.includes(taken.fault.vector)) return true;
    const fetched = fetch(this.machine.memory, taken.ip);
    if (fetched.kind !== "instruction") return this.astray("an exception", exit);
    taken.regs.set("ip", fetched.instruction.next);
    return true;
  }

  /** Tasks that have begun and are on no CPU. */
  switchedOut(): Task[] {
    const { kernel } = this;
    return kernel.tasks.filter(
      (task) => task !== kernel.current(this.machine.vcpus[0]!) && kernel.startOf(task) !== undefined,
    );
  }

  /** Ends the wait of `vcpu`, which goes on with `task`. */
  switchTo(vcpu: Vcpu, task: Task): void {
    this.kernel.setNext(vcpu, task);
    vcpu.interrupt(VECTORS.TIMER_VECTOR);
  }

  /** Makes the next schedule() go idle. */
  idleNext(vcpu: Vcpu): void {
    this.kernel.setNext(vcpu, this.kernel.cpus[vcpu.index]!.idle);
  }

  /** A workload that went where none should. */
  astray(what: string, exit: Exit | Panic): never {
    if (exit.kind === "panic") return refuse("audit-astray", { what, where: exit.text });
    const where = describeExit(exit, (ip) => this.parts.unwinding.code.describe(ip));
    return refuse("audit-astray", { what, where });
  }

  private symbol(name: string): Addr {
    return this.parts.unwinding.code.find(name) ?? bug(`no ${name}`);
  }
}
