// Which frames were written since the current snapshot, and what was in them then.
//
// A frame's first write comes through here, because no TLB has write access to it yet, and saves a copy of it
// beside. From then on it is followed: at the next snapshot or restore it is compared with the copy, line by
// line. It stays followed afterwards, because comparing costs far less than another first write; one that has
// not changed for some time is given up, and write access to it revoked. The states of vCPUs are frames that
// are always followed.

import { type Addr, PAGE_SIZE } from "../base/addr.ts";
import { STATE } from "../x86/state.ts";
import type { Host, HostAddress } from "./host.ts";
import { ENTRY, GATHERED, LINE_SIZE, LINES_PER_PAGE, type LineKernels } from "./lineKernels.ts";
import type { Frame } from "./memory.ts";

/** When a frame is no longer followed: comparing it that often costs about as much as its next first write. */
const MAX_IDLE = 8;
const INITIAL_CAPACITY = 256;
const PAGE_SHIFT = Math.log2(PAGE_SIZE);
const LINE_SHIFT = Math.log2(LINE_SIZE);
/** Frames whose lines are gathered at a time. */
const BATCH = 16;
const GATHERED_BYTES = BATCH * LINES_PER_PAGE * GATHERED.size;

/** The lines of a page that hashes count. */
const ALL_LINES = -1n;
const VCPU_LINES = STATE.end / LINE_SIZE;
/** All of a vCPU's state but the line with the count of what it has executed, which is history. */
const HASHED_VCPU_LINES = 2n ** BigInt(VCPU_LINES) - 1n - 2n ** BigInt(STATE.retired / LINE_SIZE);

/** Bytes of a frame that were changed back, of a frame that code was decoded from. */
export interface ChangedCode {
  readonly frame: Frame;
  readonly offset: number;
  readonly size: number;
}

export interface Place {
  readonly key: number;
  readonly hashed: bigint;
}

export class Tracker {
  private readonly host: Host;
  private readonly kernels: LineKernels;
  private readonly revokeWrites: (page: Addr) => void;
  /** Those that are followed; each knows its place here. vCPUs come first. */
  private readonly followed: Frame[] = [];
  private readonly vcpus: number;
  /** Every frame that was ever followed, by its page in host memory: what deltas can speak of. */
  private readonly frames: Frame[] = [];
  private readonly freeCopies: HostAddress[] = [];
  private list: HostAddress;
  private capacity = INITIAL_CAPACITY;
  /** How often memory was compared since it was last known to differ nowhere: 0, or 1 for once or more. */
  private compared = 0;
  private readonly gathered: HostAddress;

  /** `states` are the host addresses of the vCPUs' states. */
  constructor(
    host: Host,
    kernels: LineKernels,
    states: readonly HostAddress[],
    revokeWrites: (page: Addr) => void,
  ) {
    this.host = host;
    this.kernels = kernels;
    this.revokeWrites = revokeWrites;
    this.list = host.reserve(INITIAL_CAPACITY * ENTRY.size);
    this.gathered = host.reserve(GATHERED_BYTES);
    this.vcpus = states.length;
    states.forEach((at, index) => {
      this.follow({ at, pages: [], code: false, tracked: -1 }, placeOfVcpu(index), VCPU_LINES);
    });
    this.diff(false); // parks them
    this.commit();
  }

  /** How many frames are followed, the vCPUs' included. */
  get count(): number {
    return this.followed.length;
  }

  /** Begins to follow `frame`, whose content has not changed yet. */
  follow(frame: Frame, place = placeOf(frame), lines = LINES_PER_PAGE): void {
    const { host } = this;
    if (this.followed.length === this.capacity) this.grow();
    const copy = this.freeCopies.pop() ?? host.reserve(PAGE_SIZE, PAGE_SIZE);
    host.u8.copyWithin(copy, frame.at, frame.at + PAGE_SIZE);
    frame.tracked = this.followed.push(frame) - 1;
    this.frames[frame.at >>> PAGE_SHIFT] = frame;
    const entry = this.entry(frame);
    host.i32[(entry + ENTRY.live) >> 2] = frame.at;
    host.i32[(entry + ENTRY.saved) >> 2] = copy;
    host.setNumber(entry + ENTRY.changed, 0);
    host.i32[(entry + ENTRY.bytes) >> 2] = lines * LINE_SIZE;
    host.i32[(entry + ENTRY.idle) >> 2] = MAX_IDLE; // what is written once only is soon given up
    this.setPlace(frame, place);
  }

  /** Says where hashes find `frame`, which is followed; `hashed` is zero if they do not count it. */
  setPlace(frame: Frame, { key, hashed }: Place): void {
    const entry = this.entry(frame);
    this.host.setNumber(entry + ENTRY.key, key);
    this.host.i64[(entry + ENTRY.hashed) >> 3] = hashed;
  }

  /** Where the content is that `frame` had at the current snapshot. */
  savedOf(frame: Frame): HostAddress {
    return frame.tracked < 0 ? frame.at : this.copyOf(frame);
  }

  /** Where the state is that a vCPU had at the current snapshot. */
  savedVcpu(index: number): HostAddress {
    return this.copyOf(this.followed[index]!);
  }

  /** A bit for each line of a vCPU's state that has changed. */
  changedVcpuLines(index: number): number {
    return this.host.i32[(this.list + index * ENTRY.size + ENTRY.changed) >> 2]!;
  }

