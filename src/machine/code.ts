// Fetching: instructions from guest memory, decoded, with the pages they came from marked as code.

import { type Addr, PAGE_SIZE, pageOf } from "../base/addr.ts";
import { decode, type Instruction, MAX_LENGTH } from "../x86/decode.ts";
import type { Memory } from "./memory.ts";

export type Fetched =
  | { readonly kind: "instruction"; readonly instruction: Instruction }
  | { readonly kind: "invalid" }
  /** `address` is the first byte that cannot be fetched; `present` if it is mapped, but not executable. */
  | { readonly kind: "fault"; readonly address: Addr; readonly present: boolean };

/** The instruction at `ip`, as the CPU would fetch it. */
export function fetch(memory: Memory, ip: Addr): Fetched {
  const first = memory.find(ip);
  if (first?.access.execute !== true) return { kind: "fault", address: ip, present: first !== undefined };
  const here = Math.min(MAX_LENGTH, pageOf(ip) + PAGE_SIZE - ip);
  const following = here < MAX_LENGTH ? ((pageOf(ip) + PAGE_SIZE) as Addr) : undefined; // perhaps not canonical: not mapped
  const second = following === undefined ? undefined : memory.find(following);
  const length = second?.access.execute === true ? MAX_LENGTH : here;
  const decoded = decode(memory.read(ip, length), ip);
  if (decoded.kind === "truncated") {
    return { kind: "fault", address: following!, present: second !== undefined };
  }
  memory.markCode(ip);
  const end = decoded.kind === "instruction" ? decoded.instruction.next : ip + length; // perhaps not canonical
  if (following !== undefined && end > following) memory.markCode(following);
  return decoded;
}

/** Whether the bytes up to the end of the page that holds `ip` encode nothing, whatever follows them. */
export function isInvalidOnPage(memory: Memory, ip: Addr): boolean {
  const here = Math.min(MAX_LENGTH, pageOf(ip) + PAGE_SIZE - ip);
  return decode(memory.read(ip, here), ip).kind === "invalid";
}
