// How fast the engine is, beside native Unicorn: `fentrylab bench engine`.
//
// Each workload (bench/workloads/loops.S) is run and is stepped on every engine. A round takes one sample
// of each, the engines in turn, and a ratio is made within its round: what else the machine was doing
// meanwhile then mostly cancels. Results must agree between engines, or there is no report (a bug). Without
// Unicorn the rest is still reported.

import { cpus } from "node:os";
import type { Addr } from "../src/base/addr.ts";
import { bug } from "../src/base/refuse.ts";
import { readPackageFile } from "../src/guest.ts";
import { KERNEL_TEXT } from "../src/image/layout.ts";
import { link } from "../src/image/link.ts";
import { assemble } from "../src/x86/assemble.ts";
import { Fentrylab, type Subject, type SubjectName, UnicornSubject } from "./subjects.ts";
import { loadUnicorn, type Missing, type Unicorn } from "./unicorn.ts";

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
  /** Told after each sample how many of how many are taken, and of what the last one was. */
  readonly progress?: (done: number, total: number, what: string) => void;
}

/** Of all rounds. */
export interface Spread {
  readonly median: number;
  readonly min: number;
  readonly max: number;
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

/** Measures for some 20 seconds. */
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
  let rates: ReadonlyMap<Row, Rates>;
  try {
    if (!("missing" in unicorn)) subjects.push(new UnicornSubject(unicorn, image));
    rates = measure(rows, subjects, { rounds, milliseconds, progress });
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

/** Samples every row on every subject, warmed up: `rounds` times each. */
function measure(
  rows: readonly Row[],
  subjects: readonly Subject[],
  { rounds, milliseconds, progress }: Required<Omit<EngineBenchOptions, "unicorn">>,
): Map<Row, Rates> {
  const total = (rounds + 1) * rows.length * subjects.length;
  let done = 0;
  const result = new Map<Row, Rates>();
  for (const row of rows) {
    const expected = row.once(subjects[0]!);
    const rates: Partial<Record<SubjectName, number[]>> = {};
    for (let round = 0; round <= rounds; round++) {
      const warmUp = round === 0;
      // Whoever goes first in one round goes last in the next.
      for (const subject of round % 2 === 0 ? subjects : subjects.toReversed()) {
        const rate = sample(row, subject, expected, warmUp ? 10 * milliseconds : milliseconds);
        if (!warmUp) {
          rates[subject.name] ??= [];
          rates[subject.name]!.push(rate);
        }
        progress(++done, total, `${row.what} on ${subject.name}`);
      }
    }
    result.set(row, rates);
  }
  return result;
}

/** Repetitions per millisecond, over at least `milliseconds`. */
function sample({ what, once }: Row, subject: Subject, expected: string, milliseconds: number): number {
  const start = performance.now();
  let repetitions = 0;
  let elapsed: number;
  do {
    const got = once(subject);
    if (got !== expected) bug(`${what}: ${subject.name} got ${got}, fentrylab got ${expected}`);
    repetitions++;
    elapsed = performance.now() - start;
  } while (elapsed < milliseconds);
  return repetitions / elapsed;
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

function spread(samples: readonly number[]): Spread {
  const sorted = samples.toSorted((a, b) => a - b);
  const middle = sorted.length / 2;
  return {
    median: (sorted[Math.ceil(middle) - 1]! + sorted[Math.floor(middle)]!) / 2,
    min: sorted[0]!,
    max: sorted.at(-1)!,
  };
}

/** The report for a terminal: a table with medians, spreads and ratios. */
export function renderEngineReport(report: EngineReport): string {
  const { machine, unicorn, workloads, stepping, ratios } = report;
  const rows = [["", "unit", "fentrylab", "min..max", "Unicorn", "min..max", "ratio", "min..max"]];
  const row = (what: string, unit: string, own: Spread, peer?: Spread, over?: Spread) => {
    const [left, right, times] = [cells(own, 1), cells(peer, 1), cells(over, 2)];
    rows.push([what, unit, ...left, ...right, ...times]);
  };
  for (const name of WORKLOADS) {
    const { instructionsPerIteration: count, fentrylab, unicorn: peer } = workloads[name];
    row(`run ${name}`, "MIPS", fentrylab.mips, peer?.mips, ratios?.workloads[name]);
    row(`  ${count} instructions`, "ns", fentrylab.nsPerIteration, peer?.nsPerIteration);
  }
  for (const name of WORKLOADS) {
    const { fentrylab, unicorn: peer } = stepping[name];
    const millions = (speed?: StepSpeed) => speed && scaled(speed.stepsPerSecond, 1e-6);
    row(`step ${name}`, "M/s", millions(fentrylab)!, millions(peer), ratios?.stepping[name]);
  }
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((cell) => cell[column]!.length)));
  const aligned = rows.map((cell) =>
    cell
      .map((text, n) => (n < 2 ? text.padEnd(widths[n]!) : text.padStart(widths[n]!)))
      .join("  ")
      .trimEnd(),
  );
  const peer = "missing" in unicorn ? `no Unicorn: ${unicorn.missing}` : `Unicorn ${unicorn.version}`;
  return [
    `Node ${machine.node}, ${machine.cpu}, ${peer}`,
    `Medians of ${machine.rounds} rounds; ratios are fentrylab over Unicorn within a round.`,
    "",
    ...aligned,
    "",
  ].join("\n");
}

function cells(of: Spread | undefined, digits: number): [string, string] {
  if (of === undefined) return ["", ""];
  return [of.median.toFixed(digits), `${of.min.toFixed(digits)}..${of.max.toFixed(digits)}`];
}

function scaled({ median, min, max }: Spread, by: number): Spread {
  return { median: median * by, min: min * by, max: max * by };
}
