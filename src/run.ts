// One run after another of the kernel with its patients: what came of each, and the record that it can be told again by.

import type { Chooser } from "./base/chooser.ts";
import { type Choices, Recorder, seeded, unfair } from "./explore/chooser.ts";
import type { RunSettings } from "./explore/settings.ts";
import type { Conductor, Interruption, RunEnd } from "./kernel/conductor.ts";
import type { LivepatchOptions } from "./livepatch/options.ts";
import type { Snapshot } from "./machine/snapshot.ts";
import { Operator } from "./operator.ts";
import { Patients, type PatientsOptions } from "./patients.ts";
import type { UnderWay } from "./report/run.ts";

/** Where live patches come and go it matters which instruction somebody is stopped at. */
const SHORT_SLICES = [1, 2, 3, 5, 10, 30, 100, 300];
/** Fewer than otherwise, or such short slices would mostly be spent in handlers. */
const FEW_INTERRUPTIONS: readonly Interruption[] = [
  ...new Array<Interruption>(60).fill("none"),
  "timer",
  "timer",
  "device",
  "nmi",
];
/** What is done to patches takes many steps, and is what such runs are about. */
const STEP_SHARE = 2;
const PATCHING = { slices: SHORT_SLICES, interruptions: FEW_INTERRUPTIONS, stepShare: STEP_SHARE };
/** Instructions within which all patches have to be gone. */
const WINDING_BUDGET = 8_000_000;
const WOUND = "all patches are gone";

export interface RunOptions {
  /** In place of the settings', where nothing is recorded. */
  readonly every?: number;
  readonly onProgress?: (instructions: number) => void;
}

export interface RunFacts {
  readonly end: RunEnd["kind"];
  /** What should not have come of it: a rule that was broken, an oops, a hang, somebody who waits for ever. */
  readonly finding: string | null;
  readonly instructions: number;
  /** Guest time, in nanoseconds. */
  readonly clock: number;
  /** Of everything in the machine (Machine.hash), in hexadecimal. */
  readonly hash: string;
  readonly choices: Choices;
  /** What was under way when the run ended, before the last patches were disabled. */
  readonly transition: UnderWay | null;
}

const PROGRESS_EVERY = 1000;

export class Runner {
  readonly patients: Patients;
  readonly settings: RunSettings;
  private readonly operator: Operator | undefined;
  /** The hash of the machine before any run, in hexadecimal: of what a record is one. */
  readonly origin: string;
  private readonly fresh: Snapshot;

  static async open(
    settings: RunSettings,
    options: Omit<PatientsOptions, keyof RunSettings> & { readonly livepatch?: LivepatchOptions } = {},
  ): Promise<Runner> {
    const { patches } = settings;
    const patients = await Patients.open({
      ...options,
      ...settings,
      recordCalls: patches,
      compile: !patches, // with slices as short as theirs
    });
    const { weakened, logLevel } = settings;
    const livepatch = { weakened, logLevel, ...options.livepatch };
    const operator = patches ? await Operator.open(patients, livepatch) : undefined;
    return new Runner(patients, settings, operator);
  }

  private constructor(patients: Patients, settings: RunSettings, operator: Operator | undefined) {
    this.patients = patients;
    this.settings = settings;
    this.operator = operator;
    const { machine } = patients.lab;
    this.fresh = machine.snapshot();
    this.origin = hexadecimal(machine.hash());
  }

  /** Chooses by chance; unfairly where patches come and go, or nobody would stand still for long enough. */
  chance(seed: number): Chooser {
    return this.operator === undefined ? seeded(seed) : unfair(seed);
  }

  /** From the beginning, whatever was run before. What is left is there to be looked at until the next run. */
  run(chooser: Chooser, { every = this.settings.every, onProgress }: RunOptions = {}): RunFacts {
    const { lab } = this.patients;
    const { machine, kernel } = lab;
    machine.restore(this.fresh);
    const before = machine.instructions;
    const recorder = new Recorder(chooser);
    const slices = this.operator === undefined ? {} : PATCHING;
    const conductor = lab.conductor({ chooser: recorder, ...slices });
    this.patients.begin();
    const invariants = lab.invariants();
    const judge = this.operator?.begin(recorder);
    let looks = 0;
    const look = () => {
      if (++looks % PROGRESS_EVERY === 0) onProgress?.(machine.instructions - before);
      if (every === 0 || looks % every !== 0) return undefined;
      const violation = invariants.check();
      return violation === undefined ? judge?.() : `${violation.rule}: ${violation.what}`;
    };
    const watch = () => {
      const wrong = look();
      if (wrong === undefined) this.operator?.step();
      return wrong;
    };
    const end = conductor.run({ budget: this.settings.budget, watch });
    const transition = this.underWay;
    const finding = this.finding(end) ?? this.wind(conductor, look);
    return {
      end: end.kind,
      finding: finding ?? null,
      instructions: machine.instructions - before,
      clock: kernel.clock,
      hash: hexadecimal(machine.hash()),
      choices: recorder.choices,
      transition,
    };
  }

  private get underWay(): UnderWay | null {
    const { livepatch } = this.patients.lab;
    const { transition } = livepatch;
    if (transition === undefined) return null;
    const blockers = livepatch.blockers().map(({ task, reason: { kind }, why, advice, stack }) => ({
      ...{ task: String(task), reason: kind },
      ...{ why, advice, stack },
    }));
    const { waitsFor = null } = livepatch;
    return { patch: transition.patch.name, target: transition.target, blockers, waitsFor };
  }

  /** Disables all patches, one by one, while everybody runs on: what is wrong with that, or with what is left. */
  private wind(conductor: Conductor, look: () => string | undefined): string | undefined {
    const { operator, patients } = this;
    const { livepatch, kernel } = patients.lab;
    if (operator === undefined) return undefined;
    const watch = () => look() ?? (operator.wind() === "over" ? WOUND : undefined);
    for (;;) {
      const end = conductor.run({ budget: WINDING_BUDGET, watch });
      if (end.kind === "stopped" && end.why === WOUND) return operator.leftover ?? this.failure;
      if (end.kind !== "idle" && end.kind !== "budget") return this.finding(end);
      // Nobody runs, and time does not go on: only what is asked for now could change that.
      const progress = end.kind === "idle" ? operator.wind() : "waits";
      if (progress === "over") return operator.leftover ?? this.finding(end);
      if (progress === "asked") continue;
      const who = livepatch.blockers().map(({ task, why }) => `${task} ${why}`);
      const waits = kernel.agenda.pending.map(({ what }) => what);
      return `the last patches do not come to an end: ${[...who, ...waits].join("; ")}`;
    }
  }

  private finding(end: RunEnd): string | undefined {
    switch (end.kind) {
      case "stopped":
        return end.why;
      case "oops":
      case "hang":
        return end.text;
      case "idle":
        return this.patients.unfinished ?? this.failure;
      case "budget":
        return this.failure;
    }
  }

  private get failure(): string | undefined {
    const { failures } = this.patients;
    return failures === 0 ? undefined : `patients found ${failures} things wrong`;
  }
}

function hexadecimal(hash: bigint): string {
  return hash.toString(16).padStart(16, "0");
}
