// Snapshots of a machine: guest memory with its mappings, the vCPUs with what they may still see of code that was
// stored to, and the record of true calls.
//
// Any number of them, restored in any order; they form a tree. The present state is one of them, `current`,
// plus what the tracker has seen change since. Only that is looked at when a snapshot is made, and when one is
// restored, only that and what the snapshots on the way differ by. Not part of a snapshot: decoded and compiled
// code, which follows memory, and what TypeScript keeps elsewhere but for what it gave into keeping (kept.ts).

import type { Addr } from "../base/addr.ts";
import { refuse } from "../base/refuse.ts";
import { FLAG } from "../x86/register.ts";
import { STATE } from "../x86/state.ts";
import type { History } from "./byteHistory.ts";
import type { Chain } from "./callChain.ts";
import type { CallRecord } from "./callRecord.ts";
import { Deltas, EMPTY_DELTA } from "./delta.ts";
import type { FetchLogs } from "./fetchLog.ts";
import type { Host, HostAddress } from "./host.ts";
import { type Change, Restorable } from "./journal.ts";
import type { Keeper, Kept } from "./kept.ts";
import { LINE_SIZE, makeLineKernels } from "./lineKernels.ts";
import { LineStore } from "./lineStore.ts";
import type { Frame, Memory, MemoryTracker, Page } from "./memory.ts";
import { NO_DIFFERENCE, pathBetween, prune, SnapshotNode } from "./snapshotTree.ts";
import { StateHash } from "./stateHash.ts";
import { placeOf, Tracker } from "./tracker.ts";
import type { Vcpu } from "./vcpu.ts";

