// What a snapshot and coming back to it cost: `benchSnapshot`.
//
// A guest dirties ten pages, a line on each; four vCPUs. Beside it, where there is one, native Unicorn doing what
// its users do: copy the ten pages out, dirty them, copy them back, restore a saved context. (It has to be told
// which pages; and one vCPU is all it has.)

import { cpus } from "node:os";
import { addr, offset, PAGE_SIZE } from "../src/base/addr.ts";
import { parseHexBytes } from "../src/base/bytes.ts";
import { bug } from "../src/base/refuse.ts";
import { DIRECT_MAP, KERNEL_TEXT } from "../src/image/layout.ts";
import { Machine } from "../src/machine/machine.ts";
import { loadUnicorn, type Missing, PROT, type Unicorn } from "./unicorn.ts";

const PAGES = 512;
const DIRTIED = 10;
const VCPUS = 4;
/** Dirtied pages lie apart, and do not share an entry of a TLB. */
const STRIDE = 37 * PAGE_SIZE;
/** How many snapshots are kept to see what one occupies. */
const KEPT = 20_000;

/** add %rdx,%rcx; mov %rcx,(%rbx); add $stride,%rbx; sub $1,%rdx; jne back; vmcall. */
const DIRTY = parseHexBytes("48 01 d1 48 89 0b 48 81 c3 00 50 02 00 48 83 ea 01 75 ed 0f 01 c1");
/** Of the vmcall, where Unicorn is to stop. */
const DIRTY_END = 19;

export interface SnapshotBenchOptions {
  /** Samples of everything; default 15. */
  readonly rounds?: number;
  /** How often each is done in a sample. Default 2000. */
  readonly repetitions?: number;
  /** Default: the one that is installed. */
  readonly unicorn?: Unicorn | Missing;
  readonly progress?: (done: number, total: number, what: string) => void;
}

/** Microseconds, of all rounds. */
export interface Cost {
  readonly median: number;
  readonly min: number;
  readonly max: number;
}

export const SNAPSHOT_ROWS = ["dirty", "undo", "undoHashed", "archive", "archiveHashed"] as const;
export type SnapshotRow = (typeof SNAPSHOT_ROWS)[number];

const DESCRIPTIONS: Readonly<Record<SnapshotRow, string>> = {
  dirty: "dirty ten pages (included below)",
  undo: "snapshot, dirty, restore",
  undoHashed: "snapshot, dirty, hash, restore",
  archive: "dirty, snapshot, restore another",
  archiveHashed: "dirty, hash, snapshot, restore another",
};

export interface SnapshotReport {
  readonly machine: { readonly node: string; readonly cpu: string; readonly rounds: number };
  readonly unicorn: { readonly version: string } | Missing;
  readonly fentrylab: Readonly<Record<SnapshotRow, Cost>>;
  /** Of process memory, for each of many snapshots that are kept. */
  readonly bytesPerSnapshot: number;
  /** The row `undo` with Unicorn; absent where it is missing. */
  readonly peer?: { readonly dirty: Cost; readonly undo: Cost };
}

/** Measures for some seconds. */
export async function benchSnapshot(options: SnapshotBenchOptions = {}): Promise<SnapshotReport> {
  const { rounds = 15, repetitions = 2000, progress = () => {} } = options;
  const unicorn = options.unicorn ?? (await loadUnicorn());
  const own = ownRows();
  const peer = "missing" in unicorn ? undefined : peerRows(unicorn);
  const rows = [...Object.entries(own), ...Object.entries(peer?.rows ?? {})];
  const samples = rows.map((): number[] => []);
  try {
    for (let round = 0; round <= rounds; round++) {
      rows.forEach(([name, act], n) => {
        const cost = sample(act, repetitions);
        if (round > 0) samples[n]!.push(cost); // the first one warms up
        progress(round * rows.length + n + 1, (rounds + 1) * rows.length, name);
      });
    }
  } finally {
    peer?.close();
  }
  const cost = (n: number) => spread(samples[n]!);
  const ownCosts = SNAPSHOT_ROWS.map((row, n) => [row, cost(n)]);
  const first = SNAPSHOT_ROWS.length;
  return {
    machine: { node: process.version, cpu: cpus()[0]?.model.trim() ?? "unknown", rounds },
    unicorn: "missing" in unicorn ? { missing: unicorn.missing } : { version: unicorn.version },
    fentrylab: Object.fromEntries(ownCosts) as Record<SnapshotRow, Cost>,
    bytesPerSnapshot: occupied(),
    ...(peer && { peer: { dirty: cost(first), undo: cost(first + 1) } }),
  };
}

