// What the laboratory does on the kernel's behalf, a step at a time, while everybody runs: between two steps any CPU may
// execute. Where nobody runs, it is all done at once.
//
// A strand is a sequence of its own; a step may put others in its place, and waits until it is ready. How far each has come
// follows the machine's snapshots, so a step must change nothing but guest memory and Kept values.

import { type Keeper, Kept } from "./kept.ts";

export interface Step {
  /** For people, as `write int3 at leaf`. */
  readonly what: string;
  /** Whether its time has come; at once if not given. */
  readonly ready?: () => boolean;
  /** Guest time before which it is not ready, in nanoseconds: where all CPUs idle, time goes on to that. */
  readonly due?: number;
  /** Steps that come before those that were to follow. */
  readonly run: () => readonly Step[] | undefined;
}

interface Strand {
  readonly name: string;
  readonly steps: readonly Step[];
}

export class Agenda {
  /** CPUs run between steps: nothing is done but by `step`. */
  live = false;
  /** How many steps were taken. */
  taken = 0;
  private finishing = false;
  private readonly kept: Kept<{ readonly strands: readonly Strand[] }>;

  constructor(keeper: Keeper) {
    this.kept = new Kept<{ readonly strands: readonly Strand[] }>(keeper, { strands: [] });
  }

  get isEmpty(): boolean {
    return this.kept.value.strands.length === 0;
  }

  /** What each strand does next, or waits for. */
  get pending(): readonly { readonly strand: string; readonly what: string }[] {
    return this.kept.value.strands.map(({ name, steps }) => ({ strand: name, what: steps[0]!.what }));
  }

  /** Whether the strand has anything to do. */
  isPending(name: string): boolean {
    return this.kept.value.strands.some((strand) => strand.name === name);
  }

  /** The earliest time that a strand waits for. */
  get due(): number | undefined {
    const times = this.kept.value.strands.flatMap(({ steps }) => steps[0]?.due ?? []);
    return times.length === 0 ? undefined : Math.min(...times);
  }

  /** Adds steps to the end of a strand; does all that can be done if nobody runs. */
  add(name: string, steps: readonly Step[]): void {
    const { strands } = this.kept.value;
    const known = strands.find((strand) => strand.name === name);
    const all = [...(known?.steps ?? []), ...steps];
    this.kept.value = {
      strands:
        known === undefined
          ? [...strands, { name, steps: all }]
          : strands.map((strand) => (strand === known ? { name, steps: all } : strand)),
    };
    if (!this.live) this.finish();
  }

  /** Names of the strands that could go on now. */
  ready(): readonly string[] {
    return this.kept.value.strands.filter(isReady).map(({ name }) => name);
  }

  /** Goes one step on with a strand that is ready. */
  step(name: string): void {
    const strand = this.kept.value.strands.find((other) => other.name === name);
    const [first, ...rest] = strand?.steps ?? [];
    if (first === undefined) return;
    this.taken++;
    // Before it is run: what it adds to its own strand comes behind the rest.
    this.put(name, rest);
    const more = first.run();
    if (more === undefined || more.length === 0) return;
    const now = this.kept.value.strands.find((other) => other.name === name);
    this.put(name, [...more, ...(now?.steps ?? [])]);
  }

  /** Does all that is ready, while nobody runs. What a step throws is thrown when all is done. */
  finish(): void {
    if (this.live || this.finishing) return;
    this.finishing = true;
    const thrown: unknown[] = [];
    for (let [next] = this.ready(); next !== undefined; [next] = this.ready())
      try {
        this.step(next);
      } catch (error) {
        thrown.push(error);
      }
    this.finishing = false;
    if (thrown.length > 0) throw thrown[0];
  }

  private put(name: string, steps: readonly Step[]): void {
    const { strands } = this.kept.value;
    const others = strands.some((strand) => strand.name === name)
      ? strands.map((strand) => (strand.name === name ? { name, steps } : strand))
      : [...strands, { name, steps }];
    this.kept.value = { strands: others.filter((strand) => strand.steps.length > 0) };
  }
}

function isReady({ steps: [first] }: Strand): boolean {
  return first!.ready?.() ?? true;
}

/** A step that only does something. */
export function act(what: string, run: () => void): Step {
  return {
    what,
    run: () => {
      run();
      return undefined;
    },
  };
}

/** Waits until `ready` says so. */
export function until(what: string, ready: () => boolean): Step {
  return { what: `wait until ${what}`, ready, run: () => undefined };
}

/**
 * A step for each of `items`, made by `step`, one after the other; which they are is asked when it begins. `after`, if given, says
 * what comes behind the last one: another round, say.
 */
export function each<T>(
  what: string,
  items: () => readonly T[],
  step: (item: T) => Step,
  after: () => readonly Step[] = () => [],
): Step {
  const from = (list: readonly T[], n: number): readonly Step[] => {
    const item = list[n];
    if (item === undefined) return after();
    const one = step(item);
    return [
      {
        ...(one.ready && { ready: one.ready }),
        // For whoever asks: there may be many, and names may be in guest memory.
        get what() {
          return one.what;
        },
        run: () => [...(one.run() ?? []), ...from(list, n + 1)],
      },
    ];
  };
  return { what, run: () => from(items(), 0) };
}
