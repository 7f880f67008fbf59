// What comes between two instructions of a call: interrupts, NMIs, other tasks, and interrupts that call the traced function.

import type { Addr } from "../../base/addr.ts";
import { VECTORS } from "../../kernel/layout.ts";
import type { Clause } from "./contract.ts";
import { INTERRUPTION_LIMIT, type Passage, strayed, type Trouble } from "./passage.ts";
import { Walks } from "./walks.ts";
import { Watch } from "./watch.ts";

/** Instructions from one to the next of which a switched-out task gets its CPU back. */
const SWITCH_LIMIT = 10_000;

/** What was done at boundaries, in numbers. */
export interface Done {
  interrupts: number;
  preemptions: number;
  walks: number;
  calls: number;
}

export class Interruptions {
  readonly done: Done = { interrupts: 0, preemptions: 0, walks: 0, calls: 0 };
  private readonly passage: Passage;

  constructor(passage: Passage) {
    this.passage = passage;
  }

  /** A timer interrupt, an NMI, and a switch to the idle task and back: each is followed, then the call to its end. */
  interrupted(): Trouble | undefined {
    const { bench } = this.passage;
    const { machine, vcpu, subject } = bench;
    const here = machine.snapshot();
    try {
      for (const { request, entry } of subject.interrupts(vcpu)) {
        const at = { rip: vcpu.rip, rsp: vcpu.rsp };
        request();
        vcpu.step();
        if (vcpu.rip === entry) {
          this.done.interrupts++;
          const trouble = this.follow(at, () => this.walk()) ?? this.passage.finish();
          const what = entry === bench.timerEntry ? "a timer interrupt" : "an NMI";
          if (trouble !== undefined) return because(`${what} came before this instruction`, trouble);
        }
        machine.restore(here);
      }
      const trouble = this.preempted();
      return trouble && because("the task was preempted before this instruction", trouble);
    } finally {
      machine.restore(here);
      here.dispose();
    }
  }

  /** A device interrupt whose handler calls the traced function. */
  reentered(known: ReadonlySet<Clause>): Trouble | undefined {
    const { passage } = this;
    const { bench } = passage;
    const { vcpu, machine } = bench;
    const at = { rip: vcpu.rip, rsp: vcpu.rsp };
    machine.memory.writeWord(bench.deviceHandler, BigInt(bench.inside));
    vcpu.interrupt(VECTORS.DEVICE_VECTOR);
    vcpu.step();
    if (vcpu.rip !== bench.deviceEntry) return undefined; // interrupts are off here
    const watch = new Watch(bench, passage.trampoline, known);
    const trouble = this.follow(at, () => watch.look());
    this.done.calls += watch.ended;
    const left = trouble ?? passage.finish();
    return left && because("an interrupt came before this instruction, and called the traced function", left);
  }

  /** To where the interrupt returns to. */
  private follow(to: { rip: Addr; rsp: Addr }, look: () => Trouble | undefined): Trouble | undefined {
    const { bench } = this.passage;
    const { vcpu, kernel } = bench;
    for (let steps = 0; steps < INTERRUPTION_LIMIT; steps++) {
      if (vcpu.rip === to.rip && vcpu.rsp === to.rsp) return undefined;
      const trouble = look();
      if (trouble !== undefined) return trouble;
      const exit = vcpu.step();
      const left = exit === undefined ? "answered" : kernel.answer(vcpu, exit);
      if (left !== "answered") return strayed(bench, left);
    }
    return { why: "the interrupt does not return", differences: [] };
  }

  private preempted(): Trouble | undefined {
    const { passage } = this;
    const { bench } = passage;
    const { vcpu, kernel, subject } = bench;
    const at = { rip: vcpu.rip, rsp: vcpu.rsp };
    const task = subject.preempt(vcpu);
    if (task === undefined) return undefined;
    this.done.preemptions++;
    this.done.walks++;
    const trouble = new Walks(bench).switchedOut(task);
    if (trouble !== undefined) return trouble;
    subject.switchTo(vcpu, task);
    const end = vcpu.instructions + SWITCH_LIMIT;
    while (vcpu.rip !== at.rip || vcpu.rsp !== at.rsp) {
      const exit = kernel.run(vcpu, { until: at.rip, budget: end - vcpu.instructions });
      if (exit.kind !== "reached" && exit.kind !== "halt") return strayed(bench, exit);
    }
    return passage.finish();
  }

  private walk(): Trouble | undefined {
    this.done.walks++;
    return new Walks(this.passage.bench).liveOrDoubtful();
  }
}

function because(what: string, trouble: Trouble): Trouble {
  return { ...trouble, why: `${what}: ${trouble.why}` };
}
