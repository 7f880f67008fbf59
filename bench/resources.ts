// What machines hold, and that they give it back: `fentrylab bench resources`.
//
// Each measurement runs in a process of its own, because it is the process whose memory is measured; nothing forces
// the garbage collector. `early` is after a tenth of the work and `late` after all of it: what leaks grows tenfold.

import { fork } from "node:child_process";
import { cpus } from "node:os";
import { extname } from "node:path";
import { fileURLToPath } from "node:url";
import { offset, PAGE_SIZE } from "../src/base/addr.ts";
import { parseHexBytes } from "../src/base/bytes.ts";
import { bug } from "../src/base/refuse.ts";
import { DIRECT_MAP, KERNEL_TEXT } from "../src/image/layout.ts";
import { Lab } from "../src/lab.ts";
import { Machine, type MachineUsage } from "../src/machine/machine.ts";
import type { Snapshot } from "../src/machine/snapshot.ts";
import type { Progress } from "./spread.ts";

const TASKS = 64;
const VCPUS = 4;
/** Pages that differ between snapshots, a line on each. */
const DIRTIED = 10;
/** Calls of the poked function between two pokes, so that it stays hot. */
const CALLS = 20;

/** Bytes. */
export interface ProcessMemory {
  readonly resident: number;
  /** In use by JavaScript objects, and by arrays and WebAssembly memories outside them. */
  readonly heap: number;
  readonly external: number;
}

export interface Growth {
  readonly count: number;
  /** Microseconds of CPU time for each, everything included. */
  readonly microseconds: number;
  readonly early: ProcessMemory;
  readonly late: ProcessMemory;
}

/** A laboratory, beside one that has loaded the libraries. */
export interface TasksReport {
  readonly tasks: number;
  readonly vcpus: number;
  readonly before: ProcessMemory;
  readonly after: ProcessMemory;
  readonly usage: MachineUsage;
}

export interface SnapshotsReport extends Growth {
  readonly before: ProcessMemory;
  /** Of process memory, by their own account. */
  readonly bytesPerSnapshot: number;
  /** Microseconds of CPU time to restore one at random and to look whether it is what it was. */
  readonly restored: number;
}

export interface PokesReport extends Growth {
  readonly usage: MachineUsage;
}

export interface ResourceReport {
  readonly machine: { readonly node: string; readonly cpu: string };
  /** A laboratory with tasks. */
  readonly tasks: TasksReport;
  /** Snapshots of one, all kept. */
  readonly snapshots: SnapshotsReport;
  /** Machines made, used and disposed of, one after the other. */
  readonly machines: Growth;
  /** A hot call site, poked on and off. */
  readonly pokes: PokesReport;
}

/** Each takes how often it is done, and measures in this process. */
export const MEASUREMENTS = {
  tasks: measureTasks,
  snapshots: measureSnapshots,
  machines: measureMachines,
  pokes: measurePokes,
} as const;
export type Measurement = keyof typeof MEASUREMENTS;

const COUNTS: Readonly<Record<Measurement, number>> = {
  tasks: TASKS,
  snapshots: 200_000,
  machines: 10_000,
  pokes: 100_000,
};

/** Measures for about a minute. */
export async function benchResources({
  progress = () => {},
}: {
  readonly progress?: Progress;
} = {}): Promise<ResourceReport> {
  const names = Object.keys(MEASUREMENTS) as Measurement[];
  const reports: Partial<Record<Measurement, unknown>> = {};
  for (const [n, name] of names.entries()) {
    progress(n, names.length, `${COUNTS[name]} ${name}`);
    reports[name] = await apart(name);
  }
  return {
    machine: { node: process.version, cpu: cpus()[0]?.model.trim() ?? "unknown" },
    ...(reports as Omit<ResourceReport, "machine">),
  };
}

/** What a measurement finds in a new process. */
function apart(name: Measurement): Promise<unknown> {
  const file = new URL(`./resourceProcess${extname(import.meta.url)}`, import.meta.url);
  return new Promise((resolve, reject) => {
    const child = fork(fileURLToPath(file), [name, String(COUNTS[name])]);
    let found: unknown;
    child.on("message", (message) => {
      found = message;
    });
    child.on("error", reject);
    child.on("exit", (code) => {
      if (found === undefined) reject(new Error(`measuring ${name} ended with ${code}`));
      else resolve(found);
    });
  });
}

async function measureTasks(count: number): Promise<TasksReport> {
  (await Lab.open()).dispose();
  const before = processMemory();
  const lab = await openLab(count);
  for (const task of lab.kernel.tasks) lab.call("loop", [CALLS], { task });
  const snapshot = lab.machine.snapshot();
  for (const task of lab.kernel.tasks) lab.call("loop", [CALLS], { task });
  lab.machine.restore(snapshot);
  const { usage } = lab.machine;
  return { tasks: count, vcpus: VCPUS, before, after: processMemory(), usage };
}

