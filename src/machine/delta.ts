// What differs between a snapshot and its parent: lines of host memory, each with its content before and after.
//
// A delta is a chain of cells, each with the number of the next and up to five entries; 0 is the empty one.

import { Cells } from "./cells.ts";
import type { HostAddress } from "./host.ts";
import type { LineId, LineStore } from "./lineStore.ts";

const ENTRY_WORDS = 3;
const ENTRIES = 5;

/** Number of its first cell. */
export type Delta = number;
export const EMPTY_DELTA: Delta = 0;

export type VisitChange = (at: HostAddress, before: LineId, after: LineId) => void;

export class Deltas {
  private readonly lines: LineStore;
  private readonly cells = new Cells(1 + ENTRIES * ENTRY_WORDS);

  /** `lines` is where the lines are that deltas hold. */
  constructor(lines: LineStore) {
    this.lines = lines;
  }

  get bytes(): number {
    return this.cells.bytes;
  }

  /** Cells in use. */
  get count(): number {
    return this.cells.count;
  }

  /**
   * `delta` with one more change, whose lines it holds from now on. The result takes the place of `delta`,
   * which must have been made by this alone.
   */
  with(delta: Delta, size: number, at: HostAddress, before: LineId, after: LineId): Delta {
    const { cells } = this;
    const place = size % ENTRIES;
    let first = delta;
    if (place === 0) {
      first = cells.allocate();
      const chunk = cells.chunk(first);
      const start = cells.start(first);
      chunk[start] = delta;
      for (let n = 0; n < ENTRIES; n++) chunk[start + 1 + n * ENTRY_WORDS] = 0;
    }
    const chunk = cells.chunk(first);
    const entry = cells.start(first) + 1 + place * ENTRY_WORDS;
    chunk[entry] = at;
    chunk[entry + 1] = before;
    chunk[entry + 2] = after;
    return first;
  }

  forEach(delta: Delta, visit: VisitChange): void {
    const { cells } = this;
    for (let cell = delta; cell !== 0; ) {
      const chunk = cells.chunk(cell);
      const start = cells.start(cell);
      for (let entry = start + 1; entry < start + 1 + ENTRIES * ENTRY_WORDS; entry += ENTRY_WORDS) {
        const at = chunk[entry]! >>> 0;
        if (at === 0) break; // nothing lies at host address zero
        visit(at, chunk[entry + 1]!, chunk[entry + 2]!);
      }
      cell = chunk[start]!;
    }
  }

  /** Takes the cells of `delta` back, and lets go of its lines. */
  release(delta: Delta): void {
    this.forEach(delta, (_, before, after) => {
      this.lines.release(before);
      this.lines.release(after);
    });
    this.releaseCells(delta);
  }

  /** Both changes in one; the two deltas are used up. */
  compose(first: Delta, second: Delta): Delta {
    if (first === EMPTY_DELTA) return second;
    if (second === EMPTY_DELTA) return first;
    let [result, size] = [EMPTY_DELTA, 0];
    const add: VisitChange = (at, before, after) => {
      result = this.with(result, size++, at, before, after);
    };
    const later = new Map<HostAddress, { before: LineId; after: LineId }>();
    this.forEach(second, (at, before, after) => later.set(at, { before, after }));
    this.forEach(first, (at, before, between) => {
      const change = later.get(at);
      if (change === undefined) {
        add(at, before, between);
        return;
      }
      later.delete(at);
      this.lines.release(between);
      this.lines.release(change.before);
      if (before !== change.after) {
        add(at, before, change.after);
      } else {
        this.lines.release(before);
        this.lines.release(change.after);
      }
    });
    for (const [at, { before, after }] of later) add(at, before, after);
    this.releaseCells(first);
    this.releaseCells(second);
    return result;
  }

  private releaseCells(delta: Delta): void {
    for (let cell = delta; cell !== 0; ) {
      const next = this.cells.chunk(cell)[this.cells.start(cell)]!;
      this.cells.release(cell);
      cell = next;
    }
  }
}
