// A virtual CPU: registers, stepping, running.
//
// Execution is the trunk's (machine/trunk.ts); this is what happens when it stops: find or make the code at rip,
// fill the TLB, interpret the one instruction that a region could not do, or answer with an Exit.

import { type Addr, hex } from "../base/addr.ts";
import { bug } from "../base/refuse.ts";
import { GPR, gprOf, type RegisterName } from "../x86/register.ts";
import { ANSWER, cacheIndex, EMPTY_RIP, EVENT, STATE } from "../x86/state.ts";
import { disassembleOne } from "./code.ts";
import { type Exit, type Fault, PAGE_FAULT } from "./exit.ts";
import { readFlags, writeFlags } from "./flags.ts";
import type { HostAddress } from "./host.ts";
import type { Machine } from "./machine.ts";
import type { Region } from "./regions.ts";
import { SCRATCH_BYTES, Tlb } from "./tlb.ts";
import { SLOT } from "./trunk.ts";

/** How often code is interpreted from a jump target before it is compiled. */
const HOT_AFTER = 200;
/** What one lookup counts for; and how many addresses are counted. */
const LOOKUP_HEAT = 20;
const MAX_COUNTED = 4096;
/** Instructions between two returns to TypeScript: V8 replaces a function's code only between calls. */
const SLICE = 500_000;
/** Events that fit a vCPU's record before it is drained. */
const RECORD_BYTES = EVENT.size * Math.floor((STATE.size - STATE.records) / EVENT.size);

export interface RunOptions {
  /** Stop before the instruction there. If rip is there already, it runs until it comes back. */
  readonly until?: Addr;
  /** Stop after this many instructions. Default: no limit. */
  readonly budget?: number;
}

export class Vcpu {
  readonly index: number;
  private readonly machine: Machine;
  private readonly tlb: Tlb;
  /** Host address of this vCPU's state. */
  private readonly cpu: HostAddress;
  /** How often an address without compiled code was looked up. */
  private readonly lookups = new Map<Addr, number>();
  private retiredBefore = 0;
  private granted = 0;

  constructor(machine: Machine, index: number) {
    this.machine = machine;
    this.index = index;
    const { host } = machine;
    this.cpu = host.reserveVcpu();
    this.tlb = new Tlb(host, machine.memory, this.cpu, host.reserve(SCRATCH_BYTES, 4096));
    host.i32[(this.cpu + STATE.recordNext) >> 2] = this.cpu + STATE.records;
    host.i32[(this.cpu + STATE.recordEnd) >> 2] = this.cpu + STATE.records + RECORD_BYTES;
    this.rflags = 0n;
    this.flushCaches();
  }

  // ---- Registers.

  get(name: RegisterName): bigint {
    return BigInt.asUintN(64, this.machine.host.i64[(this.cpu >> 3) + gprOf(name)]!);
  }

  set(name: RegisterName, value: bigint): void {
    this.machine.host.i64[(this.cpu >> 3) + gprOf(name)] = value;
  }

  /** A register that holds an address, or any 53-bit integer: several times cheaper than `get`. */
  getNumber(name: RegisterName): number {
    return this.machine.host.getNumber(this.cpu + STATE.gpr + 8 * gprOf(name));
  }

  setNumber(name: RegisterName, value: number): void {
    this.machine.host.setNumber(this.cpu + STATE.gpr + 8 * gprOf(name), value);
  }

  registers(): Record<RegisterName, bigint> {
    return Object.fromEntries(GPR.map((name) => [name, this.get(name)])) as Record<RegisterName, bigint>;
  }

  get rip(): Addr {
    return this.machine.host.getNumber(this.cpu + STATE.rip) as Addr;
  }

  set rip(at: Addr) {
    this.machine.host.setNumber(this.cpu + STATE.rip, at);
  }

  get rsp(): Addr {
    return this.getNumber("rsp") as Addr;
  }

  set rsp(at: Addr) {
    this.setNumber("rsp", at);
  }

  get rflags(): bigint {
    return readFlags(this.machine.host, this.cpu);
  }

  set rflags(flags: bigint) {
    writeFlags(this.machine.host, this.cpu, flags);
  }

  get gsBase(): bigint {
    return BigInt.asUintN(64, this.machine.host.i64[(this.cpu + STATE.gsBase) >> 3]!);
  }

  set gsBase(base: bigint) {
    this.machine.host.i64[(this.cpu + STATE.gsBase) >> 3] = base;
  }

  get fsBase(): bigint {
    return BigInt.asUintN(64, this.machine.host.i64[(this.cpu + STATE.fsBase) >> 3]!);
  }

