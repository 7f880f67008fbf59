// Guest memory: sparse pages of 4 KiB with permissions, each in a frame of the host memory.
//
// A frame can be mapped at several addresses. Pages that code was decoded from are never granted
// write access in a TLB, so that every write to code comes through here, and listeners hear of it. Where vCPUs
// may see such a write late, the same goes for all pages that can be executed.
// Reads and writes here are the laboratory's own and obey no permission; unmapped addresses are refused.

import { type Addr, hex, isCanonical, PAGE_SIZE, pageOf, pagesOf } from "../base/addr.ts";
import { refuse } from "../base/refuse.ts";
import type { Host, HostAddress } from "./host.ts";

/** Every mapped page can be read by the kernel. */
export interface Access {
  readonly write: boolean;
  readonly execute: boolean;
  readonly user: boolean;
}

export interface Frame {
  readonly at: HostAddress;
  /** Addresses of the pages that show it. */
  readonly pages: Addr[];
  /** Instructions were decoded from it. */
  code: boolean;
  /** Its place with the tracker; negative while the tracker has to hear of the next write. */
  tracked: number;
}

export interface Page {
  readonly frame: Frame;
  readonly access: Access;
}

export interface MemoryListener {
  /** What TLBs hold of this page is no longer true. */
  revoked(page: Addr): void;
  /** Code bytes changed; the range lies in one page. */
  codeWritten(at: Addr, size: number): void;
}

/** Who wants to know what was in memory before it changes. */
export interface MemoryTracker {
  /** `frame` is going to be written; TLBs may be granted write access to it until that is revoked. */
  track(frame: Frame): void;
  /** `page` is going to be mapped, unmapped or mapped otherwise. */
  remapping(page: Addr, before: Page | undefined): void;
}

/** The part of a store that lies in one frame, which code was in at some time. */
export interface CodeStore {
  readonly frame: Frame;
  readonly offset: number;
  readonly before: Uint8Array;
  readonly after: Uint8Array;
  /** A page that shows the frame can be executed at present. */
  readonly executable: boolean;
}

/** Who keeps what vCPUs may still see of code (machine/fetchLog.ts). */
export interface CodeStoreListener {
  /** One store is going to be made, with all its parts; `by` is the state of the vCPU that makes it, if one does. */
  storing(parts: readonly CodeStore[], by: HostAddress | undefined): void;
  /** No page shows `frame` any more. */
  freed(frame: Frame): void;
}

export class Memory {
  /** Absent until the first snapshot: until then, writes cost nothing more. */
  tracker: MemoryTracker | undefined;
  /** Absent where stores to code are coherent. */
  codeStores: CodeStoreListener | undefined;
  /** Something was written from here; whoever has looked may clear it. */
  written = false;
  private readonly host: Host;
  private readonly listener: MemoryListener;
  private readonly pages = new Map<Addr, Page>();
  /** The page that `readNumber` read last, and its frame if nothing was mapped otherwise since. */
  private lastRead: Addr | undefined;
  private lastFrame: Frame | undefined;
  /** Frames without pages. What is in them stays until they are used again. */
  private readonly free = new Set<Frame>();

  constructor(host: Host, listener: MemoryListener) {
    this.host = host;
    this.listener = listener;
  }

  /** Maps zeroed pages over `[at, at + size)`, rounded out to whole pages, none of which may be mapped. */
  map(at: Addr, size: number, access: Access): void {
    if (!isCanonical(at + size - 1)) refuse("map-range", { address: hex(at), size });
    const pages = pagesOf(at, size);
    for (const page of pages) if (this.pages.has(page)) refuse("already-mapped", { address: hex(page) });
    this.host.require((pages.length - this.free.size) * PAGE_SIZE);
    for (const page of pages) this.change(page, { frame: this.allocate(), access });
  }

  /** Shows the pages of `[of, of + size)` a second time at `at`, with `access` of its own. Both page-aligned. */
  alias(at: Addr, of: Addr, size: number, access: Access): void {
    const pages = pagesOf(at, size);
    for (const page of pages) if (this.pages.has(page)) refuse("already-mapped", { address: hex(page) });
    this.requireMapped(of, size);
    for (const page of pages) {
      const { frame } = this.pageAt((of + (page - at)) as Addr);
      this.change(page, { frame, access });
    }
  }

  unmap(at: Addr, size: number): void {
    this.requireMapped(at, size);
    for (const page of pagesOf(at, size)) {
      const { frame } = this.pageAt(page);
      this.change(page, undefined);
      if (frame.pages.length === 0) this.codeStores?.freed(frame);
    }
  }

  protect(at: Addr, size: number, access: Access): void {
    this.requireMapped(at, size);
    for (const page of pagesOf(at, size)) this.change(page, { frame: this.pageAt(page).frame, access });
  }

  /** Makes `page` what `to` says, mapped or not: every change of what is mapped goes through here. */
  change(page: Addr, to: Page | undefined): void {
    const from = this.pages.get(page);
    this.tracker?.remapping(page, from);
    if (from?.frame.code && from.access.execute) this.listener.codeWritten(page, PAGE_SIZE);
    if (from !== undefined && from.frame !== to?.frame) {
      const { pages } = from.frame;
      pages.splice(pages.indexOf(page), 1);
      if (pages.length === 0) this.free.add(from.frame);
    }
    if (to === undefined) this.pages.delete(page);
    else this.pages.set(page, to);
    if (to !== undefined && from?.frame !== to.frame) {
      to.frame.pages.push(page);
      this.free.delete(to.frame);
    }
    this.lastFrame = undefined;
    if (from !== undefined) this.listener.revoked(page);
    if (this.codeStores !== undefined && to?.access.execute === true) this.markCode(page);
  }

