// The one WebAssembly memory of a machine: vCPU states, decoded records, scratch, guest frames.
//
// Growing replaces the buffer, and with it every view: always go through these fields, and keep none.
//
// Memories go back to a pool: to make one costs more than the rest of a machine, and as each takes gigabytes of
// address space, thousands that wait for the garbage collector exhaust it.

import { refuse } from "../base/refuse.ts";
import { STATE } from "../x86/state.ts";

const WASM_PAGE = 65536;
/** Reserved address space; the operating system commits what is touched. */
const INITIAL_BYTES = 32 * 1024 * 1024;
/** So that an address is a positive int32. */
const MAXIMUM_BYTES = 2 ** 31;
/** A memory that has grown is not kept, as it cannot shrink. */
const MAX_POOLED = 16;

/** An address in the WebAssembly memory. */
export type HostAddress = number;

/** A memory that nobody uses, with how much of it was used before. */
interface Pooled {
  readonly memory: WebAssembly.Memory;
  readonly used: HostAddress;
}

const pool: Pooled[] = [];

/** How many memories wait to be used again. */
export function pooledMemories(): number {
  return pool.length;
}

export class Host {
  readonly memory: WebAssembly.Memory;
  u8!: Uint8Array;
  i32!: Int32Array;
  i64!: BigInt64Array;
  /** For words that need not be aligned. */
  view!: DataView;
  private top: HostAddress = WASM_PAGE; // nothing at address zero
  /** Below that, what was not reserved yet may be what an earlier machine has left. */
  private readonly used: HostAddress;

  constructor() {
    const { memory, used } = pool.pop() ?? { memory: makeMemory(), used: 0 };
    this.memory = memory;
    this.used = used;
    this.refresh();
  }

  /** Bytes reserved so far: what the process holds for it, at most. */
  get reserved(): number {
    return this.top;
  }

  /** Reserves `size` zeroed bytes, for good. */
  reserve(size: number, align = 16): HostAddress {
    const at = Math.ceil(this.top / align) * align;
    const end = at + size;
    if (end > this.u8.length) this.grow(end);
    if (at < this.used) this.u8.fill(0, at, Math.min(end, this.used));
    this.top = end;
    return at;
  }

  /** Refuses if not as much as `size` bytes more can be reserved. */
  require(size: number): void {
    if (this.top + size > this.u8.length) this.grow(this.top + size);
  }

  /** Gives the memory back. Whoever uses it after that is refused. */
  dispose(): void {
    if (this.u8.length === INITIAL_BYTES && pool.length < MAX_POOLED)
      pool.push({ memory: this.memory, used: Math.max(this.top, this.used) });
    const get = () => refuse("machine-disposed", {});
    for (const field of ["memory", "u8", "i32", "i64", "view"]) Object.defineProperty(this, field, { get });
  }

  reserveVcpu(): HostAddress {
    return this.reserve(STATE.size, 4096);
  }

  /** A canonical address or another exact integer, stored as 64 bits. */
  getNumber(at: HostAddress): number {
    return this.i32[(at >> 2) + 1]! * 2 ** 32 + (this.i32[at >> 2]! >>> 0);
  }

  setNumber(at: HostAddress, value: number): void {
    this.i32[at >>> 2] = (value % 2 ** 32) | 0;
    this.i32[(at >>> 2) + 1] = Math.floor(value / 2 ** 32) | 0;
  }

  private grow(needed: number): void {
    const { length } = this.u8;
    if (needed > MAXIMUM_BYTES) refuse("machine-too-large", { limit: MAXIMUM_BYTES / 2 ** 30 });
    const bytes = Math.min(Math.max(needed, 2 * length), MAXIMUM_BYTES);
    try {
      this.memory.grow(Math.ceil((bytes - length) / WASM_PAGE));
    } catch {
      refuse("no-host-memory", {});
    }
    this.refresh();
  }

  private refresh(): void {
    this.u8 = new Uint8Array(this.memory.buffer);
    this.i32 = new Int32Array(this.memory.buffer);
    this.i64 = new BigInt64Array(this.memory.buffer);
    this.view = new DataView(this.memory.buffer);
  }
}

function makeMemory(): WebAssembly.Memory {
  try {
    return new WebAssembly.Memory({
      initial: INITIAL_BYTES / WASM_PAGE,
      maximum: MAXIMUM_BYTES / WASM_PAGE,
    });
  } catch {
    return refuse("no-host-memory", {});
  }
}
