// Guest memory: sparse pages of 4 KiB with permissions, each in a frame of the host memory.
//
// A frame can be mapped at several addresses. Pages that code was decoded from are never granted
// write access in a TLB, so that every write to code comes through here, and listeners hear of it.
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

export class Memory {
  private readonly host: Host;
  private readonly listener: MemoryListener;
  private readonly pages = new Map<Addr, Page>();
  private readonly free: HostAddress[] = [];

  constructor(host: Host, listener: MemoryListener) {
    this.host = host;
    this.listener = listener;
  }

  /** Maps zeroed pages over `[at, at + size)`, rounded out to whole pages, none of which may be mapped. */
  map(at: Addr, size: number, access: Access): void {
    if (!isCanonical(at + size - 1)) refuse("map-range", { address: hex(at), size });
    const pages = pagesOf(at, size);
    for (const page of pages) if (this.pages.has(page)) refuse("already-mapped", { address: hex(page) });
    for (const page of pages) {
      const frame: Frame = { at: this.allocate(), pages: [page], code: false };
      this.pages.set(page, { frame, access });
    }
  }

  /** Shows the pages of `[of, of + size)` a second time at `at`, with `access` of its own. Both page-aligned. */
  alias(at: Addr, of: Addr, size: number, access: Access): void {
    const pages = pagesOf(at, size);
    for (const page of pages) if (this.pages.has(page)) refuse("already-mapped", { address: hex(page) });
    this.requireMapped(of, size);
    for (const page of pages) {
      const { frame } = this.pageAt((of + (page - at)) as Addr);
      frame.pages.push(page);
      this.pages.set(page, { frame, access });
    }
  }

  unmap(at: Addr, size: number): void {
    this.requireMapped(at, size);
    for (const page of pagesOf(at, size)) {
      const { frame } = this.pageAt(page);
      if (frame.code) this.listener.codeWritten(page, PAGE_SIZE);
      this.pages.delete(page);
      frame.pages.splice(frame.pages.indexOf(page), 1);
      if (frame.pages.length === 0) this.free.push(frame.at);
      this.listener.revoked(page);
    }
  }

  protect(at: Addr, size: number, access: Access): void {
    this.requireMapped(at, size);
    for (const page of pagesOf(at, size)) {
      const { frame } = this.pageAt(page);
      if (frame.code) this.listener.codeWritten(page, PAGE_SIZE);
      this.pages.set(page, { frame, access });
      this.listener.revoked(page);
    }
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

  write(at: Addr, bytes: Uint8Array): void {
    this.forEachPart(at, bytes.length, (host, done, length, frame) => {
      this.host.u8.set(bytes.subarray(done, done + length), host);
      if (frame.code) this.reportCode(frame, host - frame.at, length);
    });
  }

  /** A little-endian 64-bit word, unsigned. */
  readWord(at: Addr): bigint {
    const bytes = this.read(at, 8);
    return new DataView(bytes.buffer).getBigUint64(0, true);
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

  private pageAt(at: Addr): Page {
    return this.pages.get(pageOf(at)) ?? refuse("unmapped", { address: hex(at) });
  }

  /** Nothing is half-done: what changes several pages asks for all of them first. */
  private requireMapped(at: Addr, size: number): void {
    for (const page of pagesOf(at, size))
      if (!this.pages.has(page)) refuse("unmapped", { address: hex(page < at ? at : page) });
  }

  private reportCode(frame: Frame, offset: number, size: number): void {
    for (const page of frame.pages) this.listener.codeWritten((page + offset) as Addr, size);
  }

  private forEachPart(
    at: Addr,
    size: number,
    visit: (host: HostAddress, done: number, length: number, frame: Frame) => void,
  ): void {
    this.requireMapped(at, size);
    for (let done = 0; done < size; ) {
      const here = (at + done) as Addr;
      const within = here - pageOf(here);
      const length = Math.min(size - done, PAGE_SIZE - within);
      const { frame } = this.pageAt(here);
      visit(frame.at + within, done, length, frame);
      done += length;
    }
  }

  private allocate(): HostAddress {
    const reused = this.free.pop();
    if (reused === undefined) return this.host.reserve(PAGE_SIZE, PAGE_SIZE);
    this.host.u8.fill(0, reused, reused + PAGE_SIZE);
    return reused;
  }
}
