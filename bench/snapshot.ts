// What a snapshot and coming back to it cost: the second half of `fentrylab bench engine`.
//
// The guest's own code, in regions, dirties a line on each of ten pages; there are four vCPUs, of which one runs.
// Beside it, where there is one, native Unicorn doing what its users do: save a context, copy the ten pages out, dirty
// them, copy them back, restore the context. (It has to be told which pages; and one vCPU is all it has.)

import { addr, offset, PAGE_SIZE } from "../src/base/addr.ts";
import { parseHexBytes } from "../src/base/bytes.ts";
import { bug } from "../src/base/refuse.ts";
import { DIRECT_MAP, KERNEL_TEXT } from "../src/image/layout.ts";
import { Machine } from "../src/machine/machine.ts";
import { PROT, type Unicorn } from "../src/reference/unicornLibrary.ts";
import { type Act, type Sampling, type Spread, sampleInTurns, spread } from "./spread.ts";

const PAGES = 512;
const DIRTIED = 10;
const VCPUS = 4;
/** Dirtied pages lie apart, and do not share an entry of a TLB. */
const STRIDE = 37;
/** How many snapshots are kept to see what one occupies. */
const KEPT = 20_000;
/** Repetitions between two looks at the clock. */
const BATCH = 100;

/** add %rdx,%rcx; mov %rcx,(%rbx); add $(37 * 4096),%rbx; sub $1,%rdx; jne back; vmcall. */
const DIRTY = parseHexBytes("48 01 d1 48 89 0b 48 81 c3 00 50 02 00 48 83 ea 01 75 ed 0f 01 c1");
/** Of the vmcall, where Unicorn is to stop. */
const DIRTY_END = 19;

/** What is timed. Where pages are dirtied, that is counted. */
export const SNAPSHOT_ROWS = {
  /** Take a snapshot, restore it, dispose of it. */
  clean: "snapshot+restore, clean",
  /** No snapshots. */
  dirty: "dirty ten pages",
  /** Snapshot, dirty, restore; then with the state's hash before the restore; then ten other pages each time. */
  dirtied: "snapshot+restore, ten pages",
  hashed: "snapshot+restore, ten, hash",
  fresh: "snapshot+restore, ten new",
  /** Dirty, make a snapshot with what differs, restore an older one; then with the state's hash before. */
  kept: "kept snapshot, ten pages",
  keptHashed: "kept snapshot, ten, hash",
} as const;
export type SnapshotRow = keyof typeof SNAPSHOT_ROWS;
/** What Unicorn can do as well. */
const PEER_ROWS = ["clean", "dirty", "dirtied"] as const;
type PeerRow = (typeof PEER_ROWS)[number];

export interface SnapshotCost {
  /** Microseconds. */
  readonly fentrylab: Spread;
  /** Microseconds of the same with Unicorn, and how many times as long that takes; where both can do it. */
  readonly unicorn?: Spread;
  readonly ratio?: Spread;
}

export interface SnapshotReport {
  readonly vcpus: number;
  readonly costs: Readonly<Record<SnapshotRow, SnapshotCost>>;
  /** Of process memory, for each of many snapshots that are kept and differ on ten pages. */
  readonly bytesPerSnapshot: number;
}

/** A row on each engine. */
interface Pair {
  readonly row: SnapshotRow;
  readonly own: () => void;
  readonly peer: (() => void) | undefined;
}

/** How many things `benchSnapshots` samples. */
export function countSnapshotActs(unicorn: Unicorn | undefined): number {
  return Object.keys(SNAPSHOT_ROWS).length + (unicorn === undefined ? 0 : PEER_ROWS.length);
}

export function benchSnapshots(
  unicorn: Unicorn | undefined,
  sampling: Sampling,
  sampled: (what: string) => void,
): SnapshotReport {
  const own = ownRows();
  const peer = unicorn && peerRows(unicorn);
  try {
    const rows = Object.keys(SNAPSHOT_ROWS) as SnapshotRow[];
    const peerActs: Partial<Record<SnapshotRow, () => void>> = peer?.acts ?? {};
    const pairs = rows.map((row): Pair => ({ row, own: own[row], peer: peerActs[row] }));
    const costs = pairs.map((pair) => [pair.row, measure(pair, sampling, sampled)] as const);
    return {
      vcpus: VCPUS,
      costs: Object.fromEntries(costs) as Record<SnapshotRow, SnapshotCost>,
      bytesPerSnapshot: occupied(),
    };
  } finally {
    peer?.close();
  }
}

function measure(
  { row, own, peer }: Pair,
  sampling: Sampling,
  sampled: (what: string) => void,
): SnapshotCost {
  const what = SNAPSHOT_ROWS[row];
  const acts = [repeated(`${what} on fentrylab`, own)];
  if (peer !== undefined) acts.push(repeated(`${what} on unicorn`, peer));
  const [ours, theirs] = sampleInTurns(acts, sampling, sampled).map((rates) =>
    rates.map((rate) => 1000 / (BATCH * rate)),
  ) as [number[], number[]?];
  if (theirs === undefined) return { fentrylab: spread(ours) };
  const ratio = spread(theirs.map((cost, round) => cost / ours[round]!));
  return { fentrylab: spread(ours), unicorn: spread(theirs), ratio };
}