const page = (n: number) => offset(DIRECT_MAP, n * STRIDE);

/** A machine, and what dirties ten of its pages: once by its own code, in regions. */
function makeGuest(): { machine: Machine; dirty: () => void } {
  const machine = new Machine({ vcpus: VCPUS });
  machine.memory.map(DIRECT_MAP, PAGES * PAGE_SIZE, { write: true, execute: false, user: false });
  machine.memory.map(KERNEL_TEXT, PAGE_SIZE, { write: false, execute: true, user: false });
  machine.memory.write(KERNEL_TEXT, DIRTY);
  const vcpu = machine.vcpus[0]!;
  let times = 0;
  const dirty = () => {
    vcpu.rip = KERNEL_TEXT;
    vcpu.setNumber("rcx", ++times * 64); // no two lines become equal
    vcpu.setNumber("rbx", page(0) + 64 * (times % 64));
    vcpu.setNumber("rdx", DIRTIED);
    if (vcpu.run().kind !== "hypercall") bug("the guest that dirties pages stopped early");
  };
  return { machine, dirty };
}

function ownRows(): Record<SnapshotRow, () => void> {
  const undo = makeGuest();
  const hashed = makeGuest();
  hashed.machine.hash();
  const undoRow =
    ({ machine, dirty }: ReturnType<typeof makeGuest>, hash: boolean) =>
    () => {
      const snapshot = machine.snapshot();
      dirty();
      if (hash) machine.hash();
      machine.restore(snapshot);
      snapshot.dispose();
    };
  const archiveRow = (hash: boolean) => {
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
  return {
    dirty: makeGuest().dirty,
    undo: undoRow(undo, false),
    undoHashed: undoRow(hashed, true),
    archive: archiveRow(false),
    archiveHashed: archiveRow(true),
  };
}

function peerRows(unicorn: Unicorn): { rows: Record<string, () => void>; close: () => void } {
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
  const undo = () => {
    for (let n = 0; n < DIRTIED; n++) copies[n] = engine.readMemory(page(n), PAGE_SIZE);
    dirty();
    for (let n = 0; n < DIRTIED; n++) engine.writeMemory(page(n), copies[n]!);
    engine.restoreContext(context);
  };
  return { rows: { "dirty (Unicorn)": dirty, "undo (Unicorn)": undo }, close: () => engine.close() };
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

/** Microseconds each. */
function sample(act: () => void, repetitions: number): number {
  const start = performance.now();
  for (let n = 0; n < repetitions; n++) act();
  return ((performance.now() - start) * 1000) / repetitions;
}

function spread(samples: readonly number[]): Cost {
  const sorted = samples.toSorted((a, b) => a - b);
  const middle = sorted.length / 2;
  return {
    median: (sorted[Math.ceil(middle) - 1]! + sorted[Math.floor(middle)]!) / 2,
    min: sorted[0]!,
    max: sorted.at(-1)!,
  };
}

/** The report for a terminal. */
export function renderSnapshotReport(report: SnapshotReport): string {
  const { machine, unicorn, fentrylab, bytesPerSnapshot, peer } = report;
  const line = (what: string, { median, min, max }: Cost) =>
    `${what.padEnd(44)}${median.toFixed(2).padStart(8)}  ${min.toFixed(2)}..${max.toFixed(2)}`;
  return [
    `Node ${machine.node}, ${machine.cpu}, ${"missing" in unicorn ? `no Unicorn: ${unicorn.missing}` : `Unicorn ${unicorn.version}`}`,
    `Microseconds, medians of ${machine.rounds} rounds and the range; ${VCPUS} vCPUs.`,
    "",
    ...SNAPSHOT_ROWS.map((row) => line(DESCRIPTIONS[row], fentrylab[row])),
    ...(peer === undefined
      ? []
      : [
          line("Unicorn: dirty ten pages", peer.dirty),
          line("Unicorn: copy out, dirty, copy back, context", peer.undo),
        ]),
    "",
    `${Math.round(bytesPerSnapshot)} bytes for each of ${KEPT} snapshots that are kept.`,
    "",
  ].join("\n");
}
