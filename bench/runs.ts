// How long runs of the kernel with its patients take: `fentrylab bench runs`.
//
// A long one with many tasks, which ends by its budget with everybody in the middle of something; and short ones to
// their ends, by seed. Each with a look at the invariants at every fourth slice, and without.

import { cpus } from "node:os";
import { seeded } from "../src/explore/chooser.ts";
import { Runner } from "../src/run.ts";
import { DEFAULT_SETTINGS, type RunSettings } from "../src/settings.ts";
import { type Progress, type Spread, spread } from "./spread.ts";

/** More than two hundred tasks, counting partners; nobody gets through so many rounds. */
const LONG: RunSettings = { vcpus: 4, copies: 12, rounds: 1000, budget: 10_000_000 };
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
  /** Of the long run, at its end: tasks there are, and vCPUs. */
  readonly tasks: number;
  readonly vcpus: number;
  readonly runs: readonly RunsFact[];
}

export async function benchRuns({
  rounds = 5,
  progress = () => {},
}: RunsBenchOptions = {}): Promise<RunsReport> {
  const [long, short] = [await Runner.open(LONG), await Runner.open(SHORT)];
  const kinds = [
    { what: "long", runner: long, seeds: 1, every: 0 },
    { what: "long, invariants", runner: long, seeds: 1, every: EVERY },
    { what: `${SEEDS} short`, runner: short, seeds: SEEDS, every: 0 },
    { what: `${SEEDS} short, invariants`, runner: short, seeds: SEEDS, every: EVERY },
  ];
  const samples = kinds.map(() => [] as Sample[]);
  // The first round compiles, and is not counted.
  for (let round = 0; round <= rounds; round++) {
    for (const [n, { what, runner, seeds, every }] of kinds.entries()) {
      const sample = take(runner, seeds, every);
      if (round > 0) samples[n]!.push(sample);
      progress(round * kinds.length + n + 1, (rounds + 1) * kinds.length, what);
    }
  }
  long.run(seeded(1), { every: 0 });
  const tasks = long.patients.lab.kernel.tasks.length;
  for (const { patients } of [long, short]) patients.lab.dispose();
  return {
    machine: { node: process.version, cpu: cpus()[0]?.model ?? "unknown", rounds },
    tasks,
    vcpus: LONG.vcpus,
    runs: kinds.map(({ what }, n) => ({
      what,
      seconds: spread(samples[n]!.map(({ seconds }) => seconds)),
      cpuSeconds: spread(samples[n]!.map(({ cpuSeconds }) => cpuSeconds)),
      instructions: samples[n]![0]!.instructions,
      choices: samples[n]![0]!.choices,
    })),
  };
}

interface Sample {
  readonly seconds: number;
  readonly cpuSeconds: number;
  readonly instructions: number;
  readonly choices: number;
}

function take(runner: Runner, seeds: number, every: number): Sample {
  const [begun, before] = [performance.now(), process.cpuUsage()];
  let [instructions, choices] = [0, 0];
  for (let seed = 1; seed <= seeds; seed++) {
    const facts = runner.run(seeded(seed), { every });
    instructions += facts.instructions;
    choices += facts.choices.answers.length / 3;
  }
  const { user, system } = process.cpuUsage(before);
  const seconds = (performance.now() - begun) / 1000;
  return { seconds, cpuSeconds: (user + system) / 1e6, instructions, choices };
}

export function renderRunsReport({ machine, tasks, vcpus, runs }: RunsReport): string {
  const figure = ({ median, min, max }: Spread) =>
    `${median.toFixed(2).padStart(7)} ${`${min.toFixed(2)}..${max.toFixed(2)}`.padStart(12)}`;
  const lines = runs.map(
    ({ what, seconds, cpuSeconds, instructions, choices }) =>
      `${what.padEnd(22)}${figure(seconds)}  ${figure(cpuSeconds)}  ${String(instructions).padStart(12)}  ${String(choices).padStart(8)}`,
  );
  return [
    `${machine.cpu}, Node ${machine.node}, ${machine.rounds} rounds; the long run has ${tasks} tasks on ${vcpus} vCPUs.`,
    "",
    `${"".padEnd(22)}${"seconds".padStart(7)} ${"min..max".padStart(12)}  ${"CPU".padStart(7)} ${"min..max".padStart(12)}  instructions   choices`,
    ...lines,
    "",
  ].join("\n");
}
