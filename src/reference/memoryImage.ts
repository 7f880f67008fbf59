// All that a machine has mapped, as one piece of memory that a reference can have a copy of: where each frame is in
// it, and which of its parts show at which addresses.
//
// A frame that shows at several addresses is in it once, so that the copy's pages share it as well.

import { type Addr, offset, PAGE_SIZE, pageOf } from "../base/addr.ts";
import { bug } from "../base/refuse.ts";
import type { Machine } from "../machine/machine.ts";
import type { Access, Frame } from "../machine/memory.ts";

/** Neighbouring pages of one permission whose frames are neighbours too. */
export interface Run {
  readonly at: Addr;
  /** Of its first frame in the image. */
  readonly offset: number;
  /** In bytes. */
  readonly size: number;
  readonly access: Access;
}

/** A byte of memory in which two copies differ. */
export interface ByteDifference {
  readonly at: Addr;
  readonly ours: number;
  readonly theirs: number;
}

/** More bytes than this help nobody. */
const MOST_SHOWN = 64;

export class MemoryImage {
  /** By address. */
  readonly runs: readonly Run[];
  /** In bytes. */
  readonly size: number;
  readonly machine: Machine;
  private readonly frames: Frame[] = [];
  private readonly places = new Map<Addr, number>();

  /** Of what is mapped now; what is in it is looked at later. */
  constructor(machine: Machine) {
    this.machine = machine;
    const offsets = new Map<Frame, number>();
    const runs: Run[] = [];
    for (const [at, { frame, access }] of [...machine.memory.entries()].sort(([a], [b]) => a - b)) {
      const place = offsets.get(frame) ?? PAGE_SIZE * (this.frames.push(frame) - 1);
      offsets.set(frame, place);
      this.places.set(at, place);
      const last = runs.at(-1);
      if (last !== undefined && goesOn(last, at, place, access))
        runs[runs.length - 1] = { ...last, size: last.size + PAGE_SIZE };
      else runs.push({ at, offset: place, size: PAGE_SIZE, access });
    }
    this.runs = runs;
    this.size = PAGE_SIZE * this.frames.length;
  }

  /** Whether a copy that was made for `other` serves. */
  isLaidOutAs(other: MemoryImage): boolean {
    return JSON.stringify(this.runs) === JSON.stringify(other.runs);
  }

  /** Where `at` is in the image. Its page must be mapped. */
  placeOf(at: Addr): number {
    const page = pageOf(at);
    return (this.places.get(page) ?? bug("a place in memory that is not mapped")) + at - page;
  }

  /** Makes `copy` hold what the machine's memory holds. Returns the runs in which anything has changed. */
  copyTo(copy: Uint8Array): Run[] {
    const { u8 } = this.machine.host;
    const changed = new Set<number>();
    for (const [n, { at }] of this.frames.entries()) {
      const ours = u8.subarray(at, at + PAGE_SIZE);
      const theirs = copy.subarray(n * PAGE_SIZE, (n + 1) * PAGE_SIZE);
      if (Buffer.compare(ours, theirs) === 0) continue;
      theirs.set(ours);
      changed.add(n * PAGE_SIZE);
    }
    if (changed.size === 0) return [];
    return this.runs.filter((run) =>
      [...changed].some((at) => at >= run.offset && at < run.offset + run.size),
    );
  }

  /** The first bytes, by address, in which `copy` differs from the machine's memory. */
  differences(copy: Uint8Array): ByteDifference[] {
    const { u8 } = this.machine.host;
    const found: ByteDifference[] = [];
    for (const { at, offset: from, size } of this.runs) {
      for (let done = 0; done < size; done += PAGE_SIZE) {
        const frame = this.frames[(from + done) / PAGE_SIZE]!.at;
        const ours = u8.subarray(frame, frame + PAGE_SIZE);
        const theirs = copy.subarray(from + done, from + done + PAGE_SIZE);
        if (Buffer.compare(ours, theirs) === 0) continue;
        for (let n = 0; n < PAGE_SIZE && found.length < MOST_SHOWN; n++)
          if (ours[n] !== theirs[n])
            found.push({ at: offset(at, done + n), ours: ours[n]!, theirs: theirs[n]! });
      }
    }
    return found;
  }
}

function goesOn(run: Run, at: Addr, place: number, access: Access): boolean {
  const { write, execute, user } = run.access;
  return (
    at === run.at + run.size &&
    place === run.offset + run.size &&
    access.write === write &&
    access.execute === execute &&
    access.user === user
  );
}
