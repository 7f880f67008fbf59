// One machine that hostile cases run on, one after another, and what a case does to it from outside.
//
// A case is a world and a few acts: run, step, interrupt, write, protect, snapshot. All of it comes from the seed and the case's
// number, and nothing from what ran before: the same case on another machine has the same outcome, run or stepped.

import { createHash, type Hash } from "node:crypto";
import { type Addr, isCanonical, offset, PAGE_SIZE, pageOf } from "../../src/base/addr.ts";
import { describeExit, type Exit } from "../../src/machine/exit.ts";
import { Machine, type Trace } from "../../src/machine/machine.ts";
import type { Snapshot } from "../../src/machine/snapshot.ts";
import type { CodeVisibility } from "../../src/machine/staleCode.ts";
import type { TraceEvent } from "../../src/machine/trace.ts";
import type { Vcpu } from "../../src/machine/vcpu.ts";
import { GPR } from "../../src/x86/register.ts";
import { STATE } from "../../src/x86/state.ts";
import { Random } from "../fuzz/random.ts";
import { hostileCode } from "./code.ts";
import { watched } from "./watchdog.ts";
import { makeWorld, randomAccess, randomFlags, randomWord, somewhere, type World } from "./world.ts";

export type Mode = "run" | "stepped";

/** How vCPUs see code that others store to. */
export type Visibility = "coherent" | "stale";

export interface Outcome {
  /** Of all that can be seen of the machine, after every act. */
  readonly digest: string;
  /** What was done and how it ended, a line for each act. */
  readonly lines: readonly string[];
  readonly instructions: number;
  /** Of the budget: instructions, and deliveries of exceptions and interrupts. */
  readonly spent: number;
}

const VCPUS = 2;
/** What is seen of code that others store to is anything, but the same each time. */
const STALE: CodeVisibility = {
  kind: "stale-until-serialised",
  choose: ({ ip, at, versions }) => Math.abs(ip + at) % versions.length,
  mixed: ({ ip }) => (ip % 5 === 0 ? "stop" : "execute"),
};
/** What one act may execute. */
const MOST = 30_000;
/** System registers: what lies between these in a vCPU's state. */
const SYSTEM = { from: STATE.cs, to: STATE.pendingTraps + 8 };

export class Subject {
  readonly machine: Machine;
  private readonly mode: Mode;
  private readonly blank: readonly Uint8Array[];

  private spent = 0;
  /** What is left of a stepping vCPU's budget when what it was given is spent. */
  private end = 0;
  private trace: Trace | undefined;

  constructor(mode: Mode, visibility: Visibility) {
    this.mode = mode;
    this.machine = new Machine({ vcpus: VCPUS, code: visibility === "stale" ? STALE : "coherent" });
    this.blank = this.machine.vcpus.map(({ cpu }) => this.machine.host.u8.slice(cpu, cpu + STATE.end));
  }

  /** Runs case `number` of `seed`. Throws whatever the engine throws, or where it does not keep its word. */
  execute(seed: number, number: number): Outcome {
    const random = new Random().restart(seed, number);
    this.clear();
    const { machine } = this;
    machine.recordCalls = random.chance(30);
    const world = makeWorld(random, machine);
    for (const vcpu of machine.vcpus) vcpu.serialise();
    const before = machine.instructions;
    this.spent = 0;
    const log = new Log(machine);
    if (random.chance(15)) this.startTrace(random, log);
    const snapshots: Snapshot[] = [];
    for (let acts = 1 + random.below(14); acts > 0; acts--) log.add(this.act(random, world, snapshots));
    for (const snapshot of snapshots) snapshot.dispose();
    this.trace?.stop();
    for (const vcpu of machine.vcpus) log.add(`${machine.trueChain(vcpu.rsp).length} frames`);
    return { ...log.end(), instructions: machine.instructions - before, spent: this.spent };
  }

  private startTrace(random: Random, log: Log): void {
    const [instructions, accesses, branches, calls] = [50, 50, 50, 50].map((percent) =>
      random.chance(percent),
    );
    const kinds = { instructions: instructions!, accesses: accesses!, branches: branches!, calls: calls! };
    this.trace = this.machine.trace({ ...kinds, exceptions: true }, (event) => log.event(event));
  }