/** Every fifth snapshot begins a branch somewhere in the tree. */
async function measureSnapshots(count: number): Promise<SnapshotsReport> {
  const { machine, kernel } = await openLab(TASKS);
  const word = (n: number, k: number) => {
    const { high } = kernel.tasks[k]!.stack;
    return { at: offset(high, -64 * (1 + ((n + k) % 60))), value: BigInt(n * DIRTIED + k + 1) };
  };
  const before = processMemory();
  const kept: Snapshot[] = [];
  const growth = grow(count, (n) => {
    if (n % 5 === 4) machine.restore(kept[(n * 7919) % kept.length]!);
    for (let k = 0; k < DIRTIED; k++) {
      const { at, value } = word(n, k);
      machine.memory.writeWord(at, value);
    }
    machine.vcpus[n % VCPUS]!.setNumber("rax", n);
    kept.push(machine.snapshot());
  });
  const bytesPerSnapshot = machine.snapshotStats.bytes / count;
  const restores = Math.min(count, 1000);
  const start = process.cpuUsage();
  for (let i = 0; i < restores; i++) {
    const n = (i * 104_729) % count;
    machine.restore(kept[n]!);
    for (let k = 0; k < DIRTIED; k++) {
      const { at, value } = word(n, k);
      if (machine.memory.readWord(at) !== value) bug(`snapshot ${n} was restored as something else`);
    }
  }
  const restored = since(start) / restores;
  return { ...growth, before, bytesPerSnapshot, restored };
}

/** dec %rcx; mov %rcx,(%rbx); jnz back; vmcall. */
const COUNT_DOWN = parseHexBytes("48 ff c9 48 89 0b 75 f8 0f 01 c1");

function measureMachines(count: number): Growth {
  return grow(count, () => {
    const machine = new Machine({ vcpus: VCPUS });
    machine.memory.map(KERNEL_TEXT, PAGE_SIZE, { write: false, execute: true, user: false });
    machine.memory.map(DIRECT_MAP, DIRTIED * PAGE_SIZE, { write: true, execute: false, user: false });
    machine.memory.write(KERNEL_TEXT, COUNT_DOWN);
    const snapshot = machine.snapshot();
    const vcpu = machine.vcpus[0]!;
    vcpu.rip = KERNEL_TEXT;
    vcpu.setNumber("rcx", 1000);
    vcpu.setNumber("rbx", DIRECT_MAP);
    if (vcpu.run().kind !== "hypercall") bug("a loop ended early");
    machine.restore(snapshot);
    machine.dispose();
  });
}

async function measurePokes(count: number): Promise<PokesReport> {
  const lab = await openLab(1);
  const redirect = lab.redirect("leaf", lab.symbol("leaf_new").address);
  const sum = (CALLS * (CALLS + 1)) / 2; // leaf(x) is x + 1, leaf_new(x) x + 100
  const growth = grow(count, (n) => {
    const on = n % 2 === 0;
    if (on) redirect.enable();
    else redirect.disable();
    const { result } = lab.call("loop", [CALLS]);
    if (result !== BigInt(sum + CALLS * (on ? 100 : 1))) bug(`the loop returned ${result} after poke ${n}`);
  });
  return { ...growth, usage: lab.machine.usage };
}

async function openLab(tasks: number): Promise<Lab> {
  const lab = await Lab.open({ vcpus: VCPUS });
  while (lab.kernel.tasks.length < tasks) lab.kernel.createTask();
  return lab;
}

function grow(count: number, act: (n: number) => void): Growth {
  const tenth = Math.ceil(count / 10);
  let early = processMemory();
  const start = process.cpuUsage();
  for (let n = 0; n < count; n++) {
    act(n);
    if (n + 1 === tenth) early = processMemory();
  }
  const microseconds = since(start) / count;
  return { count, microseconds, early, late: processMemory() };
}

/** Microseconds of CPU time. */
function since(start: NodeJS.CpuUsage): number {
  const { user, system } = process.cpuUsage(start);
  return user + system;
}

function processMemory(): ProcessMemory {
  const { rss, heapUsed, external } = process.memoryUsage();
  return { resident: rss, heap: heapUsed, external };
}

/** The report for a terminal. */
export function renderResourceReport({ machine, tasks, snapshots, machines, pokes }: ResourceReport): string {
  const growing = ({ early, late }: Growth) =>
    `${megabytes(early.resident)} MB resident after a tenth, ${megabytes(late.resident)} at the end ` +
    `(heap ${megabytes(early.heap)}, ${megabytes(late.heap)})`;
  const more = (before: ProcessMemory, after: ProcessMemory) => megabytes(after.resident - before.resident);
  return [
    `Node ${machine.node}, ${machine.cpu}; times are CPU time`,
    "",
    `${tasks.tasks} tasks' stacks, ${tasks.vcpus} vCPUs: ${more(tasks.before, tasks.after)} MB beyond the loaded libraries,` +
      ` ${megabytes(tasks.usage.bytes)} of them in the machine's memory`,
    `${snapshots.count} snapshots kept: ${more(snapshots.before, snapshots.late)} MB, ${Math.round(snapshots.bytesPerSnapshot)}` +
      ` bytes each by their own account; ${snapshots.microseconds.toFixed(1)} µs each, one at random restored and looked at in ${snapshots.restored.toFixed(1)}`,
    `${machines.count} machines made, run and disposed of: ${(machines.microseconds / 1000).toFixed(2)} ms each; ${growing(machines)}`,
    `${pokes.count} pokes of a hot site: ${pokes.microseconds.toFixed(1)} µs each with ${CALLS} calls; ${growing(pokes)};` +
      ` ${pokes.usage.regions} regions in use, ${pokes.usage.retiredRegions} kept, ${pokes.usage.functions} functions`,
    "",
  ].join("\n");
}

function megabytes(bytes: number): string {
  return (bytes / 1e6).toFixed(1);
}
