// How fast the engine is, beside native Unicorn: `fentrylab bench engine`.
//
// Each workload (bench/workloads/loops.S) is run and is stepped on every engine. A round takes one sample
// of each, the engines in turn, and a ratio is made within its round (bench/spread.ts): what else the machine was
// doing meanwhile then mostly cancels. Results must agree between engines, or there is no report (a bug). Snapshots are
// timed in the same way (bench/snapshot.ts). Without Unicorn the rest is still reported.

import { cpus } from "node:os";
import type { Addr } from "../src/base/addr.ts";
import { readPackageFile } from "../src/base/file.ts";
import { bug } from "../src/base/refuse.ts";
import { KERNEL_TEXT } from "../src/image/layout.ts";
import { link } from "../src/image/link.ts";
import type { Missing } from "../src/reference/reference.ts";
import { loadUnicorn, type Unicorn } from "../src/reference/unicornLibrary.ts";
import { assemble } from "../src/x86/assemble.ts";
import { benchSnapshots, countSnapshotActs, type SnapshotReport } from "./snapshot.ts";
import { countSamples, type Progress, type Sampling, type Spread, sampleInTurns, spread } from "./spread.ts";
import { Fentrylab, type Subject, type SubjectName, UnicornSubject } from "./subjects.ts";

const SOURCE = "bench/workloads/loops.S";

/** Iterations of one call: some milliseconds on the slower engine, hundreds of times the cost of starting it. */
const ITERATIONS = { tight: 2_000_000, calls: 50_000, redirected: 5_000 } as const;
const STEPS = 10_000;

export type WorkloadName = keyof typeof ITERATIONS;
export const WORKLOADS = Object.keys(ITERATIONS) as readonly WorkloadName[];

export interface EngineBenchOptions {
  /** Samples of everything; default 15. */
  readonly rounds?: number;
  /** How long one sample takes, at least; ten times that warms each engine up before. Default 50. */
  readonly milliseconds?: number;
  /** Default: the one that is installed. */
  readonly unicorn?: Unicorn | Missing;
  readonly progress?: Progress;
}

export interface RunSpeed {
  /** Million instructions a second. */
  readonly mips: Spread;
  readonly nsPerIteration: Spread;
}

export interface StepSpeed {
  /** Single steps a second, each with a register read. */
  readonly stepsPerSecond: Spread;
}

/** One entry an engine; Unicorn's is absent where it is missing. */
export type PerSubject<T> = { readonly fentrylab: T; readonly unicorn?: T };

export interface EngineReport {
  readonly machine: { readonly node: string; readonly cpu: string; readonly rounds: number };
  readonly unicorn: { readonly version: string } | Missing;
  readonly workloads: Readonly<
    Record<WorkloadName, { readonly instructionsPerIteration: number } & PerSubject<RunSpeed>>
  >;
  readonly stepping: Readonly<Record<WorkloadName, PerSubject<StepSpeed>>>;
  readonly snapshots: SnapshotReport;
  /** Speed of fentrylab over that of Unicorn; absent without the latter. */
  readonly ratios?: {
    readonly workloads: Readonly<Record<WorkloadName, Spread>>;
    readonly stepping: Readonly<Record<WorkloadName, Spread>>;
  };
}

/** One thing that is timed on every engine. */
interface Row {
  readonly what: string;
  /** Does it once and says what came out, which has to be the same on every engine. */
  readonly once: (subject: Subject) => string;
}

/** Repetitions of a row per millisecond, a round each. */
type Rates = Readonly<Partial<Record<SubjectName, readonly number[]>>>;