  set fsBase(base: bigint) {
    this.machine.host.i64[(this.cpu + STATE.fsBase) >> 3] = base;
  }

  /** Instructions retired so far; each iteration of a repeated string instruction counts. */
  get instructions(): number {
    return this.retiredBefore + this.granted - this.budget;
  }

  // ---- Execution.

  /** Executes one instruction. Undefined if it simply retired. */
  step(): Exit | undefined {
    const rip = this.machine.trunk.step(this.cpu);
    const exit = Number.isNaN(rip)
      ? this.settle(this.machine.host.i32[(this.cpu + STATE.answer) >> 2]!)
      : undefined;
    // At once: the next to step on this stack may be another vCPU.
    if (this.machine.recordCalls) this.drainRecord();
    return exit;
  }

  /** Executes until something stops it. */
  run({ until, budget = Number.POSITIVE_INFINITY }: RunOptions = {}): Exit {
    if (budget <= 0) return { kind: "budget", ip: this.rip };
    const { regions } = this.machine;
    if (until !== undefined) {
      regions.addStop(until);
      this.machine.forgetAddress(until);
    }
    try {
      let left = budget;
      this.grant(Math.min(left, SLICE));
      if (this.rip === until) {
        const exit = this.settle(this.machine.trunk.one(this.cpu));
        this.forgetAddress(until);
        if (exit !== undefined) return exit;
      }
      for (;;) {
        const exit = this.runGranted();
        if (exit !== undefined) return exit;
        left -= this.granted;
        // Whoever gets both hears of the address, whether it was met in a region or in the interpreter.
        if (left <= 0) return { kind: this.rip === until ? "reached" : "budget", ip: this.rip };
        this.grant(Math.min(left, SLICE));
      }
    } finally {
      if (until !== undefined) regions.removeStop(until);
      this.drainRecord();
    }
  }

  /** Runs until the granted budget is spent (undefined) or something stops it. */
  private runGranted(): Exit | undefined {
    const { trunk, regions, host } = this.machine;
    for (;;) {
      const answer = trunk.run(this.cpu);
      let exit: Exit | undefined;
      switch (answer) {
        case ANSWER.lookup:
          if (regions.hasStop(this.rip)) return { kind: "reached", ip: this.rip };
          this.lookUp(this.rip);
          continue;
        case ANSWER.hot:
          this.compile(this.rip);
          continue;
        case ANSWER.budget:
          // A region wants its whole next block paid for; what is left of the budget is interpreted.
          while (this.budget > 0) {
            if (regions.hasStop(this.rip)) return { kind: "reached", ip: this.rip };
            exit = this.settle(trunk.one(this.cpu));
            if (exit !== undefined) return exit;
          }
          return undefined;
        case ANSWER.bail: {
          const region =
            regions.inSlot(host.i32[(this.cpu + STATE.bailSlot) >> 2]!) ?? bug("a retired region ran");
          const point = region.stopPoints[host.i32[(this.cpu + STATE.bailIndex) >> 2]!]!;
          this.rip = point.ip;
          this.budget += point.unretired;
          exit = this.settle(trunk.one(this.cpu));
          break;
        }
        case ANSWER.decode:
          if (regions.hasStop(this.rip)) return { kind: "reached", ip: this.rip };
          exit = this.settle(answer);
          break;
        default:
          exit = this.settle(answer);
      }
      if (exit !== undefined) return exit;
    }
  }

  /** Sees one instruction through, which `answer` came from, until it retires (undefined) or stops for good. */
  private settle(answer: number): Exit | undefined {
    const { trunk, interpreter } = this.machine;
    for (let next = answer; ; next = trunk.one(this.cpu)) {
      switch (next) {
        case ANSWER.next:
        case ANSWER.jumped:
          this.tlb.closeWindows(true);
          return undefined;
        case ANSWER.decode: {
          const record = interpreter.prepare(this.rip);
          if (typeof record !== "number") {
            const errorCode = PAGE_FAULT.fetch | (record.present ? PAGE_FAULT.present : 0);
            return this.fault({ vector: "#PF", errorCode, address: record.address, size: 1 });
          }
          this.setCache(STATE.stepCache, this.rip, record, 0);
          break;
        }
        case ANSWER.miss: {
          const fault = this.tlb.resolve();
          if (fault !== undefined) return this.fault(fault);
          break;
        }
        case ANSWER.recordFull:
          this.drainRecord();
          break;
        default:
          this.tlb.closeWindows(next >= ANSWER.firstRetired);
          return this.exitOf(next);
      }
    }
  }

