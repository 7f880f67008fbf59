// A vCPU's TLB: what its loads and stores may touch without asking.
//
// What one entry cannot say (an access across two pages, a write to a page that code was decoded
// from) goes through a window: for one instruction the entry points at a scratch copy, which is written
// back afterwards through guest memory, where listeners hear of it.

import { type Addr, isCanonical, PAGE_SIZE, pagesOf } from "../base/addr.ts";
import { usesStackSegment } from "../x86/segment.ts";
import { ACCESS, EMPTY_PAGE, STATE, TLB_ENTRIES } from "../x86/state.ts";
import { fetch } from "./code.ts";
import { type Fault, PAGE_FAULT } from "./exit.ts";
import type { Host, HostAddress } from "./host.ts";
import type { Memory } from "./memory.ts";

/** Two pages of scratch for each kind of access. */
export const SCRATCH_BYTES = 3 * 2 * PAGE_SIZE;

interface Window {
  readonly entry: HostAddress;
  readonly at: Addr;
  readonly size: number;
  /** Where the access's first byte is in scratch. */
  readonly scratch: HostAddress;
  readonly write: boolean;
}

const TABLES = [STATE.readTlb, STATE.writeTlb];

export class Tlb {
  private readonly host: Host;
  private readonly memory: Memory;
  private readonly cpu: HostAddress;
  private readonly scratch: HostAddress;
  private windows: Window[] = [];

  /** `scratch` is SCRATCH_BYTES, page-aligned. */
  constructor(host: Host, memory: Memory, cpu: HostAddress, scratch: HostAddress) {
    this.host = host;
    this.memory = memory;
    this.cpu = cpu;
    this.scratch = scratch;
    this.flush();
  }

  flush(): void {
    for (const table of TABLES) for (let n = 0; n < TLB_ENTRIES; n++) this.clear(this.cpu + table + 16 * n);
    this.clear(this.cpu + STATE.secondReadTlb);
  }

  /** Drops what is held of `page`. */
  revoke(page: Addr): void {
    const tag = BigInt(page);
    for (const table of TABLES) {
      const entry = this.cpu + table + indexOf(page);
      if (this.host.i64[entry >> 3] === tag) this.clear(entry);
    }
    this.clear(this.cpu + STATE.secondReadTlb);
  }

  /** Makes the access that just missed possible for the next try; or says how it faults. */
  resolve(): Fault | undefined {
    const { host, cpu } = this;
    const linear = host.i64[(cpu + STATE.missAddress) >> 3]!;
    const access = host.i32[(cpu + STATE.missAccess) >> 2]!;
    const size = access & 0xff;
    const kind = access >> 8;
    const write = kind === ACCESS.write;
    if (!isCanonical(linear) || !isCanonical(linear + BigInt(size - 1)))
      return { vector: this.usesStackSegment(write) ? "#SS" : "#GP", errorCode: 0 };
    const at = Number(linear) as Addr;
    const touched = pagesOf(at, size);
    let code = false;
    for (const page of touched) {
      const mapped = this.memory.find(page);
      if (mapped === undefined || (write && !mapped.access.write)) {
        const errorCode = (mapped ? PAGE_FAULT.present : 0) | (write ? PAGE_FAULT.write : 0);
        return { vector: "#PF", errorCode, address: Math.max(page, at) as Addr, size };
      }
      code ||= mapped.frame.code;
    }
    const first = touched[0]!;
    const entry = kind === ACCESS.read2 ? cpu + STATE.secondReadTlb : cpu + TABLES[kind]! + indexOf(first);
    if (touched.length === 1 && !(write && code)) {
      this.point(entry, first, first, this.memory.find(first)!.frame.at);
      return undefined;
    }
    const pages = this.scratch + kind * 2 * PAGE_SIZE;
    this.point(entry, first, touched.at(-1)!, pages);
    const scratch = pages + (at - first);
    host.u8.set(this.memory.read(at, size), scratch);
    this.windows.push({ entry, at, size, scratch, write });
    return undefined;
  }

  /** Whether the access that missed goes through ss: then it is #SS that a bad address raises. */
  private usesStackSegment(write: boolean): boolean {
    const fetched = fetch(this.memory, this.host.getNumber(this.cpu + STATE.rip) as Addr);
    return fetched.kind === "instruction" && usesStackSegment(fetched.instruction, write);
  }

  /** Ends the windows of the instruction that was just tried. */
  closeWindows(retired: boolean): void {
    if (this.windows.length === 0) return;
    const { windows } = this;
    this.windows = [];
    for (const { entry, at, size, scratch, write } of windows) {
      this.clear(entry);
      if (write && retired) this.memory.write(at, this.host.u8.slice(scratch, scratch + size));
    }
  }

  /** Makes accesses that begin in `first` and end in `last` go to `frame`. */
  private point(entry: HostAddress, first: Addr, last: Addr, frame: HostAddress): void {
    this.host.i64[entry >> 3] = BigInt(last);
    this.host.i32[(entry + 8) >> 2] = frame - ((first % 2 ** 32) | 0);
  }

  private clear(entry: HostAddress): void {
    this.host.i64[entry >> 3] = EMPTY_PAGE;
  }
}

/** Offset of the entry for `page` in its table. */
function indexOf(page: Addr): number {
  return ((((page % 2 ** 32) | 0) >>> 12) & (TLB_ENTRIES - 1)) * 16;
}
