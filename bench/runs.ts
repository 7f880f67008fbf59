// How long runs of the kernel with its patients take: `fentrylab bench runs`.
//
// Ten million instructions from where there are two hundred tasks, everybody in the middle of something; and short runs to
// their ends, by seed. Each with a look at the invariants at every fourth slice, and without.

import { cpus } from "node:os";
import { bug } from "../src/base/refuse.ts";
import { Recorder, seeded } from "../src/explore/chooser.ts";
import { DEFAULT_SETTINGS, type RunSettings } from "../src/explore/settings.ts";
import type { Snapshot } from "../src/machine/snapshot.ts";
import { Patients } from "../src/patients.ts";
import { Runner } from "../src/run.ts";
import { type Progress, type Spread, spread } from "./spread.ts";

/** Nobody gets through so many rounds. */
const MANY = { vcpus: 4, copies: 16, rounds: 100_000 } as const;
const TASKS = 200;
const LONG_BUDGET = 10_000_000;
const SHORT: RunSettings = { ...DEFAULT_SETTINGS, vcpus: 4 };
/** Short runs that make a sample. */
const SEEDS = 10;
const EVERY = 4;

export interface RunsBenchOptions {
  /** Samples of everything; default 5. */
  readonly rounds?: number;
  readonly progress?: Progress;
}

/** Of one kind of run, a sample each round. */
export interface RunsFact {
  readonly what: string;
  /** Seconds by the clock, and of CPU time, the compiler's own threads included. */
  readonly seconds: Spread;
  readonly cpuSeconds: Spread;
  /** Of all runs of a sample; the same in every round. */
  readonly instructions: number;
  readonly choices: number;
}

export interface RunsReport {
  readonly machine: { readonly node: string; readonly cpu: string; readonly rounds: number };
  /** Of the long run, where it begins: tasks there are, and vCPUs. */
  readonly tasks: number;
  readonly vcpus: number;
  readonly runs: readonly RunsFact[];
}

export async function benchRuns({
  rounds = 5,
  progress = () => {},
}: RunsBenchOptions = {}): Promise<RunsReport> {
  const [long, short] = [await Long.open(), await Runner.open(SHORT)];
  const shorts = (every: number) => () => runSeeds(short, every);
  const kinds = [
    { what: "long", run: () => long.run(0) },
    { what: "long, invariants", run: () => long.run(EVERY) },
    { what: `${SEEDS} short`, run: shorts(0) },
    { what: `${SEEDS} short, invariants`, run: shorts(EVERY) },
  ];
  const samples = kinds.map(() => [] as Sample[]);
  // The first round compiles, and is not counted.
  for (let round = 0; round <= rounds; round++) {
    for (const [n, { what, run }] of kinds.entries()) {
      const sample = take(run);
      if (round > 0) samples[n]!.push(sample);
      progress(round * kinds.length + n + 1, (rounds + 1) * kinds.length, what);
    }
  }
  const { tasks } = long;
  for (const { patients } of [long, short]) patients.lab.dispose();
  return {
    machine: { node: process.version, cpu: cpus()[0]?.model ?? "unknown", rounds },
    tasks,
    vcpus: MANY.vcpus,
    runs: kinds.map(({ what }, n) => ({
      what,
      seconds: spread(samples[n]!.map(({ seconds }) => seconds)),
      cpuSeconds: spread(samples[n]!.map(({ cpuSeconds }) => cpuSeconds)),
      instructions: samples[n]![0]!.instructions,
      choices: samples[n]![0]!.choices,
    })),
  };
}

/** What a run comes to; the same every time. */
interface Work {
  readonly instructions: number;
  readonly choices: number;
}

interface Sample extends Work {
  readonly seconds: number;
  readonly cpuSeconds: number;
}

function take(run: () => Work): Sample {
  const [begun, before] = [performance.now(), process.cpuUsage()];
  const work = run();
  const { user, system } = process.cpuUsage(before);
  return { ...work, seconds: (performance.now() - begun) / 1000, cpuSeconds: (user + system) / 1e6 };
}

function runSeeds(runner: Runner, every: number): Work {
  let [instructions, choices] = [0, 0];
  for (let seed = 1; seed <= SEEDS; seed++) {
    const facts = runner.run(seeded(seed), { every });
    instructions += facts.instructions;
    choices += facts.choices.answers.length / 3;
  }
  return { instructions, choices };
}

/** A kernel with so many tasks, to be run on from there. */
class Long {
  readonly patients: Patients;
  private readonly start: Snapshot;

  static async open(): Promise<Long> {
    const patients = await Patients.open(MANY);
    const { lab } = patients;
    const conductor = lab.conductor({ chooser: seeded(1) });
    patients.begin();
    const watch = () => (lab.kernel.tasks.length > TASKS ? "enough" : undefined);
    const end = conductor.run({ budget: Number.MAX_SAFE_INTEGER, watch });
    return end.kind === "stopped" ? new Long(patients) : bug(`the way to ${TASKS} tasks ended: ${end.kind}`);
  }

  private constructor(patients: Patients) {
    this.patients = patients;
    this.start = patients.lab.machine.snapshot();
  }

  get tasks(): number {
    this.patients.lab.machine.restore(this.start);
    return this.patients.lab.kernel.tasks.length;
  }

  run(every: number): Work {
    const { lab } = this.patients;
    lab.machine.restore(this.start);
    const recorder = new Recorder(seeded(2));
    const conductor = lab.conductor({ chooser: recorder });
    const invariants = lab.invariants();
    const before = lab.machine.instructions;
    let slices = 0;
    const watch = () => (every > 0 && ++slices % every === 0 ? invariants.check()?.what : undefined);
    const end = conductor.run({ budget: LONG_BUDGET, watch });
    if (end.kind !== "budget") bug(`a run that should go on ended: ${end.kind}`);
    return { instructions: lab.machine.instructions - before, choices: recorder.length };
  }
}

export function renderRunsReport({ machine, tasks, vcpus, runs }: RunsReport): string {
  const figure = ({ median, min, max }: Spread) =>
    `${median.toFixed(2).padStart(7)} ${`${min.toFixed(2)}..${max.toFixed(2)}`.padStart(12)}`;
  const lines = runs.map(
    ({ what, seconds, cpuSeconds, instructions, choices }) =>
      `${what.padEnd(22)}${figure(seconds)}  ${figure(cpuSeconds)}  ${String(instructions).padStart(12)}  ${String(choices).padStart(8)}`,
  );
  return [
    `${machine.cpu}, Node ${machine.node}, ${machine.rounds} rounds; the long run begins with ${tasks} tasks on ${vcpus} vCPUs.`,
    "",
    `${"".padEnd(22)}${"seconds".padStart(7)} ${"min..max".padStart(12)}  ${"CPU".padStart(7)} ${"min..max".padStart(12)}  instructions   choices`,
    ...lines,
    "",
  ].join("\n");
}
