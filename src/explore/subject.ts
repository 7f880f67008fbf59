// The system that an audit runs on: one CPU of a kernel, its interrupts, its tasks, and what walkers may ask.

import type { Addr } from "../base/addr.ts";
import { bug, refuse } from "../base/refuse.ts";
import type { Ftrace } from "../ftrace/ftrace.ts";
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

export class Subject implements Sites {
  readonly machine: Machine;
  readonly kernel: Kernel;
  private readonly parts: SubjectParts;
  private readonly idle: Task;
  private readonly nmiHandler: Addr;
  private readonly nmiEntry: Addr;
  private readonly timerEntry: Addr;
  /** By the task that is current, as its structure's address. */
  private readonly contexts = new Map<number, UnwindContext>();
  private readonly current: Addr;

  constructor(parts: SubjectParts) {
    this.parts = parts;
    this.machine = parts.machine;
    this.kernel = parts.kernel;
    this.idle = this.kernel.createTask({ function: this.symbol("cpu_idle") });
    this.nmiHandler = this.symbol("nmi_handler");
    this.nmiEntry = this.symbol("asm_exc_nmi");
    this.timerEntry = this.symbol("asm_sysvec_apic_timer_interrupt");
    this.current = this.kernel.cpus[0]!.struct.at;
  }

  isSite(at: Addr): boolean {
    return this.parts.ftrace.at(at)?.ops !== undefined;
  }

  read(at: Addr): Addr | undefined {
    return this.machine.memory.readNumber(at) as Addr | undefined;
  }

  /** For walks of what runs on `vcpu`. */
  contextOfCpu(vcpu: Vcpu): UnwindContext {
    const current = this.read(this.current) ?? 0;
    let context = this.contexts.get(current);
    if (context === undefined) {
      context = this.kernel.unwindContextOf(vcpu, this.parts.unwinding);
      this.contexts.set(current, context);
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

  /** Interrupts what is between two instructions on `vcpu`, which then waits; undefined if it may not be preempted. */
  preempt(vcpu: Vcpu): Task | undefined {
    const { kernel } = this;
    const task = kernel.current(vcpu);
    if (task === undefined || task === this.idle || (vcpu.rflags & FLAG.IF) === 0n) return undefined;
    if (kernel.cpus[0]!.struct.getNumber("preempt_count") !== 0) return undefined;
    kernel.setNext(vcpu, this.idle);
    vcpu.interrupt(VECTORS.TIMER_VECTOR);
    const exit = vcpu.run({ budget: SWITCH_LIMIT });
    if (exit.kind !== "halt" || kernel.current(vcpu) !== this.idle)
      return this.astray("the switch to idle", exit);
    return task;
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
      (task) =>
        task !== kernel.current(this.machine.vcpus[0]!) &&
        task !== this.idle &&
        kernel.startOf(task) !== undefined,
    );
  }

  /** Ends the wait of `vcpu`, which goes on with `task`. */
  switchTo(vcpu: Vcpu, task: Task): void {
    this.kernel.setNext(vcpu, task);
    vcpu.interrupt(VECTORS.TIMER_VECTOR);
  }

  /** Makes the next schedule() go idle. */
  idleNext(vcpu: Vcpu): void {
    this.kernel.setNext(vcpu, this.idle);
  }

  /** A workload that went where none should. */
  astray(what: string, exit: Exit): never {
    const where = describeExit(exit, (ip) => this.parts.unwinding.code.describe(ip));
    return refuse("audit-astray", { what, where });
  }

  private symbol(name: string): Addr {
    return this.parts.unwinding.code.find(name) ?? bug(`no ${name}`);
  }
}
