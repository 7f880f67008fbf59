// A machine's state as one 64-bit number: what is mapped, with which permissions and as which frame, what is in
// it, and the vCPUs. Equal states have equal hashes however they came about; what was executed does not count.
//
// A frame is known by the lowest page that shows it. Everything contributes to a sum modulo 2^64.

import type { Addr } from "../base/addr.ts";
import type { History } from "./byteHistory.ts";
import { MAX_LOG_BYTES, stretchOf } from "./fetchLog.ts";
import type { Change } from "./journal.ts";
import type { LineKernels } from "./lineKernels.ts";
import type { Access, Frame, Memory, Page } from "./memory.ts";
import { NOWHERE, placeOf, placeOfVcpu, type Tracker } from "./tracker.ts";
import type { Vcpu } from "./vcpu.ts";

/** Bits besides a byte's value, of one in the past of code: that it is such, and that it cannot be seen any more. */
const HISTORY = 0x200;
const UNSEEN = 0x100;

type Mapping = readonly [page: Addr, access: Access];

export class StateHash {
  private readonly kernels: LineKernels;
  private readonly memory: Memory;
  private readonly vcpus: readonly Vcpu[];
  private readonly tracker: Tracker;

  constructor(kernels: LineKernels, memory: Memory, vcpus: readonly Vcpu[], tracker: Tracker) {
    this.kernels = kernels;
    this.memory = memory;
    this.vcpus = vcpus;
    this.tracker = tracker;
  }

  /** Of everything, as it is. vCPUs must be parked. */
  whole(): bigint {
    let sum = 0n;
    for (const frame of new Set(Array.from(this.memory.entries(), ([, page]) => page.frame)))
      sum += this.frameHash(frame.at, this.mappings(frame));
    this.vcpus.forEach(({ cpu }, index) => {
      const { key, hashed } = placeOfVcpu(index);
      sum += this.kernels.hashPage(cpu, key, hashed);
    });
    return BigInt.asUintN(64, sum);
  }

  /**
   * What has been added since the current snapshot. `remapped` is what is mapped otherwise now, `displaced` all
   * frames whose pages or permissions were changed meanwhile; the tracker has its diff.
   */
  change(remapped: readonly Change<Addr, Page>[], displaced: ReadonlySet<Frame>): bigint {
    if (displaced.size === 0) return this.tracker.hashChange();
    const keys = new Set(remapped.map(({ key }) => key));
    const before = new Map<Frame, Mapping[]>();
    for (const frame of displaced)
      before.set(
        frame,
        this.mappings(frame).filter(([page]) => !keys.has(page)),
      );
    for (const { key, before: page } of remapped)
      if (page !== undefined) before.get(page.frame)!.push([key, page.access]);
    let sum = 0n;
    for (const [frame, mappings] of before) {
      if (frame.tracked >= 0) this.tracker.setPlace(frame, NOWHERE);
      sum += this.frameHash(frame.at, this.mappings(frame));
      sum -= this.frameHash(this.tracker.savedOf(frame), mappings);
    }
    return sum + this.tracker.hashChange();
  }

  /** What vCPUs may still see of code that was stored to. */
  logs(): bigint {
    let sum = 0n;
    for (const { log } of this.vcpus) {
      if (log === undefined) continue;
      for (const [stretch, history] of log.entries()) sum += this.historyHash(log.index, stretch, history);
    }
    return sum;
  }

  /** Of each byte at each instant, counted from the present back. */
  private historyHash(vcpu: number, stretch: number, { places, instants, since }: History): bigint {
    let sum = 0n;
    for (const [index, { frame, offset }] of places.entries()) {
      const at = placeOf(frame).key + offset;
      const which = stretchOf(frame, offset) === stretch ? 0 : 1; // a byte is in two stretches at most
      for (const [n, content] of instants.entries()) {
        const age = instants.length - 1 - n;
        const unseen = n < since[index]! ? UNSEEN : 0;
        const when = (vcpu * MAX_LOG_BYTES + age) * 2 + which;
        sum += this.kernels.hashMapping(at, when, HISTORY | unseen | content[index]!);
      }
    }
    return sum;
  }

  /** What the lines of a frame and the pages that show it contribute. */
  private frameHash(content: number, mappings: readonly Mapping[]): bigint {
    const { key, hashed } = placeOf({ pages: mappings.map(([page]) => page) });
    if (mappings.length === 0) return 0n;
    let sum = this.kernels.hashPage(content, key, hashed);
    for (const [page, { write, execute, user }] of mappings) {
      const access = (write ? 1 : 0) | (execute ? 2 : 0) | (user ? 4 : 0);
      sum += this.kernels.hashMapping(page, key, access);
    }
    return sum;
  }

  private mappings(frame: Frame): Mapping[] {
    return frame.pages.map((page) => [page, this.memory.find(page)!.access]);
  }
}