/** Of a vCPU's state: bits of the lines from the system registers on, but for the count of what was executed. */
const SYSTEM_LINES =
  2 ** (STATE.end / LINE_SIZE) - 2 ** Math.floor(STATE.cs / LINE_SIZE) - 2 ** (STATE.retired / LINE_SIZE);

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
  private readonly tracker: Tracker;
  private readonly stateHash: StateHash;
  private readonly lines = new LineStore();
  private readonly deltas = new Deltas(this.lines);
  /** What TypeScript keeps besides: what is mapped, the stacks' chains, what vCPUs may still see of code. */
  private readonly pages: Restorable<Addr, Page>;
  private readonly chains: Restorable<number, Chain>;
  private readonly histories: Restorable<number, History>;
  /** And what others keep beside the machine. */
  private readonly kept: Restorable<Kept<object>, object>;
  /** The frames whose pages have changed since the current snapshot. */
  private readonly displaced = new Set<Frame>();
  private current = new SnapshotNode(undefined, NO_DIFFERENCE, false);
  private inUse = 0;

  /** From now on all writes are followed. */
  constructor(
    host: Host,
    memory: Memory,
    vcpus: readonly Vcpu[],
    calls: CallRecord,
    logs: FetchLogs | undefined,
    keeper: Keeper,
  ) {
    this.host = host;
    this.memory = memory;
    this.vcpus = vcpus;
    this.pages = new Restorable(
      (page) => memory.find(page),
      (page, to) => memory.change(page, to),
    );
    this.chains = new Restorable(
      (stack) => calls.get(stack),
      (stack, to) => calls.set(stack, to),
    );
    this.histories = new Restorable(
      (key) => logs?.get(key),
      (key, to) => logs?.set(key, to),
    );
    this.kept = new Restorable(
      (kept) => kept.value,
      (kept, to) => {
        if (to !== undefined) kept.value = to;
      },
    );
    keeper.journal = this.kept.journal;
    const kernels = makeLineKernels(host);
    this.park();
    const states = vcpus.map(({ cpu }) => cpu);
    this.tracker = new Tracker(host, kernels, states, (page) => {
      for (const vcpu of vcpus) vcpu.revokeWrites(page);
    });
    this.stateHash = new StateHash(kernels, memory, vcpus, this.tracker);
    for (const vcpu of vcpus) vcpu.flushTlb();
    memory.tracker = this;
    calls.journal = this.chains.journal;
    if (logs !== undefined) logs.journal = this.histories.journal;
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
    this.pages.journal.note(page, before);
    if (before !== undefined) this.displaced.add(before.frame);
  }

  /** The present state becomes a child of the snapshot that it was made from. */
  take(): Snapshot {
    this.look();
    const pages = this.changedPages();
    const hash = this.current.hash === undefined ? undefined : this.currentHash(this.current.hash, pages);
    const [chains, histories, kept] = [this.chains.changes(), this.histories.changes(), this.kept.changes()];
    const before = this.current;
    this.current = new SnapshotNode(before, { delta: this.gather(), pages, chains, histories, kept }, true);
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
    const differing = this.vcpus.filter(({ index }) => this.tracker.changedVcpuLines(index) !== 0);
    const bySystem = differing.filter(({ index }) => this.differsBySystem(index));
    for (const vcpu of bySystem)
      if (!sameRights(this.host, vcpu.cpu, this.tracker.savedVcpu(vcpu.index))) vcpu.flushTlb();
    for (const { frame, offset, size } of this.tracker.undo()) this.memory.reportCode(frame, offset, size);
    for (const vcpu of differing) vcpu.unpark(bySystem.includes(vcpu));
    this.settle();
    prune(before, node, this.deltas);
  }

  hash(): bigint {
    // Apart, because it is nearly always nothing, and because what is mapped has a part in it.
    return BigInt.asUintN(64, this.hashWithoutLogs() + this.stateHash.logs());
  }

  private hashWithoutLogs(): bigint {
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
      vcpu.park();
    }
    return written;
  }

  private currentHash(before: bigint, pages: readonly Change<Addr, Page>[]): bigint {
    return BigInt.asUintN(64, before + this.stateHash.change(pages, this.displaced));
  }

  /** What is mapped otherwise than at the current snapshot; the frames concerned are in `displaced` afterwards. */
  private changedPages(): readonly Change<Addr, Page>[] {
    const changes = this.pages.changes();
    for (const { after } of changes) if (after !== undefined) this.displaced.add(after.frame);
    return changes;
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

  /** Brings about what TypeScript keeps of `node`, and its memory as far as it can be written before the undo. */
  private go(node: SnapshotNode): void {
    const { pages, chains, histories, kept, deltas } = this;
    pages.revert(this.changedPages());
    chains.revert(chains.changes());
    histories.revert(histories.changes());
    kept.revert(kept.changes());
    const { up, down } = pathBetween(this.current, node);
    for (const passed of up) {
      deltas.forEach(passed.delta, (at, before) => this.write(at, before));
      pages.revert(passed.pages);
      chains.revert(passed.chains);
      histories.revert(passed.histories);
      kept.revert(passed.kept);
    }
    for (const passed of down) {
      deltas.forEach(passed.delta, (at, _, after) => this.write(at, after));
      pages.repeat(passed.pages);
      chains.repeat(passed.chains);
      histories.repeat(passed.histories);
      kept.repeat(passed.kept);
    }
    pages.apply();
    chains.apply();
    histories.apply();
    kept.apply();
  }

  private write(line: HostAddress, content: number): void {
    this.lines.copy(content, this.host, this.tracker.target(line));
  }

  /** Whether more than a vCPU's registers and status flags is to be changed, as the tracker sees it. */
  private differsBySystem(index: number): boolean {
    const { host, tracker, vcpus } = this;
    if ((tracker.changedVcpuLines(index) & SYSTEM_LINES) !== 0) return true;
    const flags = STATE.systemFlags >> 2;
    return host.i32[(vcpus[index]!.cpu >> 2) + flags] !== host.i32[(tracker.savedVcpu(index) >> 2) + flags];
  }

  /** The present state is the current snapshot's: forgets what has changed since. */
  private settle(): void {
    this.chains.journal.clear();
    this.histories.journal.clear();
    this.kept.journal.clear();
    if (this.pages.journal.isEmpty) return;
    this.changedPages();
    for (const frame of this.displaced) if (frame.tracked >= 0) this.tracker.setPlace(frame, placeOf(frame));
    this.displaced.clear();
    this.pages.journal.clear();
  }
}

const DR7 = STATE.dr + 8 * 7;

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
    (flags & Number(FLAG.AC)) === 0 &&
    // Pages with a data breakpoint are in no TLB: with any that is armed, on either side.
    ((i32[(a + DR7) >> 2]! | i32[(b + DR7) >> 2]!) & 0xff) === 0
  );
}
