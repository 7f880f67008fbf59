// Runs all vCPUs against each other: which executes next, how far, and what interrupts it, is chosen; all else follows.
//
// What the laboratory does on the kernel's behalf takes its turns with them, a step at a time (machine/agenda.ts).
// Guest time is the instructions that were executed, one a nanosecond, and what was skipped while every CPU was
// idle: the clock then goes on to the next timer. It is hardware's, so it stands still within a slice. A run ends
// in a value, whatever the guest does.

import type { Addr } from "../base/addr.ts";
import type { Chooser } from "../base/chooser.ts";
import { describeExit, type Exit } from "../machine/exit.ts";
import type { Vcpu } from "../machine/vcpu.ts";
import { isBroken, unlessBroken } from "./broken.ts";
import type { Panic } from "./hypercall.ts";
import type { Cpu, Kernel } from "./kernel.ts";
import { VECTORS } from "./layout.ts";
import type { OopsWriter } from "./oops.ts";
import type { Task } from "./task.ts";
import { findHang, type Hang, type Patience } from "./watchdog.ts";

/** What may interrupt a CPU before a slice. */
export type Interruption = "none" | "timer" | "device" | "nmi";

export interface ConductorOptions {
  readonly chooser: Chooser;
  /** Lengths of slices in instructions that are chosen from. */
  readonly slices?: readonly number[];
  /** What is chosen from before each slice: an entry's share is how often it is there. */
  readonly interruptions?: readonly Interruption[];
  /** How often a step on the kernel's behalf that could be taken is in the choice of who is next, against once for each CPU; default 1. */
  readonly stepShare?: number;
  /** Instructions of guest time within which each CPU that executes has its timer's interrupt. */
  readonly tickEvery?: number;
  readonly patience?: Patience;
  /** What executes a slice; default `kernel.run`. Hypercalls are answered in it. */
  readonly execute?: Execute;
}

/** Executes up to `budget` instructions on `vcpu`. */
export type Execute = (vcpu: Vcpu, budget: number) => Exit | Panic;

export type RunEnd =
  /** As many instructions as were wanted. */
  | { readonly kind: "budget" }
  /** Everybody sleeps, and nothing is going to wake anybody. */
  | { readonly kind: "idle" }
  /** Whoever watches has stopped it. */
  | { readonly kind: "stopped"; readonly why: string }
  /** The kernel raised an exception that it has no way on from, found something wrong, or went where nothing is. */
  | { readonly kind: "oops"; readonly cpu: number; readonly task: Task | undefined; readonly text: string }
  | ({ readonly kind: "hang" } & Hang);

export interface ConductOptions {
  /** Instructions of all vCPUs together. */
  readonly budget: number;
  /** Asked after every slice; a text ends the run. */
  readonly watch?: () => string | undefined;
}

export const SLICES: readonly number[] = [1, 3, 10, 30, 100, 300, 1000];
export const INTERRUPTIONS: readonly Interruption[] = [
  ...new Array<Interruption>(20).fill("none"),
  "timer",
  "timer",
  "device",
  "nmi",
];
const TICK_EVERY = 10_000;
/** Patience itself costs something. */
const HANG_EVERY = 64;
/** Slices in a row in which nothing retires: where exceptions are all that happens, guest time stands still. */
const MOST_FRUITLESS = 10_000;

export class Conductor {
  private readonly kernel: Kernel;
  private readonly options: Required<Omit<ConductorOptions, "patience">> & { readonly patience?: Patience };
  private readonly writer: OopsWriter;
  private readonly name: (at: Addr) => string;

  /** What a run ends with, `writer` puts into words for the log; `name` describes addresses. */
  constructor(kernel: Kernel, options: ConductorOptions, writer: OopsWriter, name: (at: Addr) => string) {
    this.kernel = kernel;
    const execute: Execute = (vcpu, budget) => kernel.run(vcpu, { budget });
    this.options = {
      slices: SLICES,
      interruptions: INTERRUPTIONS,
      stepShare: 1,
      tickEvery: TICK_EVERY,
      execute,
      ...options,
    };
    this.writer = writer;
    this.name = name;
    kernel.chooser = options.chooser;
  }

  /** Runs until something ends it. It can be gone on with after `budget` and `stopped`. */
  run(options: ConductOptions): RunEnd {
    const { agenda } = this.kernel;
    agenda.live = true;
    let end: ReturnType<typeof unlessBroken<RunEnd>>;
    try {
      end = unlessBroken(() => this.conduct(options));
    } finally {
      agenda.live = false;
    }
    if (!isBroken(end)) return end;
    const text = `the kernel's structures are broken: ${end.broken}`;
    this.log(() => [`Kernel panic - not syncing: ${text}`]);
    return { kind: "oops", cpu: 0, task: undefined, text };
  }

