// This engine and a reference, instruction by instruction over the same state: where they part first.
//
// This engine goes ahead for some instructions, which the reference then follows; what follows is held against every
// register and defined flag, and against what each instruction writes; all memory is compared at the end of such a
// stretch. Whatever differs in it, both are taken back to its start and go through it again one by one, all memory
// compared each time: so what is reported is the first difference, and the machine stands right behind it.
//
// An instruction that a reference cannot be asked about is executed here alone, counted by its name, and what it did
// becomes the reference's state. What only one of the two faults at is a difference; where both do, the guest's
// handler gets it if there is one.

import type { Addr } from "../base/addr.ts";
import { describeFault, type Exit } from "../machine/exit.ts";
import type { Machine } from "../machine/machine.ts";
import type { Snapshot } from "../machine/snapshot.ts";
import type { Vcpu } from "../machine/vcpu.ts";
import { Mnemonic } from "../x86/decode.ts";
import { type ByteDifference, MemoryImage } from "./memoryImage.ts";
import { Plans, undefinedResult } from "./plan.ts";
import type { Deviation, Reference, Verdict } from "./reference.ts";
import { type State, Stretch } from "./stretch.ts";

export interface LockstepOptions {
  /** Stop before the instruction there. If rip is there already, it runs until it comes back. */
  readonly until?: Addr;
  /** Stop after so many instructions; each iteration of a repeated string instruction counts. */
  readonly limit: number;
  /** Told now and then how many were executed. */
  readonly onProgress?: (steps: number) => void;
}

export interface LockstepResult {
  /** Instructions executed before the end, or before the first difference. */
  readonly steps: number;
  /** Those of them that the reference executed as well, with the same outcome. */
  readonly agreed: number;
  /** Those that were executed here alone, by name. */
  readonly notJudged: ReadonlyMap<string, number>;
  /** Those that the reference is known to get wrong, and did, by reason. */
  readonly referenceFaults: ReadonlyMap<string, number>;
  readonly difference?: Difference;
  readonly ended: Ended;
}

export type Ended =
  | { readonly kind: "reached" | "limit" | "difference" }
  /** Nothing goes on; `judged` if the reference says so too. */
  | { readonly kind: "exit"; readonly exit: Exit; readonly judged: boolean }
  /** The reference broke down. */
  | { readonly kind: "lost"; readonly why: string };

export interface Difference {
  /** Instructions before it. */
  readonly step: number;
  readonly ip: Addr;
  readonly bytes: Uint8Array;
  readonly text: string;
  readonly before: State;
  readonly ours: State;
  readonly theirs: State;
  /** What differs: registers and flags by name, `stop` (how it faults), `memory`. */
  readonly fields: readonly string[];
  readonly memory: readonly ByteDifference[];
  /** How it stopped, if it did not retire. */
  readonly stops: { readonly ours: string | undefined; readonly theirs: string | undefined };
  /**
   * The step at whose start all was still alike. It is `step`, unless the engine did not do the same thing twice: then
   * what differs in memory may be of any instruction from there on.
   */
  readonly since: number;
}

/** How far this engine goes ahead. */
const AHEAD = 1024;
const INTERRUPT = "(interrupt or trap)";
const DELIVERY = "(delivery of an exception)";

/** Runs the vCPU and `reference` side by side from the vCPU's state, until they part or something ends it. */
export function lockstep(
  machine: Machine,
  vcpu: Vcpu,
  reference: Reference,
  options: LockstepOptions,
): Promise<LockstepResult> {
  return new Lockstep(machine, vcpu, reference, options).run();
}

/** Why a stretch ended before its length. */
type Break =
  | { readonly kind: "reached" }
  | { readonly kind: "fault"; readonly exit: Exit }
  /** The next instruction is executed here alone. */
  | { readonly kind: "aside"; readonly name: string };

class Lockstep {
  private readonly machine: Machine;
  private readonly vcpu: Vcpu;
  private readonly reference: Reference;
  private readonly options: LockstepOptions;
  private readonly plans: Plans;
  private readonly image: MemoryImage;
  private steps = 0;
  private agreed = 0;
  private readonly notJudged = new Map<string, number>();
  private readonly referenceFaults = new Map<string, number>();

  constructor(machine: Machine, vcpu: Vcpu, reference: Reference, options: LockstepOptions) {
    this.machine = machine;
    this.vcpu = vcpu;
    this.reference = reference;
    this.options = options;
    this.plans = new Plans(machine);
    this.image = new MemoryImage(machine);
  }

  async run(): Promise<LockstepResult> {
    const { limit, onProgress } = this.options;
    await this.load();
    while (this.steps < limit) {
      const start = this.machine.snapshot();
      const end = await this.advance(start);
      start.dispose();
      if (end !== undefined) return end;
      onProgress?.(this.steps);
    }
    return this.result({ kind: "limit" });
  }

  /** Both from `start`, which is now, as far as they go undisturbed, and what disturbs them. Undefined to go on. */
  private async advance(start: Snapshot): Promise<LockstepResult | undefined> {
    const stretch = this.newStretch(Math.min(AHEAD, this.options.limit - this.steps));
    const stopped = this.goAhead(stretch);
    if (stretch.count > 0) {
      const verdict = await this.reference.follow(stretch);
      const alike = verdict.agreed === stretch.count && this.memory().length === 0;
      const goOn = verdict.lost !== undefined || alike;
      const end = goOn ? this.accept(stretch, verdict) : await this.singly(start, stretch, verdict);
      if (end !== undefined) return end;
    }
    switch (stopped?.kind) {
      case undefined:
        return undefined;
      case "reached":
        return this.result({ kind: "reached" });
      case "fault":
        return this.hasTable
          ? this.alone(DELIVERY)
          : this.result({ kind: "exit", exit: stopped.exit, judged: true });
      case "aside":
        return this.alone(stopped.name);
    }
  }

