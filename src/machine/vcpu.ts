// A virtual CPU: registers, stepping, running.
//
// Execution is the trunk's (machine/trunk.ts); this is what happens when it stops: find or make the code at rip,
// fill the TLB, interpret the one instruction that a region could not do, or answer with an Exit.

import { type Addr, hex, PAGE_SIZE } from "../base/addr.ts";
import { bug } from "../base/refuse.ts";
import { GPR, gprOf, type RegisterName } from "../x86/register.ts";
import { ANSWER, EVENT, STATE } from "../x86/state.ts";
import { CodeCaches } from "./codeCaches.ts";
import type { StaleFetch } from "./contest.ts";
import type { Exit, Fault } from "./exit.ts";
import { Fetcher } from "./fetcher.ts";
import type { FetchLog } from "./fetchLog.ts";
import type { HostAddress } from "./host.ts";
import { Interruption } from "./interruption.ts";
import type { Machine } from "./machine.ts";
import type { Region } from "./regions.ts";
import { RegisterFile } from "./registerFile.ts";
import { deliver, type Event, eventOf } from "./system/exception.ts";
import { serialises } from "./system/serialising.ts";
import { executeSystem } from "./system/systemInstruction.ts";
import { SCRATCH_BYTES, Tlb } from "./tlb.ts";
import { Witness } from "./witness.ts";

