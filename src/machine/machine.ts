// A machine: guest memory and the vCPUs that share it, with the code made from it.
//
// Everything a machine owns lies in one WebAssembly memory. vCPUs run one at a time, each until its run
// ends; all see the same memory, and a store to code is seen by every vCPU's next instruction, unless the machine
// is told that they may see it late.

import type { Addr } from "../base/addr.ts";
import { refuse } from "../base/refuse.ts";
import { TRACED } from "../x86/state.ts";
import type { TrueFrame } from "./callChain.ts";
import { CallRecord } from "./callRecord.ts";
import { FetchLogs } from "./fetchLog.ts";
import { Host, type HostAddress } from "./host.ts";
import { Interpreter } from "./interpreter.ts";
import { Keeper } from "./kept.ts";
import { Memory } from "./memory.ts";
import { Regions } from "./regions.ts";
import { Slots } from "./slots.ts";
import { type Snapshot, type SnapshotStats, Snapshots } from "./snapshot.ts";
import type { CodeVisibility } from "./staleCode.ts";
import type { TraceKinds, TraceSink } from "./trace.ts";
import { reserveTraceBuffer, Tracer } from "./tracer.ts";
import { DISPOSED_TRUNK, makeTrunk, type Trunk } from "./trunk.ts";
import { Vcpu } from "./vcpu.ts";

export const MAX_VCPUS = 64;

export interface MachineOptions {
  /** How many vCPUs; default 1. */
  readonly vcpus?: number;
  /** Record the true call chain, for `trueStack`; default false. */
  readonly recordCalls?: boolean;
  /** How vCPUs see stores to code that others made; default `coherent`. */
  readonly code?: CodeVisibility;
  /** Compile hot code; default true. Where all stop every few instructions, to interpret everything is faster. */
  readonly compile?: boolean;
}

/** A trace that is on. */
export interface Trace {
  /** Ends it; doing this again does nothing. */
  stop(): void;
}

/** What a machine holds at present, and gives back or uses again rather than let it grow without end. */
export interface MachineUsage {
  /** Bytes of its WebAssembly memory that are in use. */
  readonly bytes: number;
  /** Functions in its table: forms of instructions, and regions. */
  readonly functions: number;
  /** Forms of instructions that have a step function. */
  readonly forms: number;
  /** Regions that are entered, and retired ones that wait for their bytes to come back. */
  readonly regions: number;
  readonly retiredRegions: number;
  /** Decoded instructions. */
  readonly instructions: number;
}

export class Machine {
  readonly memory: Memory;
  readonly vcpus: readonly Vcpu[];
  readonly calls = new CallRecord();
  /** Of what is kept beside it and goes with its snapshots. */
  readonly keeper = new Keeper();
  // For the vCPUs.
  readonly host = new Host();
  trunk: Trunk;
  readonly interpreter: Interpreter;
  readonly regions: Regions;
  readonly fetchLogs: FetchLogs | undefined;
  private readonly slots: Slots;
  /** While something is traced. */
  tracer: Tracer | undefined;
  /** Whether calls are recorded or something is traced, and somebody has to hear of it when a run ends. */
  observed: boolean;
  private traceBuffer: HostAddress | undefined;
  private recording: boolean;
  private readonly compiles: boolean;
  private snapshots: Snapshots | undefined;

  constructor({ vcpus = 1, recordCalls = false, code = "coherent", compile = true }: MachineOptions = {}) {
    if (!Number.isInteger(vcpus) || vcpus < 1 || vcpus > MAX_VCPUS)
      refuse("vcpu-count", { count: vcpus, limit: MAX_VCPUS });
    this.recording = recordCalls;
    this.compiles = compile;
    this.observed = recordCalls;
    const { host } = this;
    this.trunk = makeTrunk(host);
    this.memory = new Memory(host, {
      revoked: (page) => {
        for (const vcpu of this.vcpus) vcpu.revokePage(page);
      },
      codeWritten: (at, size) => {
        this.interpreter.invalidate(at, size);
        this.regions.invalidate(at, size);
      },
    });
    this.fetchLogs = code === "coherent" ? undefined : new FetchLogs(code);
    this.memory.codeStores = this.fetchLogs;
    this.slots = new Slots(this.trunk);
    const { slots } = this;
    const isRecording = () => this.recording;
    this.interpreter = new Interpreter(host, this.memory, slots, isRecording, (ip) => this.forgetAddress(ip));
    this.regions = new Regions(host, this.memory, slots, isRecording, (region) => {
      for (const vcpu of this.vcpus) vcpu.forgetRegion(region);
    });
    this.regions.suspended = !compile;
    this.vcpus = Array.from({ length: vcpus }, (_, index) => new Vcpu(this, index));
  }