  /** Everything unmapped and forgotten; vCPUs as they came. */
  private clear(): void {
    const { machine } = this;
    for (const [page] of [...machine.memory.entries()]) machine.memory.unmap(page, PAGE_SIZE);
    // What the guest's stacks were is nobody else's to know.
    const { stacks } = machine.calls as unknown as { readonly stacks: ReadonlyMap<number, unknown> };
    for (const stack of [...stacks.keys()]) machine.calls.set(stack, undefined);
    machine.vcpus.forEach((vcpu, n) => {
      vcpu.serialise();
      machine.host.u8.set(this.blank[n]!, vcpu.cpu);
      vcpu.unpark(true);
      vcpu.flushTlb();
    });
  }

  private act(random: Random, world: World, snapshots: Snapshot[]): string {
    const { machine } = this;
    const vcpu = machine.vcpus[random.chance(80) ? 0 : 1]!;
    const name = `vcpu ${vcpu.index}`;
    const kind = random.below(100);
    if (kind < 45) return `${name} ${this.run(vcpu, random, world)}`;
    if (kind < 52) {
      const count = 1 + random.below(20);
      let exit: Exit | undefined;
      for (let n = 0; n < count && exit === undefined; n++) exit = this.guarded(4, () => vcpu.step());
      return `${name} steps: ${described(exit)}`;
    }
    if (kind < 62) {
      const vector = random.chance(80) ? 32 + random.below(224) : random.below(32);
      vcpu.interrupt(vector);
      return `${name} interrupt ${vector}`;
    }
    if (kind < 65) {
      vcpu.nmi();
      return `${name} nmi`;
    }
    if (kind < 72) return this.poke(random, world);
    if (kind < 80) return this.remap(random, world);
    if (kind < 84) {
      vcpu.rip = somewhere(random, world);
      vcpu.set(random.pick(GPR), randomWord(random, world));
      vcpu.rflags = randomFlags(random);
      return `${name} elsewhere`;
    }
    if (kind < 86) {
      machine.recordCalls = !machine.recordCalls;
      return "record calls or not";
    }
    if (kind < 88) return `hash ${machine.hash()}`;
    if (kind < 94 || snapshots.length === 0) {
      snapshots.push(machine.snapshot());
      return "snapshot";
    }
    if (kind < 95) {
      snapshots.splice(random.below(snapshots.length), 1)[0]!.dispose();
      return "dispose";
    }
    machine.restore(random.pick(snapshots));
    return "restore";
  }

  /** Runs, and goes on elsewhere a few times where that stops for good. */
  private run(vcpu: Vcpu, random: Random, world: World): string {
    const lines: string[] = [];
    for (let turns = 1 + random.below(12); turns > 0; turns--) {
      const budget = 1 + random.below(random.chance(30) ? 40 : random.chance(90) ? 2000 : MOST);
      const until = random.chance(15) ? somewhere(random, world) : undefined;
      const before = vcpu.instructions;
      const exit =
        this.mode === "run"
          ? this.guarded(budget, () => vcpu.run({ budget, ...(until === undefined ? {} : { until }) }))
          : this.stepOn(vcpu, budget, until);
      const done = vcpu.instructions - before;
      this.spent += budget - Math.max(0, this.left(vcpu) - (this.mode === "run" ? 0 : this.end));
      // An interrupt that an instruction makes is one more; it may be the last thing that the budget is spent on.
      if (done < 0 || done > budget + 1) throw new Error(`a budget of ${budget}, ${done} instructions`);
      lines.push(`run ${budget}: ${described(exit)}, ${done} instructions`);
      if (exit.kind === "budget" || exit.kind === "reached") break;
      if (exit.kind === "unimplemented") vcpu.rip = behind(exit);
      else if (exit.kind === "mixed") vcpu.serialise();
      else if (exit.kind === "shutdown" || exit.kind === "fault") {
        vcpu.rsp = world.stack;
        vcpu.rip = somewhere(random, world);
      }
    }
    return lines.join("; ");
  }

