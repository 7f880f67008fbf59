// Snapshots of a machine: guest memory with its mappings, the vCPUs, and the record of true calls.
//
// Any number of them, restored in any order; they form a tree. The present state is one of them, `current`,
// plus what the tracker has seen change since. Only that is looked at when a snapshot is made, and when one is
// restored, only that and what the snapshots on the way differ by. Not part of a snapshot: decoded and compiled
// code, which follows memory, and what TypeScript keeps elsewhere.

import type { Addr } from "../base/addr.ts";
import { refuse } from "../base/refuse.ts";
import { FLAG } from "../x86/register.ts";
import { STATE } from "../x86/state.ts";
import type { CallRecord, Chain } from "./callRecord.ts";
import { Deltas, EMPTY_DELTA } from "./delta.ts";
import type { Host, HostAddress } from "./host.ts";
import { type Change, Journal } from "./journal.ts";
import { type LineKernels, makeLineKernels } from "./lineKernels.ts";
import { LineStore } from "./lineStore.ts";
import type { Frame, Memory, MemoryTracker, Page } from "./memory.ts";
import { NO_DIFFERENCE, pathBetween, prune, SnapshotNode } from "./snapshotTree.ts";
import { StateHash } from "./stateHash.ts";
import { placeOf, Tracker } from "./tracker.ts";
import type { Vcpu } from "./vcpu.ts";

/** A state to come back to. */
export class Snapshot {
  /** For the machine that made it; undefined once it is disposed of. */
  node: SnapshotNode | undefined;
  readonly owner: Snapshots;

  constructor(owner: Snapshots, node: SnapshotNode) {
    this.owner = owner;
    this.node = node;
  }

  /** Gives back what it holds. It cannot be restored any more; doing this again does nothing. */
  dispose(): void {
    this.owner.dispose(this);
  }
}

/** What snapshots occupy outside the machine's memory. */
export interface SnapshotStats {
  /** Those made and not disposed of. */
  readonly snapshots: number;
  /** Different lines of 64 bytes held. */
  readonly lines: number;
  /** Cells of 64 bytes that say which lines differ. */
  readonly cells: number;
  /** Of process memory for all that, in use or ready to be. */
  readonly bytes: number;
  /** Frames followed at present, the vCPUs' states included. */
  readonly followed: number;
}

export class Snapshots implements MemoryTracker {
  private readonly host: Host;
  private readonly memory: Memory;
  private readonly vcpus: readonly Vcpu[];
  private readonly calls: CallRecord;
  private readonly kernels: LineKernels;
  private readonly tracker: Tracker;
  private readonly stateHash: StateHash;
  private readonly lines = new LineStore();
  private readonly deltas = new Deltas(this.lines);
  /** What was mapped otherwise at the current snapshot; the frames whose pages have changed since; the stacks. */
  private readonly pages = new Journal<Addr, Page>();
  private readonly displaced = new Set<Frame>();
  private readonly chains = new Journal<number, Chain>();
  /** What `go` is going to bring about; empty otherwise. */
  private readonly nextPages = new Map<Addr, Page | undefined>();
  private readonly nextChains = new Map<number, Chain | undefined>();
  private current = new SnapshotNode(undefined, NO_DIFFERENCE, false);
  private inUse = 0;

  /** From now on all writes are followed. */
  constructor(host: Host, memory: Memory, vcpus: readonly Vcpu[], calls: CallRecord) {
    this.host = host;
    this.memory = memory;
    this.vcpus = vcpus;
    this.calls = calls;
    this.kernels = makeLineKernels(host);
    this.park();
    const states = vcpus.map(({ cpu }) => cpu);
    this.tracker = new Tracker(host, this.kernels, states, (page) => {
      for (const vcpu of vcpus) vcpu.revokeWrites(page);
    });
    this.stateHash = new StateHash(this.kernels, memory, vcpus, this.tracker);
    for (const vcpu of vcpus) vcpu.flushTlb();
    memory.tracker = this;
    calls.journal = this.chains;
  }

  get stats(): SnapshotStats {
    return {
      snapshots: this.inUse,
      lines: this.lines.count,
      cells: this.deltas.count,
      bytes: this.lines.bytes + this.deltas.bytes,
      followed: this.tracker.count,
    };
  }

  track(frame: Frame): void {
    this.tracker.follow(frame);
  }

  remapping(page: Addr, before: Page | undefined): void {
    this.pages.note(page, before);
    if (before !== undefined) this.displaced.add(before.frame);
  }

  /** The present state becomes a child of the snapshot that it was made from. */
  take(): Snapshot {
    this.look();
    const pages = this.changedPages();
    const hash = this.current.hash === undefined ? undefined : this.currentHash(this.current.hash, pages);
    const chains = this.changedChains();
    const before = this.current;
    this.current = new SnapshotNode(before, { delta: this.gather(), pages, chains }, true);
    this.current.hash = hash;
    this.tracker.commit();
    this.settle();
    prune(before, this.current, this.deltas);
    this.inUse++;
    return new Snapshot(this, this.current);
  }

