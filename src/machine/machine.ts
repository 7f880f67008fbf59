// A machine: guest memory and the vCPUs that share it, with the code made from it.
//
// Everything a machine owns lies in one WebAssembly memory. vCPUs run one at a time, each until its run
// ends; all see the same memory, and a store to code is seen by every vCPU's next instruction.

import type { Addr } from "../base/addr.ts";
import { CallRecord, type TrueFrame } from "./callRecord.ts";
import { Host } from "./host.ts";
import { Interpreter } from "./interpreter.ts";
import { Memory } from "./memory.ts";
import { Regions } from "./regions.ts";
import { Slots } from "./slots.ts";
import { makeTrunk, type Trunk } from "./trunk.ts";
import { Vcpu } from "./vcpu.ts";

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

  constructor({ vcpus = 1, recordCalls = false }: MachineOptions = {}) {
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

  /** Makes every vCPU look up `ip` anew when it gets there. */
  forgetAddress(ip: Addr): void {
    for (const vcpu of this.vcpus) vcpu.forgetAddress(ip);
  }
}
