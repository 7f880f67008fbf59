// What a family file exports: one definition per instruction, keyed by iced-x86's mnemonic.

import type { Mnemonic } from "../decode.ts";
import type { Emitter } from "./emitter.ts";

/** Emits one instruction. Sizes and operand kinds may be asked of the emitter, values only as code. */
export type Lift = (e: Emitter) => void;

export type Family = Partial<Record<keyof typeof Mnemonic, Lift>>;

/** The sixteen conditions by the suffixes that mnemonics carry (SDM vol. 1, appendix B). */
export const CONDITIONS = {
  o: (e: Emitter) => e.overflow(),
  no: (e: Emitter) => e.not(e.overflow()),
  b: (e: Emitter) => e.carry(),
  ae: (e: Emitter) => e.not(e.carry()),
  e: (e: Emitter) => e.zero(),
  ne: (e: Emitter) => e.not(e.zero()),
  be: (e: Emitter) => e.orBit(e.carry(), e.zero()),
  a: (e: Emitter) => e.not(e.orBit(e.carry(), e.zero())),
  s: (e: Emitter) => e.sign(),
  ns: (e: Emitter) => e.not(e.sign()),
  p: (e: Emitter) => e.parity(),
  np: (e: Emitter) => e.not(e.parity()),
  l: (e: Emitter) => less(e),
  ge: (e: Emitter) => e.not(less(e)),
  le: (e: Emitter) => e.orBit(less(e), e.zero()),
  g: (e: Emitter) => e.not(e.orBit(less(e), e.zero())),
} as const;

/** SF != OF. The result's sign is in both, so what is left is carry and x. */
function less(e: Emitter) {
  const x = e.x();
  return e.xorBit(e.carry(), e.xorBit(e.bit(x, 63n), e.bit(x, 62n)));
}