  restore({ owner, node }: Snapshot): void {
    if (owner !== this) refuse("snapshot-foreign", {});
    if (node === undefined) refuse("snapshot-disposed", {});
    const written = this.park();
    const before = this.current;
    this.go(node);
    this.current = node;
    this.tracker.diff(written);
    const differing = this.vcpus.filter((_, index) => this.tracker.hasVcpuChanged(index));
    for (const vcpu of differing)
      if (!sameRights(this.host, vcpu.cpu, this.tracker.savedVcpu(vcpu.index))) vcpu.flushTlb();
    for (const { frame, offset, size } of this.tracker.undo()) this.memory.reportCode(frame, offset, size);
    for (const vcpu of differing) vcpu.unpark();
    this.settle();
    prune(before, node, this.deltas);
  }

  hash(): bigint {
    this.look();
    const pages = this.changedPages();
    if (this.current.hash === undefined) {
      const whole = this.stateHash.whole();
      this.current.hash = BigInt.asUintN(64, whole - this.stateHash.change(pages, this.displaced));
      return whole;
    }
    return this.currentHash(this.current.hash, pages);
  }

  dispose(snapshot: Snapshot): void {
    const { node } = snapshot;
    if (node === undefined) return;
    snapshot.node = undefined;
    node.inUse = false;
    this.inUse--;
    prune(node, this.current, this.deltas);
  }

  /** Sees what has changed. Between runs, only vCPUs change without our hearing of it. */
  private look(): void {
    this.tracker.diff(this.park());
  }

  /** Says whether memory may have been written since the last time. */
  private park(): boolean {
    let written = this.memory.written;
    this.memory.written = false;
    for (const vcpu of this.vcpus) {
      written ||= vcpu.hasRun;
      vcpu.park(this.kernels);
    }
    return written;
  }

  private currentHash(before: bigint, pages: readonly Change<Addr, Page>[]): bigint {
    return BigInt.asUintN(64, before + this.stateHash.change(pages, this.displaced));
  }

  /** What is mapped otherwise than at the current snapshot; the frames concerned are in `displaced` afterwards. */
  private changedPages(): readonly Change<Addr, Page>[] {
    const changes = this.pages.changes((page) => this.memory.find(page));
    for (const { after } of changes) if (after !== undefined) this.displaced.add(after.frame);
    return changes;
  }

  private changedChains(): readonly Change<number, Chain>[] {
    return this.chains.changes((stack) => this.calls.get(stack));
  }

  /** What the tracker found changed, as a delta. */
  private gather(): number {
    const { host, lines, deltas } = this;
    let [delta, size] = [EMPTY_DELTA, 0];
    this.tracker.forEachChange((live, saved, liveHash, savedHash) => {
      const before = lines.hold(host, saved, savedHash);
      delta = deltas.with(delta, size++, live, before, lines.hold(host, live, liveHash));
    });
    return delta;
  }

  /** Brings about mappings and call chains of `node`, and its memory as far as it can be written before the undo. */
  private go(node: SnapshotNode): void {
    const { nextPages, nextChains } = this;
    for (const { key, before } of this.changedPages()) nextPages.set(key, before);
    for (const { key, before } of this.changedChains()) nextChains.set(key, before);
    const { up, down } = pathBetween(this.current, node);
    for (const { delta, pages, chains } of up) {
      this.deltas.forEach(delta, (at, before) => this.write(at, before));
      for (const { key, before } of pages) nextPages.set(key, before);
      for (const { key, before } of chains) nextChains.set(key, before);
    }
    for (const { delta, pages, chains } of down) {
      this.deltas.forEach(delta, (at, _, after) => this.write(at, after));
      for (const { key, after } of pages) nextPages.set(key, after);
      for (const { key, after } of chains) nextChains.set(key, after);
    }
    for (const [page, to] of nextPages) if (this.memory.find(page) !== to) this.memory.change(page, to);
    for (const [stack, chain] of nextChains) this.calls.set(stack, chain);
    if (nextPages.size > 0) nextPages.clear();
    if (nextChains.size > 0) nextChains.clear();
  }

  private write(line: HostAddress, content: number): void {
    this.lines.copy(content, this.host, this.tracker.target(line));
  }

  /** The present state is the current snapshot's: forgets what has changed since. */
  private settle(): void {
    this.chains.clear();
    if (this.pages.isEmpty) return;
    this.changedPages();
    for (const frame of this.displaced) if (frame.tracked >= 0) this.tracker.setPlace(frame, placeOf(frame));
    this.displaced.clear();
    this.pages.clear();
  }
}

/** What a TLB may let pass besides what mappings say depends on: privilege, CR0, CR4, EFER, and AC of the flags. */
function sameRights(host: Host, a: HostAddress, b: HostAddress): boolean {
  const { i32 } = host;
  const same = (word: number) => i32[(a + word) >> 2] === i32[(b + word) >> 2];
  const flags = host.i32[(a + STATE.systemFlags) >> 2]! ^ host.i32[(b + STATE.systemFlags) >> 2]!;
  return (
    same(STATE.cpl) &&
    same(STATE.cr0) &&
    same(STATE.cr4) &&
    same(STATE.efer) &&
    (flags & Number(FLAG.AC)) === 0
  );
}
