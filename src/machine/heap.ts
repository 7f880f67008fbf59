// Guest memory for structures that TypeScript makes on the guest's behalf. Given out, never taken back.
//
// How far it has come is a word of guest memory: a restored snapshot has the heap as it was.

import { type Addr, addr, offset, PAGE_SIZE, pagesOf, toWord } from "../base/addr.ts";
import type { Access, Memory } from "./memory.ts";

const WORD = 8;

export class Heap {
  readonly memory: Memory;
  private readonly access: Access;
  /** Where the address of the next free byte lies. */
  private readonly cursor: Addr;

  /**
   * Pages are mapped from `start` (page-aligned) upwards, as they are needed. `cursor` is eight mapped bytes for
   * the heap's own use; without them it takes its first ones.
   */
  constructor(memory: Memory, start: Addr, access: Access, cursor?: Addr) {
    this.memory = memory;
    this.access = access;
    this.cursor = cursor ?? start;
    if (cursor === undefined) memory.map(start, PAGE_SIZE, access);
    memory.writeWord(this.cursor, toWord(cursor === undefined ? offset(start, WORD) : start));
  }

  /** `size` zeroed bytes. */
  allocate(size: number, align = 16): Addr {
    const next = addr(this.memory.readWord(this.cursor));
    const at = addr(Math.ceil(next / align) * align);
    for (const page of pagesOf(at, size))
      if (!this.memory.isMapped(page, 1)) this.memory.map(page, PAGE_SIZE, this.access);
    this.memory.writeWord(this.cursor, toWord(offset(at, size)));
    return at;
  }
}
