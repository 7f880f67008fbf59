// Moves, conversions, conditional moves and sets (SDM vol. 1, 7.3.1).

import type { Size } from "../decode.ts";
import { RAX, RBX, RDX } from "../register.ts";
import { ANSWER } from "../state.ts";
import { CONDITIONS, type Family, type Lift } from "./definition.ts";
import type { Emitter } from "./emitter.ts";
import type { Value } from "./values.ts";

const move: Lift = (e) => e.write(0, e.read(1));
const moveSwapped: Lift = (e) => e.write(0, swapped(e, e.read(1), e.size(0)));
const signExtend: Lift = (e) => e.write(0, e.zext(e.sext(e.read(1), e.size(1)), e.size(0)));

/** The bytes in reverse; of a 16-bit operand the two. */
function swapped(e: Emitter, value: Value, size: Size): Value {
  const pairs = e.or(
    e.shl(e.and(value, 0x00ff00ff00ff00ffn), 8n),
    e.and(e.shr(value, 8n), 0x00ff00ff00ff00ffn),
  );
  if (size === 2) return pairs;
  const low = e.and(pairs, 0x0000ffff0000ffffn);
  const words = e.or(e.shl(low, 16n), e.and(e.shr(pairs, 16n), 0x0000ffff0000ffffn));
  return size === 8 ? e.rotl(words, 32n) : words;
}

/** movdir64b: 64 bytes to where operand 0 points, which must be a multiple of 64. A fault of the source comes first. */
const copyLine: Lift = (e) => {
  const to = e.read(0);
  const from = e.check(e.address(), 64, "read");
  e.stopWhen(e.ne(e.and(to, 63n), 0n), ANSWER.generalProtection);
  const host = e.check(to, 64, "write");
  const words = Array.from({ length: 8 }, (_, n) => e.loadFrom(from, 8, 8 * n));
  for (const [n, word] of words.entries()) e.storeTo(host, 8, word, 8 * n);
};

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
    // Of 16 bits undefined (SDM vol. 2, BSWAP): what the wider swap leaves in the lower half, which is nothing
    e.write(0, swapped(e, e.read(0), size === 2 ? 4 : size));
  },
  Movbe: moveSwapped,
  /** Stores that go around the caches: here there are none. */
  Movnti: move,
  Movdiri: move,
  Movdir64b: copyLine,
  Xlatb: (e) => {
    // An index of eight bits: the operand is not the sum that an effective address is otherwise
    const index = e.zext(e.add(e.reg(RBX), e.reg(RAX, 1)), e.addressSize);
    e.setReg(RAX, e.load(e.add(index, e.segmentBase()), 1), 1);
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
