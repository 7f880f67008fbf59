// The buffer that traced events go through, from lifted code and from what TypeScript executes, to whoever wants them.
//
// One for all vCPUs, which run one at a time: it is empty whenever none does.

import type { Addr } from "../base/addr.ts";
import type { Instruction } from "../x86/decode.ts";
import { STATE, TRACE, TRACED } from "../x86/state.ts";
import type { Host, HostAddress } from "./host.ts";
import type { Event } from "./system/exception.ts";
import { isFarReturn } from "./system/farTransfer.ts";
import { SOURCES, type TraceKinds, TraceRecord, type TraceSink, unpackEvent } from "./trace.ts";
import type { Vcpu } from "./vcpu.ts";

const EVENTS = 4096;
/** Room for what TypeScript executes at a time: `enter` that nests deepest makes 65 events. */
const SYSTEM_ROOM = 80;
/** Room for an instruction of lifted code, and still for what TypeScript does next. */
const LIFTED_ROOM = SYSTEM_ROOM + 48;

interface Access {
  readonly write: boolean;
  readonly at: Addr;
  readonly size: number;
  readonly value: bigint;
}

/** Host memory for a machine's traces. */
export function reserveTraceBuffer(host: Host): HostAddress {
  return host.reserve(EVENTS * TRACE.size);
}

export class Tracer {
  /** Bits of TRACED. */
  readonly kinds: number;
  private readonly host: Host;
  private readonly buffer: HostAddress;
  private readonly sink: TraceSink;
  /** Of what TypeScript is executing, which may still fault. */
  private readonly accesses: Access[] = [];

  constructor(host: Host, buffer: HostAddress, kinds: TraceKinds, sink: TraceSink) {
    this.host = host;
    this.buffer = buffer;
    this.sink = sink;
    this.kinds = 0;
    for (const [name, bit] of Object.entries(TRACED) as [keyof TraceKinds, number][])
      if (kinds[name] === true) this.kinds |= bit;
  }

  /** Lets a vCPU write events. */
  open({ cpu }: Vcpu): void {
    this.host.i32[(cpu + STATE.traceNext) >> 2] = this.buffer;
    this.host.i32[(cpu + STATE.traceEnd) >> 2] = this.buffer + (EVENTS - LIFTED_ROOM) * TRACE.size;
  }

  /** Hands on what `vcpu` has written. */
  drain(vcpu: Vcpu): void {
    const { host, buffer, sink } = this;
    const end = this.next(vcpu);
    if (end === buffer) return;
    this.open(vcpu);
    for (let event = buffer; event < end; event += TRACE.size) host.u8[event + TRACE.kind + 3] = vcpu.index;
    if (sink instanceof TraceRecord) {
      sink.add(host.u8.subarray(buffer, end));
      return;
    }
    const bytes = host.u8.slice(buffer, end); // a sink may run a machine
    const view = new DataView(bytes.buffer);
    for (let at = 0; at < bytes.length; at += TRACE.size) sink(unpackEvent(view, at));
  }

  // ---- What TypeScript executes.

  /** Starts on an instruction or a delivery. */
  begin(vcpu: Vcpu): void {
    this.accesses.length = 0;
    if (this.next(vcpu) > this.buffer + (EVENTS - SYSTEM_ROOM) * TRACE.size) this.drain(vcpu);
  }

  /** Part of what was begun. */
  access(write: boolean, at: Addr, size: number, value: bigint): void {
    if ((this.kinds & TRACED.accesses) !== 0) this.accesses.push({ write, at, size, value });
  }

  /** The system instruction that was begun has retired; it began with `rsp`. */
  executed(vcpu: Vcpu, instruction: Instruction, rsp: Addr): void {
    const { ip, length, next } = instruction;
    this.put(vcpu, TRACED.instructions, TRACE.instruction, length, ip);
    this.putAccesses(vcpu, ip);
    if (isFarReturn(instruction)) this.put(vcpu, TRACED.calls, TRACE.return, 0, ip, vcpu.rip, BigInt(rsp));
    else if (vcpu.rip !== next) this.put(vcpu, TRACED.branches, TRACE.branch, 1, ip, vcpu.rip);
  }

  /** What was begun has faulted, for good. What it stored before that stays in memory. */
  faulted(vcpu: Vcpu, ip: Addr): void {
    const writes = this.accesses.filter(({ write }) => write);
    this.accesses.splice(0, this.accesses.length, ...writes);
    this.putAccesses(vcpu, ip);
  }

  /** The delivery that was begun has led to its handler; what was interrupted goes on at `ip`. */
  delivered(vcpu: Vcpu, { vector, source, errorCode = -1 }: Event, ip: Addr): void {
    const detail = vector | (SOURCES.indexOf(source) << 8);
    this.put(vcpu, TRACED.exceptions, TRACE.delivery, detail, ip, vcpu.rip, BigInt(errorCode));
    this.putAccesses(vcpu, ip);
  }

  /** The instruction that was last to write an event has not retired after all. */
  withdraw(vcpu: Vcpu): void {
    if ((this.kinds & TRACED.instructions) !== 0) this.setNext(vcpu, this.next(vcpu) - TRACE.size);
  }

  private putAccesses(vcpu: Vcpu, ip: Addr): void {
    for (const { write, at, size, value } of this.accesses)
      this.put(vcpu, TRACED.accesses, write ? TRACE.write : TRACE.read, size, ip, at, value);
    this.accesses.length = 0;
  }

  private put(
    vcpu: Vcpu,
    wanted: number,
    kind: number,
    detail: number,
    ip: Addr,
    address: number = 0,
    value = 0n,
  ): void {
    if ((this.kinds & wanted) === 0) return;
    const { host } = this;
    const event = this.next(vcpu);
    host.setNumber(event + TRACE.kind, kind | (detail << 8));
    host.setNumber(event + TRACE.ip, ip);
    host.setNumber(event + TRACE.address, address);
    host.i64[(event + TRACE.value) >> 3] = BigInt.asIntN(64, value);
    this.setNext(vcpu, event + TRACE.size);
  }

  private next({ cpu }: Vcpu): HostAddress {
    return this.host.i32[(cpu + STATE.traceNext) >> 2]!;
  }

  private setNext({ cpu }: Vcpu, at: HostAddress): void {
    this.host.i32[(cpu + STATE.traceNext) >> 2] = at;
  }
}
