// Guest memory that is given out and taken back. What is free follows the machine's snapshots.

import type { Addr } from "../base/addr.ts";
import type { Heap } from "./heap.ts";
import { type Keeper, Kept } from "./kept.ts";

const ALIGN = 16;

/** What free memory is full of, so that whoever still uses it is noticed: data, as in Linux include/linux/poison.h, and code (int3). */
export const POISON = { data: 0x6b, text: 0xcc } as const;

export class Pool {
  private readonly heap: Heap;
  private readonly poison: number;
  /** By size, in bytes, what was given back: the last one first. */
  private readonly free: Kept<ReadonlyMap<number, readonly Addr[]>>;

  constructor(heap: Heap, keeper: Keeper, poison: number = POISON.data) {
    this.heap = heap;
    this.poison = poison;
    this.free = new Kept<ReadonlyMap<number, readonly Addr[]>>(keeper, new Map());
  }

  /** At least `size` bytes, with whatever is in them. */
  take(size: number): Addr {
    const rounded = roundUp(size);
    const [at, ...rest] = this.free.value.get(rounded) ?? [];
    if (at === undefined) return this.heap.allocate(rounded, ALIGN);
    this.free.value = new Map([...this.free.value, [rounded, rest]]);
    return at;
  }

  /** Takes back what was given out for that `size`, once: memory that two have would be changed behind the back of one. */
  give(at: Addr, size: number): void {
    const rounded = roundUp(size);
    const free = this.free.value.get(rounded) ?? [];
    if (free.includes(at)) throw new Error(`${at.toString(16)} is given back twice`);
    this.heap.memory.write(at, new Uint8Array(rounded).fill(this.poison));
    this.free.value = new Map([...this.free.value, [rounded, [at, ...free]]]);
  }
}

function roundUp(size: number): number {
  return Math.ceil(size / ALIGN) * ALIGN;
}
