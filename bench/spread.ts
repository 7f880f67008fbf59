// What benchmarks have in common: how samples are taken, in turns, and summed up.
//
// Rates are by the process's CPU time, which does not count what else the machine runs meanwhile. Nothing sampled
// waits for anything; but threads of V8's own are counted, which collect garbage or optimise.

/** Told after each sample how many of how many are taken, and of what the last one was. */
export type Progress = (done: number, total: number, what: string) => void;

/** Something that is timed. */
export interface Act {
  readonly what: string;
  readonly once: () => void;
}

export interface Sampling {
  /** Samples of everything. */
  readonly rounds: number;
  /** How long one sample takes, at least; ten times that warms up before. */
  readonly milliseconds: number;
}

/** Of all rounds. */
export interface Spread {
  readonly median: number;
  readonly min: number;
  readonly max: number;
}

/**
 * Repetitions of each act per millisecond, one figure a round. The acts take turns, so that caches and clocks that
 * others use as well concern all of them, and a ratio within a round says more than one of medians.
 */
export function sampleInTurns(
  acts: readonly Act[],
  { rounds, milliseconds }: Sampling,
  sampled: (what: string) => void,
): number[][] {
  const rates = acts.map((): number[] => []);
  const turns = [...acts.entries()];
  for (let round = 0; round <= rounds; round++) {
    const warmUp = round === 0;
    // Whoever goes first in one round goes last in the next.
    for (const [n, { what, once }] of round % 2 === 0 ? turns : turns.toReversed()) {
      const rate = sample(once, warmUp ? 10 * milliseconds : milliseconds);
      if (!warmUp) rates[n]!.push(rate);
      sampled(what);
    }
  }
  return rates;
}

/** How many samples `sampleInTurns` takes. */
export function countSamples(acts: number, { rounds }: Sampling): number {
  return (rounds + 1) * acts;
}

/** The first tenth is not counted: who went before leaves caches and garbage behind. */
function sample(once: () => void, milliseconds: number): number {
  repeat(once, milliseconds / 10);
  const before = process.cpuUsage();
  const repetitions = repeat(once, milliseconds);
  const { user, system } = process.cpuUsage(before);
  return repetitions / (Math.max(1, user + system) / 1000);
}

function repeat(once: () => void, milliseconds: number): number {
  const start = performance.now();
  let repetitions = 0;
  do {
    once();
    repetitions++;
  } while (performance.now() - start < milliseconds);
  return repetitions;
}

export function spread(samples: readonly number[]): Spread {
  const sorted = samples.toSorted((a, b) => a - b);
  const middle = sorted.length / 2;
  return {
    median: (sorted[Math.ceil(middle) - 1]! + sorted[Math.floor(middle)]!) / 2,
    min: sorted[0]!,
    max: sorted.at(-1)!,
  };
}
