// The audit: an unwinder against the recorded truth, at every instruction boundary that a workload passes.
//
// At rest, the walk starts from the live registers. Preempted, a real interrupt is delivered at the boundary, the
// task is switched out and walked by its saved stack pointer, and everything is put back; where interrupts or
// preemption are off an NMI is delivered instead, and the walk starts inside its handler. Tasks that have switched
// themselves out are walked when the CPU goes idle. A walk that claims to be reliable and is not right is a violation.

import type { Addr } from "../base/addr.ts";
import { bug } from "../base/refuse.ts";
import type { Execute } from "../kernel/conductor.ts";
import type { Task } from "../kernel/kernel.ts";
import { liveStart } from "../kernel/unwindContext.ts";
import type { TrueFrame } from "../machine/callChain.ts";
import type { Exit } from "../machine/exit.ts";
import type { Vcpu } from "../machine/vcpu.ts";
import type { Start, UnwindContext, Unwinder } from "../unwind/walk.ts";
import { Findings, type Mode } from "./findings.ts";
import type { Subject } from "./subject.ts";
import { isRight, reached, settled, whereTo } from "./truth.ts";

/** By what a place is told where it was met. */
interface Named {
  readonly name: string;
}

export interface Workload extends Named {
  /** Puts the vCPU at the start of what is to be done. */
  begin(): Vcpu;
  /** Of the instructions that it passes, whether interrupts are delivered at them and followed to their end. */
  readonly interrupted: boolean;
  /** Instructions after which it has gone astray; ten million if not given. */
  readonly limit?: number;
}

export interface AuditOptions {
  /** Walk from live registers at every boundary. */
  readonly atRest: boolean;
  /** Interrupt at every boundary. */
  readonly preempted: boolean;
  readonly onProgress?: (boundaries: number, workload: string) => void;
}

const LIMIT = 10_000_000;
/** An interrupt is over within so many. */
const INTERRUPT_LIMIT = 100_000;
const PROGRESS_EVERY = 20_000;

export class Audit {
  readonly findings = new Findings();
  private readonly subject: Subject;
  private readonly unwinder: Unwinder;
  private readonly options: AuditOptions;

  constructor(subject: Subject, unwinder: Unwinder, options: AuditOptions) {
    this.subject = subject;
    this.unwinder = unwinder;
    this.options = options;
  }

  /** Audits every boundary from where `workload` begins to where it ends. */
  run(workload: Workload): void {
    const { subject, options, findings } = this;
    const vcpu = workload.begin();
    for (let steps = 0; steps < (workload.limit ?? LIMIT); steps++) {
      if (findings.boundaries % PROGRESS_EVERY === 0)
        options.onProgress?.(findings.boundaries, workload.name);
      this.visit(vcpu, workload);
      if (workload.interrupted) this.interrupt(vcpu, workload);
      const exit = vcpu.step();
      if (exit !== undefined && this.settle(vcpu, exit, workload) === "ended") return;
    }
    subject.astray(workload.name, { kind: "budget", ip: vcpu.rip });
  }

  /** Executes a conductor's slices instead of the engine, and audits every boundary in them. `name` says which run it is. */
  executor(name: string): Execute {
    const { subject, findings, options } = this;
    const workload = { name };
    return (vcpu, budget) => {
      for (let steps = 0; steps < budget; steps++) {
        if (findings.boundaries % PROGRESS_EVERY === 0) options.onProgress?.(findings.boundaries, name);
        this.visit(vcpu, workload);
        const exit = vcpu.step();
        const left = exit === undefined ? "answered" : subject.kernel.answer(vcpu, exit);
        if (left !== "answered") return left;
      }
      return { kind: "budget", ip: vcpu.rip };
    };
  }

  /** Everything that there is to check at one boundary. In user mode nothing of the kernel is on any stack, before it is left. */
  private visit(vcpu: Vcpu, workload: Named): void {
    const { user } = vcpu.system;
    if (!user) this.findings.visit(this.subject.origin(vcpu.rip));
    if (this.options.atRest && !user) this.checkLive("atRest", vcpu, vcpu.rip, workload);
    if (this.options.preempted) this.preempt(vcpu, workload);
  }

