// Moves, conversions, conditional moves and sets (SDM vol. 1, 7.3.1).

import type { Size } from "../decode.ts";
import { RAX, RDX } from "../register.ts";
import { CONDITIONS, type Family, type Lift } from "./definition.ts";

const move: Lift = (e) => e.write(0, e.read(1));
const signExtend: Lift = (e) => e.write(0, e.zext(e.sext(e.read(1), e.size(1)), e.size(0)));

/** cbw, cwde, cdqe: the accumulator's lower half fills the whole. */
function widen(to: Size): Lift {
  return (e) => e.setReg(RAX, e.sext(e.reg(RAX, (to / 2) as Size), (to / 2) as Size), to);
}

/** cwd, cdq, cqo: the accumulator's sign fills rdx. */
function spread(size: Size): Lift {
  return (e) => e.setReg(RDX, e.sar(e.sext(e.reg(RAX, size), size), 63n), size);
}

export const moves: Family = {
  Mov: move,
  Movzx: move,
  Movsx: signExtend,
  Movsxd: signExtend,
  Lea: (e) => e.write(0, e.zext(e.effectiveAddress(), e.size(0))),
  Xchg: (e) => {
    const to = e.place(0);
    const from = e.read(1);
    to.put(from);
    e.write(1, to.value);
  },
  Bswap: (e) => {
    const size = e.size(0);
    const value = e.read(0);
    const odd = e.and(value, 0x00ff00ff00ff00ffn);
    const even = e.and(e.shr(value, 8n), 0x00ff00ff00ff00ffn);
    const pairs = e.or(e.shl(odd, 8n), even);
    const low = e.and(pairs, 0x0000ffff0000ffffn);
    const words = e.or(e.shl(low, 16n), e.and(e.shr(pairs, 16n), 0x0000ffff0000ffffn));
    e.write(0, size === 8 ? e.rotl(words, 32n) : words);
  },
  Cbw: widen(2),
  Cwde: widen(4),
  Cdqe: widen(8),
  Cwd: spread(2),
  Cdq: spread(4),
  Cqo: spread(8),
  ...Object.fromEntries(
    Object.entries(CONDITIONS).flatMap(([suffix, condition]): [string, Lift][] => [
      // The source is read, and the upper half of a 32-bit register cleared, whatever the condition.
      [`Cmov${suffix}`, (e) => e.write(0, e.select(condition(e), e.read(1), e.read(0)))],
      [`Set${suffix}`, (e) => e.write(0, e.extend(condition(e)))],
    ]),
  ),
};