  /** Instructions retired by all vCPUs. */
  get instructions(): number {
    return this.vcpus.reduce((sum, vcpu) => sum + vcpu.instructions, 0);
  }

  get recordCalls(): boolean {
    return this.recording;
  }

  /** Recorded and unrecorded code are compiled apart; switching drops what is decoded. */
  set recordCalls(on: boolean) {
    if (on === this.recording) return;
    this.recording = on;
    this.observed = on || this.tracer !== undefined;
    this.interpreter.dropAll();
    this.regions.retireAll();
  }

  /** The calls and interrupts that have not returned yet on the stack that `rsp` is in, innermost first. */
  trueStack(rsp: Addr): TrueFrame[] {
    for (const vcpu of this.vcpus) vcpu.drainRecord();
    return this.calls.onStack(rsp);
  }

  /**
   * The same across stacks: on to what was interrupted, on whatever stack, and what stacks were switched for, until
   * user mode or where execution began.
   */
  trueChain(rsp: Addr): TrueFrame[] {
    for (const vcpu of this.vcpus) vcpu.drainRecord();
    return this.calls.across(rsp);
  }

  /**
   * Tells `sink` from now on what is executed, of the given kinds. Until it is stopped everything is interpreted, unless
   * only exceptions are traced. What the laboratory itself does to registers and memory is not told.
   */
  trace(kinds: TraceKinds, sink: TraceSink): Trace {
    if (this.tracer !== undefined) refuse("trace-on", {});
    this.traceBuffer ??= reserveTraceBuffer(this.host);
    const tracer = new Tracer(this.host, this.traceBuffer, kinds, sink);
    for (const vcpu of this.vcpus) {
      tracer.open(vcpu);
      vcpu.system.traced = (write, at, size, value) => tracer.access(write, at, size, value);
    }
    this.setTracer(tracer);
    return {
      stop: () => {
        if (this.tracer !== tracer) return;
        for (const vcpu of this.vcpus) vcpu.system.traced = undefined;
        this.setTracer(undefined);
      },
    };
  }

  /** The present state, to come back to: guest memory with its mappings, the vCPUs, the record of calls. */
  snapshot(): Snapshot {
    return this.followed.take();
  }

  /** Comes back to `snapshot`, which this machine made; it can be restored any number of times. */
  restore(snapshot: Snapshot): void {
    this.followed.restore(snapshot);
  }

  /**
   * 64 bits that are equal for equal states, however they came about: what is mapped, with which permissions, what
   * is in it, and the vCPUs, with what they may still see of code, but for the count of what they executed. After
   * the first time, only what has changed is looked at.
   */
  hash(): bigint {
    return this.followed.hash();
  }

  get snapshotStats(): SnapshotStats {
    return this.followed.stats;
  }

  get usage(): MachineUsage {
    const { host, slots, interpreter, regions } = this;
    return {
      bytes: host.reserved,
      functions: slots.used,
      forms: interpreter.formCount,
      regions: regions.activeCount,
      retiredRegions: regions.keptCount,
      instructions: interpreter.recordCount,
    };
  }

  /**
   * Gives its memory back, which the next machine then need not make; to be called where many machines are made.
   * Whatever is asked of it after that is refused; doing this again does nothing.
   */
  dispose(): void {
    if (this.trunk === DISPOSED_TRUNK) return;
    this.trunk = DISPOSED_TRUNK;
    this.host.dispose();
  }

  /** Makes every vCPU look up `ip` anew when it gets there. */
  forgetAddress(ip: Addr): void {
    for (const vcpu of this.vcpus) vcpu.forgetAddress(ip);
  }

  private setTracer(tracer: Tracer | undefined): void {
    this.tracer = tracer;
    this.observed = this.recording || tracer !== undefined;
    // Deliveries are not lifted code's: to trace those alone costs it nothing.
    const kinds = (tracer?.kinds ?? 0) & ~TRACED.exceptions;
    if (kinds === this.interpreter.traced) return;
    this.regions.suspended = kinds !== 0 || !this.compiles;
    this.interpreter.traced = kinds;
    this.interpreter.dropAll();
    for (const vcpu of this.vcpus) vcpu.flushTlb();
  }

  private get followed(): Snapshots {
    this.snapshots ??= new Snapshots(
      this.host,
      this.memory,
      this.vcpus,
      this.calls,
      this.fetchLogs,
      this.keeper,
    );
    return this.snapshots;
  }
}