/** How many instructions are interpreted, at most, to see where code that became hot goes. */
const MAX_OBSERVED = 256;
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
  /** System registers, and memory with the rights of the code that runs. */
  readonly system: RegisterFile;
  /** What it may still see of code that others have stored to; absent where such stores are coherent. */
  readonly log: FetchLog | undefined;
  /** There is something in the log: what is fetched must be chosen. */
  private contested = false;
  private readonly tlb: Tlb;
  private readonly fetcher: Fetcher;
  private readonly caches: CodeCaches;
  private readonly interruption: Interruption;
  private readonly witness: Witness;
  /** Host address of this vCPU's state. */
  readonly cpu: HostAddress;
  private retiredBefore = 0;
  private granted = 0;
  /** Of what was granted, how much went into deliveries, which retire nothing. */
  private charged = 0;

  constructor(machine: Machine, index: number) {
    this.machine = machine;
    this.index = index;
    const { host } = machine;
    this.cpu = host.reserveVcpu();
    this.system = new RegisterFile(host, machine.memory, this.cpu, {
      forget: () => this.flush(),
      forgetKernelAccess: () => this.tlb.flushKernel(),
    });
    this.fetcher = new Fetcher(host, machine.memory, machine.interpreter, this.system);
    const scratch = host.reserve(SCRATCH_BYTES, PAGE_SIZE);
    this.tlb = new Tlb(
      host,
      machine.memory,
      this.cpu,
      scratch,
      (page, write) => this.system.denial(page, this.system.user, write),
      () => this.fetcher.instruction(this.rip),
      {
        isWatched: (page) => this.interruption.isWatched(page),
        accessed: (at, size, write) => this.interruption.accessed(at, size, write),
      },
    );
    host.i32[(this.cpu + STATE.recordNext) >> 2] = this.cpu + STATE.records;
    host.i32[(this.cpu + STATE.recordEnd) >> 2] = this.cpu + STATE.records + RECORD_BYTES;
    this.caches = new CodeCaches(host, machine.regions, this.cpu);
    this.log = machine.fetchLogs?.open(this.cpu, (isEmpty) => {
      this.contested = !isEmpty;
    });
    this.interruption = new Interruption(this.system);
    this.system.accessed = (at, size, write) => this.interruption.accessed(at, size, write);
    this.witness = new Witness(machine, this);
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
    return this.system.rflags;
  }

  set rflags(flags: bigint) {
    this.system.rflags = flags;
    this.interruption.look();
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
    return this.retiredBefore + this.granted - this.charged - this.budget;
  }

  // ---- Interrupts.

  /** Requests an external interrupt: it is delivered at the next instruction boundary at which IF allows. */
  interrupt(vector: number): void {
    this.interruption.request(vector);
  }

  /** Requests a non-maskable interrupt. */
  nmi(): void {
    this.interruption.requestNmi();
  }

  // ---- Code that others store to.

  /** Stores on this vCPU's behalf, whatever memory permits: it sees its own stores to code at once. */
  store(at: Addr, bytes: Uint8Array): void {
    this.machine.memory.write(at, bytes, this.cpu);
  }

  /** Sees all that was stored to code so far, as after an interrupt handler that serialises. */
  serialise(): void {
    this.log?.clear();
  }

  /** Whether something may come between instructions: an interrupt is due, a trap follows, a breakpoint is armed. */
  get careful(): boolean {
    return this.interruption.careful;
  }

  // ---- Execution.

  /** Executes one instruction. Undefined if it simply retired. */
  step(): Exit | undefined {
    let exit: Exit | undefined;
    if (this.alone) exit = this.stepCarefully();
    else if (Number.isNaN(this.machine.trunk.step(this.cpu)))
      exit = this.settle(this.machine.host.i32[(this.cpu + STATE.answer) >> 2]!);
    // At once: the next to step on this stack may be another vCPU.
    if (this.machine.observed) this.drain();
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
        const exit = this.stepOne();
        this.forgetAddress(until);
        if (exit !== undefined) return exit;
      }
      for (;;) {
        const exit = this.runGranted(left > this.granted);
        if (exit !== undefined) return exit;
        left -= this.granted - this.budget;
        // Whoever gets both hears of the address, whether it was met in a region or in the interpreter.
        if (left <= 0) return { kind: this.rip === until ? "reached" : "budget", ip: this.rip };
        this.grant(Math.min(left, SLICE));
      }
    } finally {
      if (until !== undefined) regions.removeStop(until);
      this.drain();
    }
  }

  /** Runs until the granted budget is spent, or if `more` can be granted nearly so (undefined), or something stops it. */
  private runGranted(more: boolean): Exit | undefined {
    const { trunk, regions, host } = this.machine;
    for (;;) {
      let exit: Exit | undefined;
      if (this.alone) {
        if (this.budget <= 0) return undefined;
        if (regions.hasStop(this.rip)) return { kind: "reached", ip: this.rip };
        exit = this.stepCarefully();
        if (exit !== undefined) return exit;
        continue;
      }
      const answer = trunk.run(this.cpu);
      switch (answer) {
        case ANSWER.lookup:
          if (regions.hasStop(this.rip)) return { kind: "reached", ip: this.rip };
          if (this.fetcher.may(this.rip)) {
            this.caches.lookUp(this.rip);
            continue;
          }
          // Nothing else asks: a handler that cannot be fetched, on an interrupt stack, is delivered to for ever.
          if (this.budget <= 0) return undefined;
          exit = this.settle(ANSWER.decode);
          break;
        case ANSWER.hot:
          if (this.budget <= 0) return undefined;
          exit = this.compileObserved(this.rip);
          break;
        case ANSWER.budget:
          // Not mid-block, or whatever instruction a slice happens to end at is looked up, and in the end compiled.
          if (more) return undefined;
          // A region wants its whole next block paid for; what is left of the budget is interpreted.
          while (this.budget > 0) {
            if (regions.hasStop(this.rip)) return { kind: "reached", ip: this.rip };
            exit = this.stepOne();
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
    const { trunk } = this.machine;
    for (let next = answer; ; next = trunk.one(this.cpu)) {
      switch (next) {
        case ANSWER.next:
        case ANSWER.jumped:
          this.tlb.closeWindows(true);
          return undefined;
        case ANSWER.system:
          this.tlb.closeWindows(false); // lifted code may have tried before it left the rest to us
          return this.executeSystem();
        case ANSWER.decode: {
          const record = this.fetcher.prepare(this.rip);
          if (typeof record !== "number") return this.raise(record);
          this.caches.setStep(this.rip, record);
          break;
        }
        case ANSWER.miss: {
          const fault = this.tlb.resolve();
          if (fault !== undefined) return this.raise(fault);
          break;
        }
        case ANSWER.recordFull:
          this.drain();
          break;
        default:
          this.tlb.closeWindows(next >= ANSWER.firstRetired);
          return this.exitOf(next);
      }
    }
  }

  /** Without an interrupt table a fault ends the run; with one, the guest has it (undefined). */
  private raise(fault: Fault, ip: Addr = this.rip): Exit | undefined {
    this.tlb.closeWindows(false);
    if (!this.interruption.hasTable) return { kind: "fault", ip, fault };
    if (fault.vector === "#PF") this.system.setWord("cr2", BigInt(fault.address));
    const event = eventOf(fault);
    return this.deliver(event.source === "software" ? { ...event, ip } : event);
  }

  private deliver(event: Event): Exit | undefined {
    // Retires nothing, but a guest whose handlers fault for ever must run out of budget too.
    this.budget--;
    this.charged++;
    this.witness.begin();
    const outcome = deliver(this.system, event);
    // An int n that faults has not retired.
    if (event.source === "software" && outcome !== event) this.charged++;
    this.interruption.look();
    this.witness.delivered(event, outcome);
    return outcome === "shutdown" ? { kind: "shutdown", ip: this.rip } : undefined;
  }

  private executeSystem(): Exit | undefined {
    const ip = this.rip;
    const instruction = this.fetcher.instruction(ip) ?? bug("a system instruction that cannot be fetched");
    this.witness.begin();
    const outcome = executeSystem(this.system, instruction, BigInt(this.instructions));
    if (outcome !== undefined && !("source" in outcome)) {
      this.witness.faulted();
      return this.raise(outcome);
    }
    this.budget--;
    this.witness.executed(instruction);
    if (serialises(instruction)) this.serialise();
    this.interruption.executed(instruction.mnemonic);
    this.interruption.look();
    if (outcome === undefined) return undefined;
    this.interruption.forgetStep();
    if (!this.interruption.hasTable) return { kind: "interrupt", ip, vector: outcome.vector };
    return this.deliver({ ...outcome, ip });
  }

  /** One instruction, or what comes instead of it. */
  private stepOne(): Exit | undefined {
    if (this.alone) return this.stepCarefully();
    return this.settle(this.machine.trunk.one(this.cpu));
  }

  /** Whether the next instruction must be executed by itself. */
  private get alone(): boolean {
    return this.interruption.careful || this.contested;
  }

  /** The same where an interrupt may be due, a trap follows, a breakpoint may lie, or others have stored to code. */
  private stepCarefully(): Exit | undefined {
    const { interruption } = this;
    if (!interruption.careful) return this.executeFetched(false);
    const trap = interruption.pending();
    if (trap !== undefined) return this.raise(trap);
    const due = interruption.due();
    if (due !== undefined) {
      if (!interruption.hasTable) return { kind: "interrupt", ip: this.rip, vector: due.vector };
      return this.deliver(due);
    }
    const before = interruption.before();
    if (before !== undefined) return this.raise(before);
    const exit = this.executeFetched(true);
    // A trap, or an interrupt that was waiting, ends a halt at once; any other exit comes first.
    if (exit !== undefined && exit.kind !== "halt") return exit;
    const behind = interruption.pending();
    if (behind !== undefined) return this.raise(behind);
    return interruption.wakes ? undefined : exit;
  }

  /** The instruction at rip, of the bytes that this vCPU fetches; with `traps`, notes those behind it. */
  private executeFetched(traps: boolean): Exit | undefined {
    const ip = this.rip;
    const retired = this.instructions;
    const stale = this.log?.isEmpty === false ? this.fetcher.choose(this.log, ip) : undefined;
    const mixed = stale?.mixed;
    if (mixed !== undefined && this.log?.options.mixed(mixed) === "stop")
      return { kind: "mixed", ip, fetch: mixed };
    if (stale !== undefined) this.substitute(ip, stale);
    const exit = this.settle(this.machine.trunk.one(this.cpu));
    if (traps && this.instructions > retired) this.interruption.after(this.rip === ip && this.repeats(ip));
    if (stale !== undefined) this.substitute(ip, undefined);
    return exit;
  }

  /** Makes `fetched` what is at `ip`, for this vCPU alone; undefined, what memory has. */
  private substitute(ip: Addr, fetched: StaleFetch | undefined): void {
    this.fetcher.use(fetched);
    this.caches.forgetAddress(ip);
  }

  /** Whether the instruction at `ip`, which has just led to itself, is a repeated string instruction. */
  private repeats(ip: Addr): boolean {
    return this.fetcher.instruction(ip)?.repeat !== undefined;
  }

  private exitOf(answer: number): Exit | undefined {
    const before = this.rip;
    const after = this.machine.host.getNumber(this.cpu + STATE.retiredIp) as Addr;
    switch (answer) {
      case ANSWER.divideError:
        return this.raise({ vector: "#DE" });
      case ANSWER.invalidOpcode:
        return this.raise({ vector: "#UD" });
      case ANSWER.generalProtection:
        return this.raise({ vector: "#GP", errorCode: 0 });
      case ANSWER.unimplemented:
        return { kind: "unimplemented", ip: before, ...this.fetcher.disassemble(before) };
      case ANSWER.breakpoint:
        this.interruption.forgetStep();
        return this.raise({ vector: "#BP" }, after);
      case ANSWER.hypercall:
        return { kind: "hypercall", ip: after };
      case ANSWER.halt:
        return { kind: "halt", ip: after };
      default:
        return bug(`answer ${answer} at ${hex(before)}`);
    }
  }

  // ---- Code.

  /**
   * Interprets from `from` until it comes round or something stops it, and compiles it with what was seen:
   * where returns and indirect jumps went, so that blocks lie in the order of execution.
   */
  private compileObserved(from: Addr): Exit | undefined {
    const { trunk, regions } = this.machine;
    const went = new Map<Addr, Addr>();
    const { user } = this.system;
    let exit: Exit | undefined;
    do {
      const before = this.rip;
      exit = this.settle(trunk.one(this.cpu));
      if (exit === undefined) went.set(before, this.rip);
    } while (
      exit === undefined &&
      this.rip !== from &&
      went.size < MAX_OBSERVED &&
      this.budget > 0 &&
      !this.interruption.careful &&
      this.system.user === user &&
      !regions.hasStop(this.rip)
    );
    // The instruction that ended it may have taken the right to be there, or left for the other level.
    if (this.fetcher.may(from, user)) this.caches.compile(from, went, user);
    return exit;
  }

  /** Drops what is known of the code at `rip`. */
  forgetAddress(rip: Addr): void {
    this.caches.forgetAddress(rip);
  }

  forgetRegion(region: Region): void {
    this.caches.forgetRegion(region);
  }

  revokePage(page: Addr): void {
    this.tlb.revoke(page);
  }

  revokeWrites(page: Addr): void {
    this.tlb.revokeWrites(page);
  }

  /** Drops all that was decided with the rights that the code had. */
  flushTlb(): void {
    this.flush();
  }

  /** Whether anything was executed since it was parked. */
  get hasRun(): boolean {
    return this.granted !== 0 || this.budget !== 0;
  }

  /** Puts into the state what is kept here of the last run, so that the state can be compared and saved. */
  park(): void {
    this.drainRecord();
    if (!this.hasRun) return;
    this.grant(0);
    this.machine.host.setNumber(this.cpu + STATE.retired, this.retiredBefore);
  }

  /** Takes up the state that was put in place of a parked one; `system` if more than registers may be different. */
  unpark(system: boolean): void {
    this.retiredBefore = this.machine.host.getNumber(this.cpu + STATE.retired);
    this.granted = 0;
    this.charged = 0;
    if (system) this.interruption.look();
  }

  /** Hands on what was recorded and traced. */
  private drain(): void {
    this.drainRecord();
    this.machine.tracer?.drain(this);
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

  private flush(): void {
    this.tlb.flush();
    this.caches.flush();
    this.interruption.look();
  }

  private get budget(): number {
    return this.machine.host.getNumber(this.cpu + STATE.budget);
  }

  private set budget(instructions: number) {
    this.machine.host.setNumber(this.cpu + STATE.budget, instructions);
  }

  private grant(instructions: number): void {
    this.retiredBefore = this.instructions;
    this.charged = 0;
    this.granted = instructions;
    this.budget = instructions;
  }
}
