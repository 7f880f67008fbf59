// What the record of calls and a trace hear of what TypeScript executes for a vCPU: deliveries, and system instructions.
// What lifted code executes, it tells them itself.

import type { Addr } from "../base/addr.ts";
import type { Instruction } from "../x86/decode.ts";
import type { Machine } from "./machine.ts";
import type { Event } from "./system/exception.ts";
import { isFarReturn } from "./system/farTransfer.ts";
import type { Vcpu } from "./vcpu.ts";

export class Witness {
  private readonly machine: Machine;
  private readonly vcpu: Vcpu;
  /** Where the vCPU was at `begin`. */
  private rip = 0 as Addr;
  private rsp = 0 as Addr;
  private user = false;

  constructor(machine: Machine, vcpu: Vcpu) {
    this.machine = machine;
    this.vcpu = vcpu;
  }

  /** A system instruction or a delivery comes now. */
  begin(): void {
    const { machine, vcpu } = this;
    if (!machine.recordCalls && machine.tracer === undefined) return;
    this.rip = vcpu.rip;
    this.rsp = vcpu.rsp;
    this.user = vcpu.system.user;
    machine.tracer?.begin(vcpu);
  }

  /** The instruction has retired. */
  executed(instruction: Instruction): void {
    const { machine, vcpu, rsp, user } = this;
    machine.tracer?.executed(vcpu, instruction, rsp);
    if (!machine.recordCalls) return;
    const { calls } = machine;
    vcpu.drainRecord();
    if (isFarReturn(instruction)) {
      calls.farReturn(rsp, vcpu.rsp, vcpu.system.user);
      return;
    }
    if (user && !vcpu.system.user) calls.enter(rsp);
    if (vcpu.rsp !== rsp) calls.move(rsp, vcpu.rsp);
    if (!user && vcpu.system.user) calls.leave(vcpu.rsp);
  }

  /** The instruction has faulted, and is no more. */
  faulted(): void {
    this.machine.tracer?.faulted(this.vcpu, this.rip);
  }

  /** `event` has been delivered, or what came of trying. */
  delivered(event: Event, outcome: Event | "shutdown"): void {
    const { machine, vcpu, rsp, user } = this;
    const { tracer } = machine;
    // A software interrupt that cannot be delivered has not happened: its instruction is what the fault interrupts.
    const undone = event.source === "software" && outcome !== event;
    if (undone) tracer?.withdraw(vcpu);
    if (outcome === "shutdown") {
      this.faulted();
      return;
    }
    const ip = undone ? (event.ip ?? this.rip) : this.rip;
    tracer?.delivered(vcpu, outcome, ip);
    if (!machine.recordCalls) return;
    vcpu.drainRecord();
    const slot = (vcpu.rsp + (outcome.errorCode === undefined ? 0 : 8)) as Addr;
    machine.calls.interrupt({ kind: "interrupt", vector: outcome.vector, ip, slot, rsp, user });
  }
}