  /** What an exit means for the workload: its end, or something to see to. */
  private settle(vcpu: Vcpu, exit: Exit, workload: Workload): "ended" | "going on" {
    const { subject } = this;
    if (subject.kernel.returned(exit)) return "ended";
    const left = subject.kernel.answer(vcpu, exit);
    if (left === "answered") return "going on";
    if (left.kind === "panic") return subject.astray(workload.name, left);
    if (subject.skipException(vcpu, exit)) return "going on";
    if (exit.kind !== "halt") return subject.astray(workload.name, exit);
    // Idle: whoever has switched itself out is on its stack alone. The first of them is woken.
    const sleepers = subject.switchedOut();
    for (const task of sleepers) this.checkSwitchedOut("sleeping", task, workload);
    const [first] = sleepers;
    if (first === undefined) return subject.astray(workload.name, exit);
    subject.switchTo(vcpu, first);
    return "going on";
  }

  /** Follows an interrupt at this boundary through its whole entry and exit code, and an NMI, and comes back. */
  private interrupt(vcpu: Vcpu, workload: Workload): void {
    const { subject } = this;
    const { machine } = subject;
    for (const { request, entry } of subject.interrupts(vcpu)) {
      const before = machine.snapshot();
      const { rip, rsp } = vcpu;
      request();
      vcpu.step();
      // Behind sti it comes one instruction later, where it is going to be requested anyway.
      if (vcpu.rip === entry) this.follow(vcpu, workload, rip, rsp);
      machine.restore(before);
      before.dispose();
    }
  }

  /** From an interrupt's entry to where it returns to. */
  private follow(vcpu: Vcpu, workload: Workload, rip: Addr, rsp: Addr): void {
    for (let steps = 0; steps < INTERRUPT_LIMIT; steps++) {
      if (vcpu.rip === rip && vcpu.rsp === rsp) return;
      this.visit(vcpu, workload);
      const exit = vcpu.step();
      // An idle CPU that is interrupted to run the task sees the call through.
      if (exit !== undefined && this.settle(vcpu, exit, workload) === "ended") return;
    }
    this.subject.astray(`an interrupt of ${workload.name}`, { kind: "budget", ip: vcpu.rip });
  }

  private preempt(vcpu: Vcpu, workload: Named): void {
    const { subject } = this;
    const { machine } = subject;
    const at = vcpu.rip;
    const before = machine.snapshot();
    const task = subject.preempt(vcpu);
    if (task !== undefined) this.checkSwitchedOut("preempted", task, workload, at);
    else if (subject.enterNmi(vcpu)) this.checkLive("nmi", vcpu, at, workload);
    machine.restore(before);
    before.dispose();
  }

  private checkLive(mode: Mode, vcpu: Vcpu, at: Addr, workload: Named): void {
    this.check(mode, this.subject.contextOfCpu(vcpu), liveStart(vcpu), vcpu.rsp, at, workload);
  }

  private checkSwitchedOut(mode: Mode, task: Task, workload: Named, at?: Addr): void {
    const start =
      this.subject.kernel.startOf(task) ?? bug("a task that was switched out has nothing on its stack");
    const sp = start.from === "unstarted" ? start.sp : start.slot;
    this.check(mode, this.subject.contextOfTask(task), start, sp, at ?? start.ip, workload);
  }

  /** Walks from `start`, on a stack whose pointer is `sp`; what comes of it is noted for `at`. */
  private check(mode: Mode, context: UnwindContext, start: Start, sp: Addr, at: Addr, workload: Named): void {
    const { subject, findings } = this;
    const walk = this.unwinder.walk(context, start);
    const truth = subject.machine.trueChain(sp);
    const right = isRight(walk, truth, sp, subject);
    const declared = subject.isDeclaredUndefined(at);
    const goingOn = (frame: TrueFrame, n: number) => {
      const to = whereTo(settled(frame, reached(truth[n - 1]) ?? sp), subject);
      return to === undefined ? undefined : subject.origin(to);
    };
    const example = () => ({
      workload: workload.name,
      walk: {
        ...walk,
        frames: walk.frames.map((frame) => ({ ...frame, address: subject.origin(frame.address) })),
        doubt: walk.doubt === null ? null : { ...walk.doubt, at: subject.origin(walk.doubt.at) },
      },
      truth: truth.map(goingOn),
    });
    findings.add(mode, subject.origin(at), { reliable: walk.doubt === null, right, declared }, example);
  }
}
