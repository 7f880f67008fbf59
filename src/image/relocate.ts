// One relocation, applied: the field takes S + A, less P for the PC-relative kinds
// (System V psABI, table 4.9; PLT32 is PC32 here, for a kernel has no procedure linkage table).
// Refuses a value that its field cannot hold; never writes a truncated one.

import type { Addr } from "../base/addr.ts";
import { hex } from "../base/addr.ts";
import { refuse } from "../base/refuse.ts";
import type { Relocation, RelocationType } from "../x86/object.ts";

/** What a relocation computes from, and the words for it in a refusal. */
export interface Site {
  /** The section's bytes in the image; `relocation.offset` counts from their start. */
  readonly bytes: Uint8Array;
  /** Address of the field. */
  readonly at: Addr;
  /** Address of the symbol. */
  readonly target: Addr;
  readonly symbol: string;
  /** Object and section of the field: `readfile.o .text+0x12`. */
  readonly place: string;
}

/** Bytes that each relocation writes. */
export const FIELD_WIDTH: Record<RelocationType, 4 | 8> = {
  R_X86_64_64: 8,
  R_X86_64_PC32: 4,
  R_X86_64_PLT32: 4,
  R_X86_64_32: 4,
  R_X86_64_32S: 4,
  R_X86_64_PC64: 8,
};

/** The kinds whose value is a distance from the field. */
const RELATIVE: readonly RelocationType[] = ["R_X86_64_PC32", "R_X86_64_PLT32", "R_X86_64_PC64"];

/** Writes the field of `relocation` at `site`, which must lie within `site.bytes`. */
export function relocate(relocation: Relocation, site: Site): void {
  const { bytes, at, target } = site;
  const { offset, type, addend } = relocation;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const from = RELATIVE.includes(type) ? at : 0;
  if (FIELD_WIDTH[type] === 8) {
    view.setBigInt64(offset, BigInt(target) + BigInt(addend) - BigInt(from), true);
    return;
  }
  // Exact where it matters: a sum that rounds is far outside every 32-bit field.
  const value = target + addend - from;
  const lowest = type === "R_X86_64_32" ? 0 : -(2 ** 31);
  if (value < lowest || value >= lowest + 2 ** 32) {
    const { place, symbol } = site;
    refuse("relocation-overflow", { place, type, symbol, target: hex(target), at: hex(at) });
  }
  view.setInt32(offset, value | 0, true);
}
