// A vCPU's TLB: what its loads and stores may touch without asking, apart for the kernel and for user code.
//
// What one entry cannot say (an access across two pages, a write to a page that code was decoded
// from) goes through a window: for one instruction the entry points at a scratch copy, which is written
// back afterwards through guest memory, where listeners hear of it.

import { type Addr, isCanonical, PAGE_SIZE, pagesOf } from "../base/addr.ts";
import type { Instruction } from "../x86/decode.ts";
import { usesStackSegment } from "../x86/segment.ts";
import { ACCESS, BANK_SHIFT, EMPTY_PAGE, STATE, TLB_ENTRIES, USER_BANK } from "../x86/state.ts";
import type { Fault } from "./exit.ts";
import type { Host, HostAddress } from "./host.ts";
import type { Memory, Page } from "./memory.ts";

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

/** Data breakpoints: pages with one are never granted, and each access to them is told when its instruction retires. */
export interface Watcher {
  isWatched(page: Addr): boolean;
  accessed(at: Addr, size: number, write: boolean): void;
}

const TABLES = [STATE.readTlb, STATE.writeTlb];
const BANKS = [0, USER_BANK];

export class Tlb {
  private readonly host: Host;
  private readonly memory: Memory;
  private readonly cpu: HostAddress;
  private readonly scratch: HostAddress;
  private readonly denial: (page: Page | undefined, write: boolean) => number | undefined;
  private readonly instruction: () => Instruction | undefined;
  private readonly watcher: Watcher;
  private windows: Window[] = [];

  /**
   * `scratch` is SCRATCH_BYTES, page-aligned; `denial` judges an access to a page, with an error code if it faults;
   * `instruction` is the one under way.
   */
  constructor(
    host: Host,
    memory: Memory,
    cpu: HostAddress,
    scratch: HostAddress,
    denial: (page: Page | undefined, write: boolean) => number | undefined,
    instruction: () => Instruction | undefined,
    watcher: Watcher,
  ) {
    this.denial = denial;
    this.instruction = instruction;
    this.watcher = watcher;
    this.host = host;
    this.memory = memory;
    this.cpu = cpu;
    this.scratch = scratch;
    this.flush();
  }

  flush(): void {
    for (const bank of BANKS) this.flushBank(bank);
  }

  /** Forgets what the kernel may access. */
  flushKernel(): void {
    this.flushBank(0);
  }

  private flushBank(bank: number): void {
    // No page has the address that a repeated byte makes.
    const start = this.cpu + bank;
    for (const table of TABLES) this.host.u8.fill(1, start + table, start + table + 16 * TLB_ENTRIES);
    this.clear(this.cpu + STATE.secondReadTlb);
  }

  /** Drops what is held of `page`. */
  revoke(page: Addr): void {
    for (const table of TABLES) this.clearFor(page, table);
    this.clear(this.cpu + STATE.secondReadTlb);
  }

  /** The same for writes only. */
  revokeWrites(page: Addr): void {
    this.clearFor(page, STATE.writeTlb);
  }

  /** Makes the access that just missed possible for the next try; or says how it faults. */
  resolve(): Fault | undefined {
    const { host, cpu } = this;
    const at = host.getNumber(cpu + STATE.missAddress) as Addr; // rounded if it is not canonical
    const access = host.i32[(cpu + STATE.missAccess) >> 2]!;
    const size = access & 0xffff;
    const kind = access >> 16;
    const write = kind === ACCESS.write;
    if (!isCanonical(at) || !isCanonical(at + size - 1))
      return { vector: this.usesStackSegment(write) ? "#SS" : "#GP", errorCode: 0 };
    const touched = pagesOf(at, size);
    let code = false;
    for (const page of touched) {
      const mapped = this.memory.find(page);
      const errorCode = this.denial(mapped, write);
      if (mapped === undefined || errorCode !== undefined)
        return { vector: "#PF", errorCode: errorCode ?? 0, address: Math.max(page, at) as Addr, size };
      code ||= mapped.frame.code;
    }
    const first = touched[0]!;
    const bank = host.i32[(cpu + STATE.cpl) >> 2]! << BANK_SHIFT;
    const entry = cpu + (kind === ACCESS.read2 ? STATE.secondReadTlb : bank + TABLES[kind]! + indexOf(first));
    if (touched.length === 1 && !(write && code) && !this.watcher.isWatched(first)) {
      const { frame } = this.memory.find(first)!;
      if (write) this.memory.willWrite(frame);
      this.point(entry, first, first, frame.at);
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
    const instruction = this.instruction();
    return instruction !== undefined && usesStackSegment(instruction, write);
  }

  /** Ends the windows of the instruction that was just tried. */
  closeWindows(retired: boolean): void {
    if (this.windows.length === 0) return;
    const { windows } = this;
    this.windows = [];
    for (const { entry, at, size, scratch, write } of windows) {
      this.clear(entry);
      if (retired) this.watcher.accessed(at, size, write);
      if (write && retired) this.memory.write(at, this.host.u8.slice(scratch, scratch + size), this.cpu);
    }
  }

  /** Makes accesses that begin in `first` and end in `last` go to `frame`. */
  private point(entry: HostAddress, first: Addr, last: Addr, frame: HostAddress): void {
    this.host.setNumber(entry, last);
    this.host.i32[(entry + 8) >> 2] = frame - ((first % 2 ** 32) | 0);
    this.host.i32[(entry + 12) >> 2] = (first % 2 ** 32) | 0; // only the second read's entry is asked for it
  }

  private clearFor(page: Addr, table: number): void {
    for (const bank of BANKS) {
      const entry = this.cpu + bank + table + indexOf(page);
      if (this.host.getNumber(entry) === page) this.clear(entry);
    }
  }

  private clear(entry: HostAddress): void {
    this.host.i64[entry >> 3] = EMPTY_PAGE;
  }
}

/** Offset of the entry for `page` in its table. */
function indexOf(page: Addr): number {
  return ((((page % 2 ** 32) | 0) >>> 12) & (TLB_ENTRIES - 1)) * 16;
}