  /** Executes here, up to what the reference is not to follow. */
  private goAhead(stretch: Stretch): Break | undefined {
    const { vcpu, reference, options, plans } = this;
    const table = vcpu.system.getWord("idtLimit");
    // Without a table a fault is a value, to be compared before the guest's handler gets it.
    vcpu.system.setWord("idtLimit", 0n);
    try {
      while (stretch.count < stretch.limit) {
        if (vcpu.rip === options.until && this.steps + stretch.count > 0) return { kind: "reached" };
        if (vcpu.careful) return { kind: "aside", name: INTERRUPT };
        const plan = plans.at(vcpu.rip);
        const name =
          plan.aside ?? undefinedResult(plan, vcpu.getNumber("rcx")) ?? reference.leaves(plan, vcpu);
        if (name !== undefined) return { kind: "aside", name };
        // A trap, unlike a fault, cannot be had once more to be delivered.
        if (table !== 0n && plan.instruction?.mnemonic === Mnemonic.Int3)
          return { kind: "aside", name: "int3" };
        const exit = stretch.step(plan);
        if (exit !== undefined) return { kind: "fault", exit };
      }
      return undefined;
    } finally {
      vcpu.system.setWord("idtLimit", table);
    }
  }

  /** One instruction, or what comes instead of it, without the reference, which then goes on from here. */
  private async alone(name: string): Promise<LockstepResult | undefined> {
    const { instructions } = this.vcpu;
    const exit = this.vcpu.step();
    if (exit === undefined || this.vcpu.instructions > instructions) {
      this.steps++;
      count(this.notJudged, name);
    }
    if (exit !== undefined) return this.result({ kind: "exit", exit, judged: false });
    await this.load();
    return undefined;
  }

  /** Goes through a stretch again, one by one, to where the two part; undefined if they do not. */
  private async singly(
    start: Snapshot,
    stretch: Stretch,
    first: Verdict,
  ): Promise<LockstepResult | undefined> {
    // A reference that has stopped in between is behind: then only what that instruction wrote can be compared.
    const memory = first.deviation?.memory ?? this.memory();
    this.machine.restore(start);
    await this.load();
    const { steps, agreed } = this;
    let excused = false;
    for (let n = 0; n < stretch.count; n++) {
      const one = this.newStretch(1);
      this.goAhead(one);
      if (one.count === 0) break;
      const verdict = await this.reference.follow(one);
      const now = this.memory();
      const excuse = verdict.faults[0]?.reason ?? this.reference.excuse(one, 0);
      const isMemory = verdict.deviation === undefined && now.length > 0;
      if (verdict.deviation !== undefined || (isMemory && excuse === undefined))
        return this.part(one, 0, verdict.deviation, now);
      excused ||= isMemory;
      const passedOver =
        isMemory && verdict.faults.length === 0 ? [{ step: 0, reason: excuse! }] : verdict.faults;
      const end = this.accept(one, { ...verdict, faults: passedOver });
      if (end !== undefined) return end;
      if (isMemory) await this.load(); // what a known fault has done there is taken back
    }
    // What was seen the first time may have come of what is now excused.
    if (excused || (first.deviation === undefined && first.faults.length > 0)) return undefined;
    // It did not happen again: what was seen the first time has to do.
    const at = Math.min(first.agreed, stretch.count - 1);
    this.steps = steps + at;
    this.agreed = agreed + at;
    return this.part(stretch, at, first.deviation, memory, steps);
  }

  private part(
    stretch: Stretch,
    n: number,
    deviation: Deviation | undefined,
    memory: readonly ByteDifference[],
    since = this.steps,
  ): LockstepResult {
    const { ip, bytes, text } = stretch.plans[n]!;
    const ours = stretch.state(n + 1);
    const fields = new Set(deviation?.fields);
    if (memory.length > 0) fields.add("memory");
    const fault = stretch.faulted(n);
    const stops = {
      ours: fault === undefined ? undefined : describeFault(fault),
      theirs: deviation?.stop?.text,
    };
    const difference: Difference = {
      ...{ step: this.steps, ip, bytes, text, before: stretch.state(n), ours },
      ...{ theirs: deviation?.state ?? ours, fields: [...fields], memory, stops, since },
    };
    return { ...this.result({ kind: "difference" }), difference };
  }

  /** Counts what was followed; the end, if it ended there. */
  private accept(stretch: Stretch, { agreed, faults, lost }: Verdict): LockstepResult | undefined {
    const retired = agreed === stretch.count && stretch.fault !== undefined ? agreed - 1 : agreed;
    this.steps += retired;
    this.agreed += retired - faults.filter(({ step }) => step < retired).length;
    for (const { reason } of faults) count(this.referenceFaults, reason);
    return lost === undefined ? undefined : this.result({ kind: "lost", why: lost });
  }

  private result(ended: Ended): LockstepResult {
    const { steps, agreed, notJudged, referenceFaults } = this;
    return { steps, agreed, notJudged, referenceFaults, ended };
  }

  private get hasTable(): boolean {
    return this.vcpu.system.getWord("idtLimit") !== 0n;
  }

  private newStretch(limit: number): Stretch {
    return new Stretch(this.machine, this.vcpu, limit);
  }

  /** Where the two memories differ. */
  private memory(): ByteDifference[] {
    return this.image.differences(this.reference.memory());
  }

  private load(): Promise<void> {
    return this.reference.load(this.image, this.vcpu);
  }
}

function count(counts: Map<string, number>, name: string): void {
  counts.set(name, (counts.get(name) ?? 0) + 1);
}