  /**
   * Parks the vCPUs' states, and finds what has changed, for the methods below. Unless memory may have been `written`
   * since the last time, what was found then and what `target` gave out is all.
   */
  diff(written: boolean): void {
    const { kernels, list } = this;
    if (written) this.compared = 1;
    kernels.park(list, this.vcpusEnd);
    kernels.diff(list, written ? this.end : this.vcpusEnd);
  }

  /** What the lines that changed add to the hash. */
  hashChange(): bigint {
    return this.kernels.hashChange(this.list, this.end);
  }

  /** Host addresses of all lines that changed and of their copies, with hashes of both. */
  forEachChange(
    visit: (live: HostAddress, saved: HostAddress, liveHash: number, savedHash: number) => void,
  ): void {
    const { host, gathered, end } = this;
    for (let from = this.list; from < end; from += BATCH * ENTRY.size) {
      const last = this.kernels.gather(from, Math.min(end, from + BATCH * ENTRY.size), gathered);
      for (let record = gathered; record < last; record += GATHERED.size) {
        const at = record >>> 2;
        visit(host.i32[at]! >>> 0, host.i32[at + 1]! >>> 0, host.i32[at + 2]!, host.i32[at + 3]!);
      }
    }
  }

  /** Copies what has changed: the present state is the one to compare with from now on. */
  commit(): void {
    this.settle(this.kernels.commit);
  }

  /** Puts back what has changed; returns where that was code. */
  undo(): ChangedCode[] {
    const code: ChangedCode[] = [];
    for (const frame of this.followed)
      if (frame.code && this.hasChanged(frame)) this.findChangedCode(frame, code);
    this.settle(this.kernels.undo);
    return code;
  }

  /** Where to write a line of another snapshot, at `line` of host memory, so that the next `undo` brings it about. */
  target(line: HostAddress): HostAddress {
    const offset = line & (PAGE_SIZE - 1);
    const frame = this.frames[line >>> PAGE_SHIFT]!;
    // Code is compared in the end, so that only what is different then is decoded anew.
    if (frame.tracked < 0 && frame.code) this.follow(frame);
    if (frame.tracked < 0) return line;
    const bit = offset >> LINE_SHIFT;
    this.host.i32[((this.entry(frame) + ENTRY.changed) >> 2) + (bit >> 5)]! |= 1 << (bit & 31);
    return this.copyOf(frame) + offset;
  }

  private get end(): HostAddress {
    return this.list + this.followed.length * ENTRY.size;
  }

  private get vcpusEnd(): HostAddress {
    return this.list + this.vcpus * ENTRY.size;
  }

  private entry(frame: Frame): HostAddress {
    return this.list + frame.tracked * ENTRY.size;
  }

  private copyOf(frame: Frame): HostAddress {
    return this.host.i32[(this.entry(frame) + ENTRY.saved) >> 2]! >>> 0;
  }

  private hasChanged(frame: Frame): boolean {
    const at = (this.entry(frame) + ENTRY.changed) >> 2;
    return (this.host.i32[at]! | this.host.i32[at + 1]!) !== 0;
  }

  private findChangedCode(frame: Frame, into: ChangedCode[]): void {
    const { u8, i32 } = this.host;
    const copy = this.copyOf(frame);
    const mask = (this.entry(frame) + ENTRY.changed) >> 2;
    for (let line = 0; line < LINES_PER_PAGE; line++) {
      if (((i32[mask + (line >> 5)]! >>> (line & 31)) & 1) === 0) continue;
      const end = (line + 1) * LINE_SIZE;
      for (let at = line * LINE_SIZE; at < end; at++) {
        const offset = at;
        while (at < end && u8[frame.at + at] !== u8[copy + at]) at++;
        if (at > offset) into.push({ frame, offset, size: at - offset });
      }
    }
  }

  /** Makes both versions the same by `copy`. Gives up frames in which nothing has changed for long; never vCPUs. */
  private settle(copy: LineKernels["undo"]): void {
    copy(this.list, this.vcpusEnd, 0);
    const longestIdle = copy(this.vcpusEnd, this.end, this.compared);
    this.compared = 0;
    if (longestIdle <= MAX_IDLE) return;
    const { i32 } = this.host;
    for (let n = this.followed.length - 1; n >= this.vcpus; n--) {
      const frame = this.followed[n]!;
      if (i32[(this.entry(frame) + ENTRY.idle) >> 2]! > MAX_IDLE) this.giveUp(frame);
    }
  }

  /** The last one takes its place. */
  private giveUp(frame: Frame): void {
    const place = frame.tracked;
    this.freeCopies.push(this.copyOf(frame));
    for (const page of frame.pages) this.revokeWrites(page);
    frame.tracked = -1;
    const last = this.followed.pop()!;
    if (last === frame) return;
    const from = this.entry(last);
    last.tracked = place;
    this.followed[place] = last;
    this.host.u8.copyWithin(this.entry(last), from, from + ENTRY.size);
  }

  private grow(): void {
    const before = this.list;
    this.list = this.host.reserve(2 * this.capacity * ENTRY.size);
    this.host.u8.copyWithin(this.list, before, before + this.capacity * ENTRY.size);
    this.capacity *= 2;
  }
}

/** What hashes do not count. */
export const NOWHERE: Place = { key: 0, hashed: 0n };

/** A frame is known to hashes by the lowest page that shows it; unmapped ones are not. */
export function placeOf({ pages }: { readonly pages: readonly Addr[] }): Place {
  return pages.length === 0 ? NOWHERE : { key: Math.min(...pages), hashed: ALL_LINES };
}

/** No canonical address. */
export function placeOfVcpu(index: number): Place {
  return { key: 2 ** 50 + index * PAGE_SIZE, hashed: HASHED_VCPU_LINES };
}
