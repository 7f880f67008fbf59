// The five bytes of a call site: what they can be, and how they are rewritten.

import { type Addr, hex } from "../base/addr.ts";
import { hexBytes, sameBytes } from "../base/bytes.ts";
import { refuse } from "../base/refuse.ts";
import type { Memory } from "../machine/memory.ts";

/** In bytes: a near call, and the NOP in its place. */
export const SITE_SIZE = 5;

/** nopl 0x0(%rax,%rax,1), the five-byte NOP that the manual recommends (SDM vol. 2, NOP). */
export const NOP5 = Uint8Array.of(0x0f, 0x1f, 0x44, 0x00, 0x00);

/** `call target` as it is encoded at `site`. */
export function callBytes(site: Addr, target: Addr): Uint8Array {
  const displacement = target - (site + SITE_SIZE);
  if (displacement !== (displacement | 0)) refuse("call-range", { site: hex(site), target: hex(target) });
  const bytes = new Uint8Array(SITE_SIZE);
  bytes[0] = 0xe8;
  new DataView(bytes.buffer).setInt32(1, displacement, true);
  return bytes;
}

/** Refuses a site at which something else than `expected` is found. */
export function expectBytes(memory: Memory, site: Addr, expected: Uint8Array): void {
  const found = memory.read(site, SITE_SIZE);
  if (!sameBytes(found, expected)) {
    refuse("site-bytes", { site: hex(site), found: hexBytes(found), want: hexBytes(expected) });
  }
}

/** Replaces `expected` at `site` by `bytes`; refuses, without a change, if something else is there. */
export function rewrite(memory: Memory, site: Addr, expected: Uint8Array, bytes: Uint8Array): void {
  expectBytes(memory, site, expected);
  memory.write(site, bytes);
}
