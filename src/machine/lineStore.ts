// Lines of 64 bytes that snapshots hold, each content once, with a count of who holds it.

import { Cells } from "./cells.ts";
import type { Host, HostAddress } from "./host.ts";
import { LINE_SIZE } from "./lineKernels.ts";

const LINE_WORDS = LINE_SIZE / 4;
/** Words of a cell behind the line's own. */
const HOLDERS = LINE_WORDS;
const NEXT = LINE_WORDS + 1;
const HASH = LINE_WORDS + 2;
const INITIAL_BUCKETS = 1024;

/** Number of a line in the store. */
export type LineId = number;

export class LineStore {
  private readonly cells = new Cells(LINE_WORDS + 3);
  /** By the low bits of the content's hash: the first of a chain. */
  private buckets = new Int32Array(INITIAL_BUCKETS);

  /** Different lines held. */
  get count(): number {
    return this.cells.count;
  }

  get bytes(): number {
    return this.cells.bytes + this.buckets.byteLength;
  }

  /** The line at a host address, whose content hashes to `hash`, held once more. */
  hold(host: Host, at: HostAddress, hash: number): LineId {
    const { cells, buckets } = this;
    const from = host.i32;
    const first = at >>> 2;
    const bucket = hash & (buckets.length - 1);
    for (let line = buckets[bucket]!; line !== 0; ) {
      const chunk = cells.chunk(line);
      const start = cells.start(line);
      if (chunk[start + HASH] === hash) {
        let n = 0;
        while (n < LINE_WORDS && chunk[start + n] === from[first + n]) n++;
        if (n === LINE_WORDS) {
          chunk[start + HOLDERS]!++;
          return line;
        }
      }
      line = chunk[start + NEXT]!;
    }
    return this.add(from, first, hash);
  }

  /** Lets go of `line` once. */
  release(line: LineId): void {
    const { cells, buckets } = this;
    const chunk = cells.chunk(line);
    const start = cells.start(line);
    if (--chunk[start + HOLDERS]! > 0) return;
    const bucket = chunk[start + HASH]! & (buckets.length - 1);
    if (buckets[bucket] === line) {
      buckets[bucket] = chunk[start + NEXT]!;
    } else {
      let previous = buckets[bucket]!;
      while (this.next(previous) !== line) previous = this.next(previous);
      cells.chunk(previous)[cells.start(previous) + NEXT] = chunk[start + NEXT]!;
    }
    cells.release(line);
  }

  /** Copies `line` to a host address. */
  copy(line: LineId, host: Host, to: HostAddress): void {
    const chunk = this.cells.chunk(line);
    const start = this.cells.start(line);
    const into = host.i32;
    const first = to >>> 2;
    for (let n = 0; n < LINE_WORDS; n++) into[first + n] = chunk[start + n]!;
  }

  private add(from: Int32Array, first: number, hash: number): LineId {
    if (this.cells.count >= this.buckets.length) this.grow();
    const line = this.cells.allocate();
    const chunk = this.cells.chunk(line);
    const start = this.cells.start(line);
    for (let n = 0; n < LINE_WORDS; n++) chunk[start + n] = from[first + n]!;
    chunk[start + HOLDERS] = 1;
    chunk[start + HASH] = hash;
    this.enter(line, hash);
    return line;
  }

  private enter(line: LineId, hash: number): void {
    const bucket = hash & (this.buckets.length - 1);
    this.cells.chunk(line)[this.cells.start(line) + NEXT] = this.buckets[bucket]!;
    this.buckets[bucket] = line;
  }

  private next(line: LineId): LineId {
    return this.cells.chunk(line)[this.cells.start(line) + NEXT]!;
  }

  private grow(): void {
    const before = this.buckets;
    this.buckets = new Int32Array(2 * before.length);
    for (const first of before) {
      for (let line = first; line !== 0; ) {
        const next = this.next(line);
        this.enter(line, this.cells.chunk(line)[this.cells.start(line) + HASH]!);
        line = next;
      }
    }
  }
}