function repeated(what: string, act: () => void): Act {
  const once = () => {
    for (let n = 0; n < BATCH; n++) act();
  };
  return { what, once };
}

const page = (n: number) => offset(DIRECT_MAP, n * PAGE_SIZE);

interface Guest {
  readonly machine: Machine;
  /** Dirties ten pages, STRIDE apart from `first` on. */
  readonly dirty: (first?: number) => void;
}

function makeGuest(): Guest {
  const machine = new Machine({ vcpus: VCPUS });
  machine.memory.map(DIRECT_MAP, PAGES * PAGE_SIZE, { write: true, execute: false, user: false });
  machine.memory.map(KERNEL_TEXT, PAGE_SIZE, { write: false, execute: true, user: false });
  machine.memory.write(KERNEL_TEXT, DIRTY);
  const vcpu = machine.vcpus[0]!;
  let times = 0;
  const dirty = (first = 0) => {
    vcpu.rip = KERNEL_TEXT;
    vcpu.setNumber("rcx", ++times * 64); // no two lines become equal
    vcpu.setNumber("rbx", page(first) + 64 * (times % 64));
    vcpu.setNumber("rdx", DIRTIED);
    if (vcpu.run().kind !== "hypercall") bug("the guest that dirties pages stopped early");
  };
  return { machine, dirty };
}

function ownRows(): Record<SnapshotRow, () => void> {
  const undoing = (change: (guest: Guest) => void, prepare: (guest: Guest) => void = () => {}) => {
    const guest = makeGuest();
    prepare(guest);
    return () => {
      const snapshot = guest.machine.snapshot();
      change(guest);
      guest.machine.restore(snapshot);
      snapshot.dispose();
    };
  };
  const keeping = (hash: boolean) => {
    const { machine, dirty } = makeGuest();
    if (hash) machine.hash();
    const base = machine.snapshot();
    return () => {
      dirty();
      if (hash) machine.hash();
      const snapshot = machine.snapshot();
      machine.restore(base);
      snapshot.dispose();
    };
  };
  const { dirty } = makeGuest();
  let first = 0;
  return {
    clean: undoing(() => {}),
    dirty: () => dirty(),
    dirtied: undoing((guest) => guest.dirty()),
    hashed: undoing(
      (guest) => {
        guest.dirty();
        guest.machine.hash();
      },
      (guest) => void guest.machine.hash(),
    ),
    // No page before all the others.
    fresh: undoing((guest) => guest.dirty(first++ % STRIDE)),
    kept: keeping(false),
    keptHashed: keeping(true),
  };
}

function peerRows(unicorn: Unicorn): {
  acts: Record<PeerRow, () => void>;
  close: () => void;
} {
  const engine = unicorn.open();
  engine.mapMemory(DIRECT_MAP, PAGES * PAGE_SIZE, PROT.READ | PROT.WRITE);
  engine.mapMemory(KERNEL_TEXT, PAGE_SIZE, PROT.READ | PROT.EXEC);
  engine.writeMemory(KERNEL_TEXT, DIRTY);
  const end = addr(KERNEL_TEXT + DIRTY_END);
  let times = 0;
  const dirty = () => {
    engine.regWrite("rcx", BigInt(++times * 64));
    engine.regWrite("rbx", BigInt.asUintN(64, BigInt(page(0) + 64 * (times % 64))));
    engine.regWrite("rdx", BigInt(DIRTIED));
    const code = engine.start(KERNEL_TEXT, end);
    if (code !== "UC_ERR_OK") bug(`the guest that dirties pages ended with ${code}`);
  };
  // Saved once, which flatters Unicorn: the binding would allocate a context each time.
  const context = engine.saveContext();
  const copies: Uint8Array[] = [];
  const undoing = (change: () => void) => () => {
    for (let n = 0; n < DIRTIED; n++) copies[n] = engine.readMemory(page(n * STRIDE), PAGE_SIZE);
    change();
    for (let n = 0; n < DIRTIED; n++) engine.writeMemory(page(n * STRIDE), copies[n]!);
    engine.restoreContext(context);
  };
  return { acts: { clean: undoing(() => {}), dirty, dirtied: undoing(dirty) }, close: () => engine.close() };
}

/** Bytes of process memory outside the machine's own, for each of KEPT snapshots; every fifth begins a branch. */
function occupied(): number {
  const { machine, dirty } = makeGuest();
  const base = machine.snapshot();
  const kept = Array.from({ length: KEPT }, (_, n) => {
    if (n % 5 === 0) machine.restore(base);
    dirty();
    return machine.snapshot();
  });
  return machine.snapshotStats.bytes / kept.length;
}
