// What an audit found: how often each verdict was given, and where.

import type { Addr } from "../base/addr.ts";
import type { Walk } from "../unwind/walk.ts";

/**
 * How the stack came to be walked: from live registers, of a task that was switched out by an interrupt at the
 * boundary, from inside an NMI there, or of a task that had switched itself out.
 */
export const MODES = ["atRest", "preempted", "nmi", "sleeping"] as const;
export type Mode = (typeof MODES)[number];

export const CELLS = ["reliableRight", "reliableWrong", "unreliableRight", "unreliableWrong"] as const;
export type Cell = (typeof CELLS)[number];
export type Verdicts = Record<Cell, number>;

export interface Outcome {
  readonly reliable: boolean;
  readonly right: boolean;
  /** The assembly says that nothing can be known at this boundary. */
  readonly declared: boolean;
}

/** One walk with the stack that it was of. */
export interface Example {
  readonly workload: string;
  readonly walk: Walk;
  /** Where execution goes on from each live frame, innermost first. */
  readonly truth: readonly (Addr | undefined)[];
}

/** One boundary at which a verdict was given other than reliable and right. */
export interface Place {
  readonly mode: Mode;
  readonly cell: Cell;
  readonly at: Addr;
  readonly declared: boolean;
  count: number;
  /** The first. */
  readonly example: Example;
}

export class Findings {
  boundaries = 0;
  /** Addresses of the instructions that were reached. */
  readonly reached = new Set<Addr>();
  readonly verdicts: Record<Mode, Verdicts> = {
    atRest: none(),
    preempted: none(),
    nmi: none(),
    sleeping: none(),
  };
  private readonly byPlace = new Map<Mode, Map<Cell, Map<Addr, Place>>>();

  visit(at: Addr): void {
    this.boundaries++;
    this.reached.add(at);
  }

  add(mode: Mode, at: Addr, { reliable, right, declared }: Outcome, example: () => Example): void {
    const cell = reliable
      ? right
        ? "reliableRight"
        : "reliableWrong"
      : right
        ? "unreliableRight"
        : "unreliableWrong";
    this.verdicts[mode][cell]++;
    if (cell === "reliableRight") return;
    const cells = getOrMake(this.byPlace, mode, () => new Map<Cell, Map<Addr, Place>>());
    const places = getOrMake(cells, cell, () => new Map<Addr, Place>());
    const known = places.get(at);
    if (known === undefined) places.set(at, { mode, cell, at, declared, count: 1, example: example() });
    else known.count++;
  }

  /** By mode, verdict and address. */
  get places(): Place[] {
    return MODES.flatMap((mode) =>
      CELLS.flatMap((cell) =>
        [...(this.byPlace.get(mode)?.get(cell)?.values() ?? [])].sort((a, b) => a.at - b.at),
      ),
    );
  }

  get total(): Verdicts {
    const total = none();
    for (const mode of MODES) for (const cell of CELLS) total[cell] += this.verdicts[mode][cell];
    return total;
  }
}

function none(): Verdicts {
  return { reliableRight: 0, reliableWrong: 0, unreliableRight: 0, unreliableWrong: 0 };
}

function getOrMake<K, V>(map: Map<K, V>, key: K, make: () => V): V {
  const found = map.get(key) ?? make();
  map.set(key, found);
  return found;
}
