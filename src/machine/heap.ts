// Guest memory for structures that TypeScript makes on the guest's behalf. Given out, never taken back.

import { type Addr, PAGE_SIZE } from "../base/addr.ts";
import type { Access, Memory } from "./memory.ts";

export class Heap {
  private readonly memory: Memory;
  private readonly access: Access;
  private next: Addr;
  private mapped: Addr;

  /** Pages are mapped from `start` (page-aligned) upwards, as they are needed. */
  constructor(memory: Memory, start: Addr, access: Access) {
    this.memory = memory;
    this.next = start;
    this.mapped = start;
    this.access = access;
  }

  /** `size` zeroed bytes. */
  allocate(size: number, align = 16): Addr {
    const at = (Math.ceil(this.next / align) * align) as Addr;
    const end = (at + size) as Addr;
    if (end > this.mapped) {
      const more = Math.ceil((end - this.mapped) / PAGE_SIZE) * PAGE_SIZE;
      this.memory.map(this.mapped, more, this.access);
      this.mapped = (this.mapped + more) as Addr;
    }
    this.next = end;
    return at;
  }
}
