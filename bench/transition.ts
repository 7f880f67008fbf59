// How long a transition takes in which nothing is in the way: `fentrylab bench transition`.
//
// Threads sleep in the kernel, all of them outside of what is patched, so that each is switched by the check of its stack when
// it is looked at for the first time. From enabling the patch to its completion, with CPUs that could run between any two
// steps; the site's rewriting and the grace period are in it.

import { cpus } from "node:os";
import { FIRST } from "../src/base/chooser.ts";
import { packagePath } from "../src/base/file.ts";
import { bug } from "../src/base/refuse.ts";
import { Lab } from "../src/lab.ts";
import type { Snapshot } from "../src/machine/snapshot.ts";
import { type Progress, type Spread, spread } from "./spread.ts";

const SOURCE = "bench/workloads/sleepers.S";
const VCPUS = 2;
export const COUNTS: readonly number[] = [100, 1_000, 10_000];
/** Rounds that compile, and are not counted. */
const WARM_UP = 3;
/** Beside the sleepers: idle tasks, stoppers, the laboratory's own. */
const OTHERS = 16;
/** So that nobody waits for a CPU for long. */
const AT_A_TIME = 50;
/** Instructions for each of them to get to where it sleeps, and more. */
const BUDGET_EACH = 100_000;

export interface TransitionBenchOptions {
  /** Samples of everything; default 5. */
  readonly rounds?: number;
  /** How many tasks sleep; default 100, 1,000 and 10,000. */
  readonly counts?: readonly number[];
  readonly progress?: Progress;
}

export interface TransitionRow {
  /** All that are switched: those that sleep, and idle tasks and stoppers. */
  readonly tasks: number;
  /** Steps that were taken for each task: exact, and the same in every round. */
  readonly steps: number;
  /** By the clock: the median of all rounds. */
  readonly seconds: number;
  /** The same for one task, in microseconds. */
  readonly perTask: number;
  readonly spread: Spread;
}

export interface TransitionReport {
  readonly machine: { readonly node: string; readonly cpu: string; readonly rounds: number };
  readonly rows: readonly TransitionRow[];
}

export async function benchTransition({
  rounds = 5,
  counts = COUNTS,
  progress = () => {},
}: TransitionBenchOptions = {}): Promise<TransitionReport> {
  const rows: TransitionRow[] = [];
  for (const [n, count] of counts.entries()) {
    const sleepers = await Sleepers.open(count);
    const samples: number[] = [];
    const all = WARM_UP + rounds;
    for (let round = 0; round < all; round++) {
      const seconds = sleepers.transition();
      if (round >= WARM_UP) samples.push(seconds);
      progress(n * all + round + 1, counts.length * all, `${count} tasks`);
    }
    const { tasks, steps } = sleepers;
    sleepers.dispose();
    const sums = spread(samples);
    rows.push({
      tasks,
      steps: steps / tasks,
      seconds: sums.median,
      perTask: (sums.median * 1e6) / tasks,
      spread: sums,
    });
  }
  return { machine: { node: process.version, cpu: cpus()[0]?.model ?? "unknown", rounds }, rows };
}

/** A kernel in which so many tasks sleep. */
class Sleepers {
  readonly tasks: number;
  /** Of the last transition. */
  steps = 0;
  private readonly lab: Lab;
  private readonly start: Snapshot;

  static async open(count: number): Promise<Sleepers> {
    const objects = [packagePath(SOURCE)];
    const lab = await Lab.open({ vcpus: VCPUS, maxTasks: count + OTHERS, objects });
    const { kernel } = lab;
    kernel.boot();
    const sleeper = lab.symbol("sleeper").address;
    for (let n = 0; n < count; n++) {
      kernel.start(kernel.createKthread({ comm: `sleeper/${n}`, function: sleeper }));
      if (n + 1 < count && (n + 1) % AT_A_TIME !== 0) continue;
      const end = conductor(lab).run({ budget: BUDGET_EACH * AT_A_TIME });
      if (end.kind !== "idle") bug(`tasks that should sleep do not: ${end.kind}`);
    }
    return new Sleepers(lab);
  }

  private constructor(lab: Lab) {
    this.lab = lab;
    this.tasks = lab.livepatch.tasks.all.length;
    this.start = lab.machine.snapshot();
  }

  /** Seconds from the patch's being enabled to the end of the transition. */
  transition(): number {
    const { lab } = this;
    const { livepatch } = lab;
    lab.machine.restore(this.start);
    const functions = [{ name: "answer", replacement: lab.symbol("answer_new").address }];
    const run = conductor(lab);
    const taken = lab.kernel.agenda.taken;
    const begun = performance.now();
    lab.kernel.agenda.live = true;
    const patch = livepatch.enable({ name: "answers", objects: [{ functions }] });
    const watch = () => (patch.enabled && livepatch.transition === undefined ? "complete" : undefined);
    const end = run.run({ budget: BUDGET_EACH * (this.tasks + OTHERS), watch });
    const seconds = (performance.now() - begun) / 1000;
    this.steps = lab.kernel.agenda.taken - taken;
    if (end.kind !== "stopped") bug(`the transition did not complete: ${end.kind}`);
    return seconds;
  }

  dispose(): void {
    this.lab.dispose();
  }
}

function conductor(lab: Lab) {
  return lab.conductor({ chooser: FIRST, slices: [1000], interruptions: ["none"] });
}

export function renderTransitionReport({ machine, rows }: TransitionReport): string {
  const lines = rows.map(({ tasks, steps, seconds, perTask, spread: { min, max } }) => {
    const range = `${min.toFixed(4)}..${max.toFixed(4)}`;
    return `${String(tasks).padStart(7)}  ${seconds.toFixed(4).padStart(8)}  ${range.padStart(17)}  ${perTask.toFixed(1).padStart(11)}  ${steps.toFixed(2).padStart(14)}`;
  });
  return [
    `A transition in which every task's stack lets it be switched at once.`,
    `${machine.cpu}, Node ${machine.node}, ${machine.rounds} rounds.`,
    "",
    `${"tasks".padStart(7)}  ${"seconds".padStart(8)}  ${"min..max".padStart(17)}  µs per task  steps per task`,
    ...lines,
    "",
  ].join("\n");
}