  /** Every mapped page with its address, in no particular order. */
  entries(): Iterable<[Addr, Page]> {
    return this.pages.entries();
  }

  /** To be called before a frame is written. */
  willWrite(frame: Frame): void {
    this.written = true;
    if (this.tracker !== undefined && frame.tracked < 0) this.tracker.track(frame);
  }

  /** Says that bytes of `frame` from `offset` on have changed, if instructions were decoded from it. */
  reportCode(frame: Frame, offset: number, size: number): void {
    if (!frame.code) return;
    for (const page of frame.pages) this.listener.codeWritten((page + offset) as Addr, size);
  }

  /** The page that holds `at`, if it is mapped. */
  find(at: Addr): Page | undefined {
    return this.pages.get(pageOf(at));
  }

  isMapped(at: Addr, size: number): boolean {
    return pagesOf(at, size).every((page) => this.pages.has(page));
  }

  /** A copy of `size` bytes. */
  read(at: Addr, size: number): Uint8Array {
    const bytes = new Uint8Array(size);
    this.forEachPart(at, size, (host, done, length) => {
      bytes.set(this.host.u8.subarray(host, host + length), done);
    });
    return bytes;
  }

  /** `by` is the state of the vCPU whose store it is; where stores to code are not coherent, it sees its own at once. */
  write(at: Addr, bytes: Uint8Array, by?: HostAddress): void {
    if (this.codeStores !== undefined) this.announce(this.codeStores, at, bytes, by);
    this.forEachPart(at, bytes.length, (host, done, length, frame) => {
      this.willWrite(frame);
      this.host.u8.set(bytes.subarray(done, done + length), host);
      this.reportCode(frame, host - frame.at, length);
    });
  }

  /** A little-endian 64-bit word, unsigned. */
  readWord(at: Addr): bigint {
    const bytes = this.read(at, 8);
    return new DataView(bytes.buffer).getBigUint64(0, true);
  }

  /** The word at `at`, a multiple of eight, as a signed number: NaN if it is no canonical address, undefined if unmapped. */
  readNumber(at: Addr): number | undefined {
    const host = this.hostOf(at);
    if (host === undefined) return undefined;
    const value = this.host.getNumber(host);
    return value >= -(2 ** 47) && value < 2 ** 47 ? value : Number.NaN;
  }

  /** The 32 bits at `at`, a multiple of four, signed; undefined if unmapped. */
  readInt(at: Addr): number | undefined {
    const host = this.hostOf(at);
    return host === undefined ? undefined : this.host.i32[host >> 2]!;
  }

  writeWord(at: Addr, value: bigint): void {
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setBigUint64(0, BigInt.asUintN(64, value), true);
    this.write(at, bytes);
  }

  /** Says that instructions were decoded from the page at `at`. */
  markCode(at: Addr): void {
    const { frame } = this.pageAt(at);
    if (frame.code) return;
    frame.code = true;
    for (const page of frame.pages) this.listener.revoked(page);
  }

  /** Where the byte at `at` is; what is asked for again and again lies in few pages. */
  private hostOf(at: Addr): HostAddress | undefined {
    const page = pageOf(at);
    if (page !== this.lastRead || this.lastFrame === undefined) {
      this.lastRead = page;
      this.lastFrame = this.pages.get(page)?.frame;
      if (this.lastFrame === undefined) return undefined;
    }
    return (this.lastFrame.at + (at - page)) as HostAddress;
  }

  private pageAt(at: Addr): Page {
    return this.pages.get(pageOf(at)) ?? refuse("unmapped", { address: hex(at) });
  }

  /** Nothing is half-done: what changes several pages asks for all of them first. */
  private requireMapped(at: Addr, size: number): void {
    for (const page of pagesOf(at, size))
      if (!this.pages.has(page)) refuse("unmapped", { address: hex(page < at ? at : page) });
  }

  private forEachPart(
    at: Addr,
    size: number,
    visit: (host: HostAddress, done: number, length: number, frame: Frame) => void,
  ): void {
    if (at - pageOf(at) + size > PAGE_SIZE) this.requireMapped(at, size); // one page says so itself, below
    for (let done = 0; done < size; ) {
      const here = (at + done) as Addr;
      const within = here - pageOf(here);
      const length = Math.min(size - done, PAGE_SIZE - within);
      const { frame } = this.pageAt(here);
      visit(frame.at + within, done, length, frame);
      done += length;
    }
  }

  private announce(
    listener: CodeStoreListener,
    at: Addr,
    bytes: Uint8Array,
    by: HostAddress | undefined,
  ): void {
    const parts: CodeStore[] = [];
    this.forEachPart(at, bytes.length, (host, done, length, frame) => {
      if (!frame.code) return;
      const executable = frame.pages.some((page) => this.pageAt(page).access.execute);
      const before = this.host.u8.slice(host, host + length);
      const after = bytes.subarray(done, done + length);
      parts.push({ frame, offset: host - frame.at, before, after, executable });
    });
    if (parts.length > 0) listener.storing(parts, by);
  }

  private allocate(): Frame {
    const [reused] = this.free;
    if (reused === undefined)
      return { at: this.host.reserve(PAGE_SIZE, PAGE_SIZE), pages: [], code: false, tracked: -1 };
    this.free.delete(reused); // or the next page would get it too
    this.willWrite(reused);
    this.host.u8.fill(0, reused.at, reused.at + PAGE_SIZE);
    reused.code = false;
    return reused;
  }
}
