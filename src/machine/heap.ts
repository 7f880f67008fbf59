// Guest memory for structures that TypeScript makes on the guest's behalf. Given out, never taken back.

import { type Addr, PAGE_SIZE, pagesOf } from "../base/addr.ts";
import type { Access, Memory } from "./memory.ts";

export class Heap {
  private readonly memory: Memory;
  private readonly access: Access;
  private next: Addr;

  /** Pages are mapped from `start` (page-aligned) upwards, as they are needed. */
  constructor(memory: Memory, start: Addr, access: Access) {
    this.memory = memory;
    this.next = start;
    this.access = access;
  }

  /** `size` zeroed bytes. */
  allocate(size: number, align = 16): Addr {
    const at = (Math.ceil(this.next / align) * align) as Addr;
    const end = (at + size) as Addr;
    // Asked of memory, not remembered: a restored snapshot may have fewer pages.
    for (const page of pagesOf(at, size)) {
      if (!this.memory.isMapped(page, 1)) this.memory.map(page, PAGE_SIZE, this.access);
    }
    this.next = end;
    return at;
  }
}