  private fault(fault: Fault): Exit {
    this.tlb.closeWindows(false);
    return { kind: "fault", ip: this.rip, fault };
  }

  private exitOf(answer: number): Exit {
    const before = this.rip;
    const after = this.machine.host.getNumber(this.cpu + STATE.retiredIp) as Addr;
    switch (answer) {
      case ANSWER.divideError:
        return { kind: "fault", ip: before, fault: { vector: "#DE" } };
      case ANSWER.invalidOpcode:
        return { kind: "fault", ip: before, fault: { vector: "#UD" } };
      case ANSWER.generalProtection:
        return { kind: "fault", ip: before, fault: { vector: "#GP", errorCode: 0 } };
      case ANSWER.unimplemented:
        return { kind: "unimplemented", ip: before, ...disassembleOne(this.machine.memory, before) };
      case ANSWER.breakpoint:
        return { kind: "fault", ip: after, fault: { vector: "#BP" } };
      case ANSWER.hypercall:
        return { kind: "hypercall", ip: after };
      case ANSWER.halt:
        return { kind: "halt", ip: after };
      default:
        return bug(`answer ${answer} at ${hex(before)}`);
    }
  }

  // ---- Code.

  private lookUp(rip: Addr): void {
    const found = this.machine.regions.find(rip);
    if (found !== undefined) {
      this.setCache(STATE.jumpCache, rip, found.region.slot, found.entry);
      return;
    }
    // Two hot addresses that share a cache entry evict each other's count: what is looked up often is hot too.
    const lookups = this.lookups.get(rip) ?? 0;
    if (this.lookups.size >= MAX_COUNTED) this.lookups.clear();
    this.lookups.set(rip, lookups + 1);
    this.setCache(STATE.jumpCache, rip, SLOT.interpreter, Math.max(0, HOT_AFTER - LOOKUP_HEAT * lookups));
  }

  private compile(rip: Addr): void {
    const made = this.machine.regions.find(rip) ?? this.machine.regions.compile(rip);
    if (made === undefined) {
      this.setCache(STATE.jumpCache, rip, SLOT.interpreter, 2 ** 31 - 1);
      return;
    }
    // All its blocks: a return inside the region finds its way by the jump cache.
    made.region.blocks.forEach(({ ip }, entry) => {
      this.setCache(STATE.jumpCache, ip, made.region.slot, entry);
    });
    this.setCache(STATE.jumpCache, rip, made.region.slot, made.entry);
  }

  private setCache(cache: number, rip: Addr, first: number, second: number): void {
    const { host } = this.machine;
    const entry = this.cpu + cache + 16 * cacheIndex(rip);
    host.setNumber(entry, rip);
    host.i32[(entry + 8) >> 2] = first;
    host.i32[(entry + 12) >> 2] = second;
  }

  /** Drops what both caches hold for `rip`. */
  forgetAddress(rip: Addr): void {
    for (const cache of [STATE.jumpCache, STATE.stepCache]) {
      const entry = this.cpu + cache + 16 * cacheIndex(rip);
      if (this.machine.host.getNumber(entry) === rip) this.machine.host.i64[entry >> 3] = EMPTY_RIP;
    }
  }

  /** Drops the jump-cache entries that lead into `region`. */
  forgetRegion(region: Region): void {
    const { host } = this.machine;
    for (const { ip } of region.blocks) {
      const entry = this.cpu + STATE.jumpCache + 16 * cacheIndex(ip);
      if (host.i32[(entry + 8) >> 2] === region.slot) host.i64[entry >> 3] = EMPTY_RIP;
    }
  }

  revokePage(page: Addr): void {
    this.tlb.revoke(page);
  }

  /** Hands the recorded calls and returns to the machine's call record. */
  drainRecord(): void {
    const { host, calls } = this.machine;
    const from = this.cpu + STATE.records;
    const to = host.i32[(this.cpu + STATE.recordNext) >> 2]!;
    if (to === from) return;
    calls.drain(host, from, to);
    host.i32[(this.cpu + STATE.recordNext) >> 2] = from;
  }

  private flushCaches(): void {
    const { host } = this.machine;
    for (let at = this.cpu + STATE.jumpCache; at < this.cpu + STATE.records; at += 16)
      host.i64[at >> 3] = EMPTY_RIP;
  }

  private get budget(): number {
    return this.machine.host.getNumber(this.cpu + STATE.budget);
  }

  private set budget(instructions: number) {
    this.machine.host.setNumber(this.cpu + STATE.budget, instructions);
  }

  private grant(instructions: number): void {
    this.retiredBefore = this.instructions;
    this.granted = instructions;
    this.budget = instructions;
  }
}
