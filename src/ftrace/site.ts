// The five bytes of a call site: what they can be.

import { type Addr, hex } from "../base/addr.ts";
import { refuse } from "../base/refuse.ts";
import { OPCODE } from "./layout.ts";

/** In bytes: a near call or jump, and the NOP in its place. */
export const SITE_SIZE = 5;

/** nopl 0x0(%rax,%rax,1), the five-byte NOP that the manual recommends (SDM vol. 2, NOP). */
export const NOP5 = Uint8Array.of(OPCODE.NOP_INSN_OPCODE, 0x1f, 0x44, 0x00, 0x00);

/** `call target` as it is encoded at `site`. */
export function callBytes(site: Addr, target: Addr): Uint8Array {
  return nearBytes(OPCODE.CALL_INSN_OPCODE, site, target);
}

/** `jmp target` as it is encoded at `site`, of the same size. */
export function jumpBytes(site: Addr, target: Addr): Uint8Array {
  return nearBytes(OPCODE.JMP32_INSN_OPCODE, site, target);
}

/** Where the call or jump goes that `bytes` are at `site`; undefined if they are neither. */
export function targetOf(site: Addr, bytes: Uint8Array): Addr | undefined {
  const [opcode] = bytes;
  if (opcode !== OPCODE.CALL_INSN_OPCODE && opcode !== OPCODE.JMP32_INSN_OPCODE) return undefined;
  return (site + SITE_SIZE + new DataView(bytes.buffer, bytes.byteOffset).getInt32(1, true)) as Addr;
}

function nearBytes(opcode: number, site: Addr, target: Addr): Uint8Array {
  const displacement = target - (site + SITE_SIZE);
  if (displacement !== (displacement | 0)) refuse("call-range", { site: hex(site), target: hex(target) });
  const bytes = new Uint8Array(SITE_SIZE);
  bytes[0] = opcode;
  new DataView(bytes.buffer).setInt32(1, displacement, true);
  return bytes;
}