  private conduct({ budget, watch }: ConductOptions): RunEnd {
    let left = budget;
    let fruitless = 0;
    for (let slices = 1; left > 0; slices++) {
      const next = this.next();
      if (next === undefined) {
        if (!this.skip()) return { kind: "idle" };
        continue;
      }
      if (typeof next === "string") {
        this.kernel.agenda.step(next);
        const why = watch?.();
        if (why !== undefined) return { kind: "stopped", why };
        continue;
      }
      const vcpu = next;
      this.interrupt(vcpu);
      const before = vcpu.instructions;
      const end = this.slice(vcpu, Math.min(left, this.chooseSlice()));
      const executed = vcpu.instructions - before;
      left -= executed;
      this.kernel.clock += executed;
      if (end !== undefined) return end;
      fruitless = executed === 0 ? fruitless + 1 : 0;
      if (fruitless > MOST_FRUITLESS)
        return this.oops(vcpu, "exceptions only: no instruction retires any more");
      const why = watch?.();
      if (why !== undefined) return { kind: "stopped", why };
      if (slices % HANG_EVERY === 0) {
        const hang = findHang(this.kernel, this.options.patience);
        if (hang !== undefined) {
          this.log(() => this.writer.hang(hang));
          return { kind: "hang", ...hang };
        }
      }
    }
    return { kind: "budget" };
  }

  /** A vCPU that is not halted, or the name of a strand of the agenda's that can go on. */
  private next(): Vcpu | string | undefined {
    const { machine, cpus, agenda } = this.kernel;
    const awake = machine.vcpus.filter((_, n) => cpus[n]!.struct.getNumber("halted") === 0);
    const { stepShare } = this.options;
    const steps = agenda.isEmpty ? [] : agenda.ready();
    const able = [...awake, ...steps.flatMap((step) => new Array<string>(stepShare).fill(step))];
    return able.length > 1 ? able[this.options.chooser.choose("vcpu", able.length)] : able[0];
  }

  private chooseSlice(): number {
    const { slices, chooser } = this.options;
    return slices[slices.length > 1 ? chooser.choose("slice", slices.length) : 0]!;
  }

  /** Every CPU is idle: time goes on to the first timer, or to what the agenda waits for. False if there is neither. */
  private skip(): boolean {
    const { kernel } = this;
    const [timer, waits] = [kernel.nextTimer, kernel.agenda.due];
    if (timer === undefined && waits === undefined) return false;
    const due = Math.min(timer ?? Number.POSITIVE_INFINITY, waits ?? Number.POSITIVE_INFINITY);
    // What is due and waits for something else as well, nobody does anything about.
    if (timer === undefined && due <= kernel.clock) return false;
    if (due > kernel.clock) kernel.clock = due;
    // Idle all that time, and not stuck.
    for (const { struct } of kernel.cpus) struct.set("touched", kernel.clock);
    if (due === timer) this.tick(kernel.cpus[0]!);
    return true;
  }

  private interrupt(vcpu: Vcpu): void {
    const { kernel, options } = this;
    const cpu = kernel.cpus[vcpu.index]!;
    const { interruptions, chooser } = options;
    const choice = interruptions.length > 1 ? chooser.choose("interrupt", interruptions.length) : 0;
    switch (interruptions[choice]) {
      case "timer":
        this.tick(cpu);
        return;
      case "device":
        kernel.interrupt(vcpu.index, VECTORS.DEVICE_VECTOR);
        break;
      case "nmi":
        kernel.nmi(vcpu.index);
        break;
    }
    if (kernel.clock >= cpu.struct.getNumber("tick_at")) this.tick(cpu);
  }

  private tick({ struct }: Cpu): void {
    this.kernel.interrupt(struct.getNumber("number"), VECTORS.TIMER_VECTOR);
    struct.set("tick_at", this.kernel.clock + this.options.tickEvery);
  }

  private slice(vcpu: Vcpu, length: number): RunEnd | undefined {
    const { kernel } = this;
    const exit = this.options.execute(vcpu, length);
    switch (exit.kind) {
      case "budget":
        return undefined;
      case "halt":
        // An interrupt that came meanwhile ends it at once.
        kernel.cpus[vcpu.index]!.struct.set("halted", vcpu.careful ? 0 : 1);
        return undefined;
      case "panic":
        this.log(() => this.writer.panic(vcpu, exit.text));
        return this.oops(vcpu, `kernel BUG: ${exit.text}`);
      default: {
        const taken = kernel.exception(vcpu, exit);
        if (taken === undefined) {
          const text = describeExit(exit, this.name);
          this.log(() => this.writer.panic(vcpu, text));
          return this.oops(vcpu, text);
        }
        this.log(() => this.writer.exception(vcpu, taken));
        return this.oops(vcpu, describeExit({ kind: "fault", ip: taken.ip, fault: taken.fault }, this.name));
      }
    }
  }

  private log(write: () => readonly string[]): void {
    const lines = unlessBroken(write);
    for (const line of isBroken(lines) ? [`(no more can be read: ${lines.broken})`] : lines)
      this.kernel.log.print(line);
  }

  private oops(vcpu: Vcpu, text: string): RunEnd {
    return { kind: "oops", cpu: vcpu.index, task: this.kernel.current(vcpu), text };
  }
}
