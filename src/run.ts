// One run after another of the kernel with its patients: what came of each, and the record that it can be told again by.

import type { Chooser } from "./base/chooser.ts";
import { type Choices, Recorder } from "./explore/chooser.ts";
import type { RunEnd } from "./kernel/conductor.ts";
import type { Snapshot } from "./machine/snapshot.ts";
import { Patients, type PatientsOptions } from "./patients.ts";
import type { RunSettings } from "./settings.ts";

export interface RunOptions {
  /** Slices between looks at the invariants; 0 for none, 4 if not given. */
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
}

const PROGRESS_EVERY = 1000;

export class Runner {
  readonly patients: Patients;
  readonly settings: RunSettings;
  /** The hash of the machine before any run, in hexadecimal: of what a record is one. */
  readonly origin: string;
  private readonly fresh: Snapshot;

  static async open(
    settings: RunSettings,
    options: Omit<PatientsOptions, keyof RunSettings> = {},
  ): Promise<Runner> {
    return new Runner(await Patients.open({ ...options, ...settings }), settings);
  }

  private constructor(patients: Patients, settings: RunSettings) {
    this.patients = patients;
    this.settings = settings;
    const { machine } = patients.lab;
    this.fresh = machine.snapshot();
    this.origin = hexadecimal(machine.hash());
  }

  /** From the beginning, whatever was run before. What is left is there to be looked at until the next run. */
  run(chooser: Chooser, { every = 4, onProgress }: RunOptions = {}): RunFacts {
    const { lab } = this.patients;
    const { machine, kernel } = lab;
    machine.restore(this.fresh);
    const before = machine.instructions;
    const recorder = new Recorder(chooser);
    const conductor = lab.conductor({ chooser: recorder });
    this.patients.begin();
    const invariants = lab.invariants();
    let slices = 0;
    const watch = () => {
      if (++slices % PROGRESS_EVERY === 0) onProgress?.(machine.instructions - before);
      const violation = every > 0 && slices % every === 0 ? invariants.check() : undefined;
      return violation && `${violation.rule}: ${violation.what}`;
    };
    const end = conductor.run({ budget: this.settings.budget, watch });
    return {
      end: end.kind,
      finding: this.finding(end) ?? null,
      instructions: machine.instructions - before,
      clock: kernel.clock,
      hash: hexadecimal(machine.hash()),
      choices: recorder.choices,
    };
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