/** Measures for some 30 seconds. */
export async function benchEngine(options: EngineBenchOptions = {}): Promise<EngineReport> {
  const { rounds = 15, milliseconds = 50, progress = () => {} } = options;
  const unicorn = options.unicorn ?? (await loadUnicorn());
  const source = new TextDecoder().decode(readPackageFile(SOURCE));
  const image = link([await assemble(SOURCE, source)], { text: KERNEL_TEXT });
  const entry = (name: WorkloadName) => image.symbol(name).address;

  const own = new Fentrylab(image);
  const perIteration = eachWorkload((name) => countIteration(own, entry(name), name));
  const running = eachWorkload((name): Row => {
    const [at, iterations] = [entry(name), ITERATIONS[name]];
    return { what: `run ${name}`, once: (subject) => `rax=${subject.run(at, iterations)}` };
  });
  const stepping = eachWorkload((name): Row => {
    const [at, iterations] = [entry(name), ITERATIONS[name]];
    const once = (subject: Subject) => {
      const { rip, rax } = subject.step(at, iterations, STEPS);
      return `rip=${rip} rax=${rax}`;
    };
    return { what: `step ${name}`, once };
  });
  const rows = WORKLOADS.flatMap((name) => [running[name], stepping[name]]);

  const subjects: Subject[] = [own];
  const peer = "missing" in unicorn ? undefined : unicorn;
  const rates = new Map<Row, Rates>();
  let snapshots: SnapshotReport;
  try {
    if (peer !== undefined) subjects.push(new UnicornSubject(peer, image));
    const sampling = { rounds, milliseconds };
    const acts = rows.length * subjects.length + countSnapshotActs(peer);
    const total = countSamples(acts, sampling);
    let done = 0;
    const sampled = (what: string) => progress(++done, total, what);
    for (const row of rows) rates.set(row, measure(row, subjects, sampling, sampled));
    snapshots = benchSnapshots(peer, sampling, sampled);
  } finally {
    for (const subject of subjects) subject.close();
  }

  return {
    machine: { node: process.version, cpu: cpus()[0]?.model.trim() ?? "unknown", rounds },
    unicorn: "missing" in unicorn ? { missing: unicorn.missing } : { version: unicorn.version },
    workloads: eachWorkload((name) => {
      const speed = perSubject(rates.get(running[name])!, (samples): RunSpeed => {
        const perMillisecond = samples.map((rate) => rate * ITERATIONS[name]);
        return {
          mips: spread(perMillisecond.map((rate) => (rate * perIteration[name]) / 1000)),
          nsPerIteration: spread(perMillisecond.map((rate) => 1e6 / rate)),
        };
      });
      return { instructionsPerIteration: perIteration[name], ...speed };
    }),
    stepping: eachWorkload((name) =>
      perSubject(rates.get(stepping[name])!, (samples) => ({
        stepsPerSecond: spread(samples.map((rate) => rate * STEPS * 1000)),
      })),
    ),
    snapshots,
    ...(subjects.length > 1 && {
      ratios: {
        workloads: eachWorkload((name) => ratio(rates.get(running[name])!)),
        stepping: eachWorkload((name) => ratio(rates.get(stepping[name])!)),
      },
    }),
  };
}

/** Instructions of one iteration, exactly: what 1000 more of them add. */
function countIteration(own: Fentrylab, entry: Addr, name: WorkloadName): number {
  const count = (iterations: number) => {
    const before = own.instructions;
    own.run(entry, iterations);
    return own.instructions - before;
  };
  const each = (count(2000) - count(1000)) / 1000;
  return Number.isInteger(each) ? each : bug(`${name} executes ${each} instructions an iteration`);
}

/** Samples a row on every subject. */
function measure(
  { what, once }: Row,
  subjects: readonly Subject[],
  sampling: Sampling,
  sampled: (what: string) => void,
): Rates {
  const expected = once(subjects[0]!);
  const acts = subjects.map((subject) => ({
    what: `${what} on ${subject.name}`,
    once: () => {
      const got = once(subject);
      if (got !== expected) bug(`${what}: ${subject.name} got ${got}, fentrylab got ${expected}`);
    },
  }));
  const rates = sampleInTurns(acts, sampling, sampled);
  return Object.fromEntries(subjects.map(({ name }, n) => [name, rates[n]]));
}

function eachWorkload<T>(of: (name: WorkloadName) => T): Record<WorkloadName, T> {
  return { tight: of("tight"), calls: of("calls"), redirected: of("redirected") };
}

function perSubject<T>({ fentrylab, unicorn }: Rates, of: (samples: readonly number[]) => T): PerSubject<T> {
  return { fentrylab: of(fentrylab ?? []), ...(unicorn && { unicorn: of(unicorn) }) };
}

function ratio({ fentrylab = [], unicorn = [] }: Rates): Spread {
  return spread(fentrylab.map((rate, round) => rate / unicorn[round]!));
}