  /** What `run` says that it does, step by step. */
  private stepOn(vcpu: Vcpu, budget: number, until: Addr | undefined): Exit {
    this.end = this.left(vcpu) - budget;
    while (this.left(vcpu) > this.end) {
      const exit = this.guarded(4, () => vcpu.step());
      if (exit !== undefined) return exit;
      if (vcpu.rip === until) return { kind: "reached", ip: until };
    }
    return { kind: "budget", ip: vcpu.rip };
  }

  private left({ cpu }: Vcpu): number {
    return this.machine.host.getNumber(cpu + STATE.budget);
  }

  private guarded<T>(budget: number, act: () => T): T {
    return watched(this.machine, budget, act);
  }

  private poke(random: Random, world: World): string {
    const at = somewhere(random, world);
    const bytes = hostileCode(random, 1 + random.below(random.chance(80) ? 8 : 300));
    if (!this.machine.memory.isMapped(at, bytes.length)) return "write nowhere";
    this.machine.memory.write(at, bytes);
    return `write ${bytes.length} at ${at}`;
  }

  private remap(random: Random, world: World): string {
    const { memory } = this.machine;
    const at = random.chance(40)
      ? random.pick([world.data, offset(world.stack, -8)])
      : somewhere(random, world);
    const page = pageOf(at);
    if (!memory.isMapped(page, 1)) {
      memory.map(page, PAGE_SIZE, randomAccess(random, world.user));
      if (random.chance(70)) memory.write(page, hostileCode(random, PAGE_SIZE).subarray(0, PAGE_SIZE));
      return `map ${page}`;
    }
    if (random.chance(75)) {
      memory.protect(page, PAGE_SIZE, randomAccess(random, world.user));
      return `protect ${page}`;
    }
    memory.unmap(page, PAGE_SIZE);
    if (random.chance(40) && memory.isMapped(world.text, 1))
      memory.alias(page, world.text, PAGE_SIZE, randomAccess(random, world.user));
    return `unmap ${page}`;
  }
}

function behind({ ip, bytes }: Exit & { kind: "unimplemented" }): Addr {
  const next = ip + bytes.length;
  return isCanonical(next) ? (next as Addr) : ip;
}

const KINDS = [
  "reached",
  "budget",
  "hypercall",
  "halt",
  "fault",
  "interrupt",
  "shutdown",
  "unimplemented",
  "mixed",
];

function described(exit: Exit | undefined): string {
  if (exit === undefined) return "went on";
  if (!KINDS.includes(exit.kind)) throw new Error(`an exit of no kind: ${exit.kind}`);
  return describeExit(exit);
}

/** What was done, and a digest of all that can be seen after it. */
class Log {
  private readonly machine: Machine;
  private readonly hash: Hash = createHash("sha1");
  private readonly lines: string[] = [];

  constructor(machine: Machine) {
    this.machine = machine;
  }

  event(event: TraceEvent): void {
    this.hash.update(Object.values(event).join());
  }

  add(line: string): void {
    const { hash, machine } = this;
    for (const vcpu of machine.vcpus) {
      const words = GPR.map((name) => vcpu.get(name));
      hash.update(new BigUint64Array([...words, vcpu.rflags, BigInt.asUintN(64, BigInt(vcpu.rip))]));
      hash.update(machine.host.u8.subarray(vcpu.cpu + SYSTEM.from, vcpu.cpu + SYSTEM.to));
      hash.update(`${vcpu.instructions}`);
    }
    const pages = [...machine.memory.entries()].sort(([a], [b]) => a - b);
    for (const [, { frame }] of pages) hash.update(machine.host.u8.subarray(frame.at, frame.at + PAGE_SIZE));
    const { rip } = machine.vcpus[0]!;
    this.lines.push(`${line} [${rip.toString(16)} ${hash.copy().digest("hex").slice(0, 8)}]`);
    hash.update(line);
  }

  end(): { digest: string; lines: string[] } {
    return { digest: this.hash.digest("hex"), lines: this.lines };
  }
}
