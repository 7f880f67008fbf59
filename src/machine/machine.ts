// A machine: guest memory and the vCPUs that share it, with the code made from it.
//
// Everything a machine owns lies in one WebAssembly memory. vCPUs run one at a time, each until its run
// ends; all see the same memory, and a store to code is seen by every vCPU's next instruction.

import type { Addr } from "../base/addr.ts";
import { refuse } from "../base/refuse.ts";
import { CallRecord, type TrueFrame } from "./callRecord.ts";
import { Host } from "./host.ts";
import { Interpreter } from "./interpreter.ts";
import { Memory } from "./memory.ts";
import { Regions } from "./regions.ts";
import { Slots } from "./slots.ts";
import { type Snapshot, type SnapshotStats, Snapshots } from "./snapshot.ts";
import { makeTrunk, type Trunk } from "./trunk.ts";
import { Vcpu } from "./vcpu.ts";

export const MAX_VCPUS = 64;

export interface MachineOptions {
  /** How many vCPUs; default 1. */
  readonly vcpus?: number;
  /** Record the true call chain, for `trueStack`; default false. */
  readonly recordCalls?: boolean;
}

export class Machine {
  readonly memory: Memory;
  readonly vcpus: readonly Vcpu[];
  readonly calls = new CallRecord();
  // For the vCPUs.
  readonly host = new Host();
  readonly trunk: Trunk;
  readonly interpreter: Interpreter;
  readonly regions: Regions;
  private recording: boolean;
  private snapshots: Snapshots | undefined;

  constructor({ vcpus = 1, recordCalls = false }: MachineOptions = {}) {
    if (!Number.isInteger(vcpus) || vcpus < 1 || vcpus > MAX_VCPUS)
      refuse("vcpu-count", { count: vcpus, limit: MAX_VCPUS });
    this.recording = recordCalls;
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
    const slots = new Slots(this.trunk);
    const isRecording = () => this.recording;
    this.interpreter = new Interpreter(host, this.memory, slots, isRecording, (ip) => this.forgetAddress(ip));
    this.regions = new Regions(host, this.memory, slots, isRecording, (region) => {
      for (const vcpu of this.vcpus) vcpu.forgetRegion(region);
    });
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
    this.interpreter.dropAll();
    this.regions.retireAll();
  }

  /** The calls that have not returned yet on the stack that `rsp` is in, innermost first. */
  trueStack(rsp: Addr): TrueFrame[] {
    for (const vcpu of this.vcpus) vcpu.drainRecord();
    return this.calls.chain(rsp);
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
   * is in it, and the vCPUs but for the count of what they executed. After the first time, only what has
   * changed is looked at.
   */
  hash(): bigint {
    return this.followed.hash();
  }

  get snapshotStats(): SnapshotStats {
    return this.followed.stats;
  }

  /** Makes every vCPU look up `ip` anew when it gets there. */
  forgetAddress(ip: Addr): void {
    for (const vcpu of this.vcpus) vcpu.forgetAddress(ip);
  }

  private get followed(): Snapshots {
    this.snapshots ??= new Snapshots(this.host, this.memory, this.vcpus, this.calls);
    return this.snapshots;
  }
}
