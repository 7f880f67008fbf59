// Slots of the trunk's function table, given out and taken back.

import { SLOT, type Trunk } from "./trunk.ts";

export class Slots {
  private readonly table: WebAssembly.Table;
  private readonly free: number[] = [];
  private next: number = SLOT.first;

  constructor(trunk: Trunk) {
    this.table = trunk.table;
  }

  /** Those given out and not taken back. */
  get used(): number {
    return this.next - SLOT.first - this.free.length;
  }

  reserve(): number {
    const slot = this.free.pop() ?? this.next++;
    if (slot === this.table.length) this.table.grow(this.table.length);
    return slot;
  }

  fill(slot: number, code: WebAssembly.ExportValue): void {
    this.table.set(slot, code);
  }

  release(slot: number): void {
    this.table.set(slot, null);
    this.free.push(slot);
  }
}
