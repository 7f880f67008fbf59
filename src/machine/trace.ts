// What a trace consists of: events, packed and as objects; and a record that keeps the latest of them.

import type { Addr } from "../base/addr.ts";
import { refuse } from "../base/refuse.ts";
import { TRACE } from "../x86/state.ts";
import type { Event } from "./system/exception.ts";

/** What to trace; nothing by default. */
export interface TraceKinds {
  /** Every instruction that retires, and every iteration of a repeated one. */
  readonly instructions?: boolean;
  /**
   * Reads and writes of guest memory by instructions that retired and by deliveries, in pieces of at most 8 bytes. Of
   * what faults, only stores that happened all the same (by `enter`, to descriptors).
   */
  readonly accesses?: boolean;
  /** Jumps, conditional ones taken or not, and what leads into the kernel and out of it by syscall and sysret. */
  readonly branches?: boolean;
  /** Calls and returns, iretq and far returns among the latter. */
  readonly calls?: boolean;
  /** Deliveries of exceptions and interrupts through the interrupt table. */
  readonly exceptions?: boolean;
}

interface Common {
  /** Number of the vCPU. */
  readonly vcpu: number;
  /** The instruction; of a delivery and its accesses, where what was interrupted goes on. */
  readonly ip: Addr;
}

export type TraceEvent = Common &
  (
    | { readonly kind: "instruction"; readonly length: number }
    /** `value` is little-endian, unsigned. */
    | {
        readonly kind: "read" | "write";
        readonly address: Addr;
        readonly size: number;
        readonly value: bigint;
      }
    /** `to` is where execution went on, whether it was taken or not. */
    | { readonly kind: "branch"; readonly taken: boolean; readonly to: Addr }
    /** `slot` is where the return address lies. */
    | { readonly kind: "call" | "return"; readonly to: Addr; readonly slot: Addr }
    | {
        readonly kind: "delivery";
        readonly vector: number;
        readonly source: Event["source"];
        readonly errorCode: number | undefined;
        /** The handler. */
        readonly to: Addr;
      }
  );

/** Gets events in the order of the program, some time after they happened: at the latest when the run or step ends. */
export type TraceSink = ((event: TraceEvent) => void) | TraceRecord;

/** How deliveries come about, as packed events number it. */
export const SOURCES: readonly Event["source"][] = ["fault", "trap", "software", "external", "nonmaskable"];

/** The packed event at the `at`th byte. */
export function unpackEvent(bytes: DataView, at: number): TraceEvent {
  const word = bytes.getUint32(at + TRACE.kind, true);
  const [kind, detail, source] = [word & 0xff, (word >>> 8) & 0xff, (word >>> 16) & 0xff];
  const number = (field: number): Addr =>
    (bytes.getInt32(at + field + 4, true) * 2 ** 32 + bytes.getUint32(at + field, true)) as Addr;
  const common = { vcpu: word >>> 24, ip: number(TRACE.ip) };
  const to = number(TRACE.address);
  switch (kind) {
    case TRACE.instruction:
      return { kind: "instruction", ...common, length: detail };
    case TRACE.branch:
      return { kind: "branch", ...common, taken: detail !== 0, to };
    case TRACE.call:
    case TRACE.return:
      return { kind: kind === TRACE.call ? "call" : "return", ...common, to, slot: number(TRACE.value) };
    case TRACE.delivery: {
      const code = number(TRACE.value);
      const errorCode = code < 0 ? undefined : code;
      return { kind: "delivery", ...common, vector: detail, source: SOURCES[source]!, errorCode, to };
    }
    default: {
      const value = BigInt.asUintN(8 * detail, bytes.getBigUint64(at + TRACE.value, true));
      return { kind: kind === TRACE.read ? "read" : "write", ...common, address: to, size: detail, value };
    }
  }
}

/** Events that are kept together. */
const CHUNK = 4096;

/** Keeps packed events, the latest up to a limit. Iterating unpacks them, from the oldest. */
export class TraceRecord implements Iterable<TraceEvent> {
  readonly limit: number;
  private readonly chunks: Uint8Array[] = [];
  /** Events of the first chunk that are gone already; events held. */
  private start = 0;
  private held = 0;
  private lost = 0;

  constructor(limit = 1_000_000) {
    if (!Number.isInteger(limit) || limit < 1) refuse("trace-limit", { limit });
    this.limit = limit;
  }

  get length(): number {
    return this.held;
  }

  /** How many events had to make room for later ones. */
  get dropped(): number {
    return this.lost;
  }

  /** Packed events, 32 bytes each (TRACE in x86/state.ts). */
  add(bytes: Uint8Array): void {
    for (let done = 0; done < bytes.length; ) {
      const within = (this.start + this.held) % CHUNK;
      if (within === 0) this.chunks.push(new Uint8Array(CHUNK * TRACE.size));
      const size = Math.min(bytes.length - done, (CHUNK - within) * TRACE.size);
      this.chunks.at(-1)!.set(bytes.subarray(done, done + size), within * TRACE.size);
      this.held += size / TRACE.size;
      done += size;
      while (this.held > this.limit) this.drop(Math.min(this.held - this.limit, CHUNK - this.start));
    }
  }

  clear(): void {
    this.chunks.length = 0;
    this.start = 0;
    this.held = 0;
    this.lost = 0;
  }

  *[Symbol.iterator](): Iterator<TraceEvent> {
    for (let n = 0; n < this.held; n++) {
      const place = this.start + n;
      const { buffer } = this.chunks[Math.floor(place / CHUNK)]!;
      yield unpackEvent(new DataView(buffer), (place % CHUNK) * TRACE.size);
    }
  }

  private drop(count: number): void {
    this.start += count;
    this.held -= count;
    this.lost += count;
    if (this.start < CHUNK) return;
    this.chunks.shift();
    this.start = 0;
  }
}
