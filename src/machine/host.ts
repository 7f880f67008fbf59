// The one WebAssembly memory of a machine: vCPU states, decoded records, scratch, guest frames.
//
// Growing replaces the buffer, and with it every view: always go through these fields, and keep none.

import { bug } from "../base/refuse.ts";
import { STATE } from "../x86/state.ts";

const WASM_PAGE = 65536;
/** Reserved address space; the operating system commits what is touched. */
const INITIAL_BYTES = 32 * 1024 * 1024;
const MAXIMUM_BYTES = 2 ** 32 - WASM_PAGE;

/** An address in the WebAssembly memory. */
export type HostAddress = number;

export class Host {
  readonly memory: WebAssembly.Memory;
  u8!: Uint8Array;
  i32!: Int32Array;
  i64!: BigInt64Array;
  private top: HostAddress = WASM_PAGE; // nothing at address zero

  constructor() {
    this.memory = new WebAssembly.Memory({
      initial: INITIAL_BYTES / WASM_PAGE,
      maximum: MAXIMUM_BYTES / WASM_PAGE,
    });
    this.refresh();
  }

  /** Reserves `size` zeroed bytes, for good. */
  reserve(size: number, align = 16): HostAddress {
    const at = Math.ceil(this.top / align) * align;
    this.top = at + size;
    const short = this.top - this.u8.length;
    if (short > 0) {
      const pages = Math.ceil(
        Math.max(short, Math.min(this.u8.length, MAXIMUM_BYTES - this.u8.length)) / WASM_PAGE,
      );
      if (this.top > MAXIMUM_BYTES) bug("a machine needs more than 4 GiB");
      this.memory.grow(pages);
      this.refresh();
    }
    return at;
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

  private refresh(): void {
    this.u8 = new Uint8Array(this.memory.buffer);
    this.i32 = new Int32Array(this.memory.buffer);
    this.i64 = new BigInt64Array(this.memory.buffer);
  }
}
