// Shifts, rotates, double shifts (SDM vol. 1, 7.3.6).
//
// Counts are masked to five or six bits; a count of zero changes no flag. Flags that the manual leaves
// undefined (OF for counts other than one, AF) get one fixed value.

import type { Size } from "../decode.ts";
import { RCX } from "../register.ts";
import type { Family, Lift } from "./definition.ts";
import type { Emitter } from "./emitter.ts";
import type { Bit, Value } from "./values.ts";

function bits(size: Size): bigint {
  return BigInt(8 * size);
}

/** The count operand, masked. One-operand forms shift by one: iced-x86 gives the 1 as an immediate. */
function count(e: Emitter, n: number, size: Size): Value {
  const raw = e.kind(n) === "register" ? e.reg(RCX, 1) : e.read(n);
  return e.and(raw, size === 8 ? 63n : 31n);
}

interface Shifted {
  /** Not yet cut to size. */
  readonly value: Value;
  readonly carry: Bit;
  readonly overflow: (result: Value) => Bit;
}

/** Sets the flags of a shift, unless the count is zero. */
function setShiftFlags(e: Emitter, by: Value, size: Size, { value, carry, overflow }: Shifted): void {
  const result = e.sext(value, size);
  const top = e.xorBit(e.xorBit(overflow(result), carry), e.bit(result, 63n));
  const x = e.or(e.and(result, 0x10n), e.shl(e.extend(top), 63n));
  if (typeof by === "bigint") {
    if (by !== 0n) e.setFlags(carry, result, x);
    return;
  }
  const still = e.eqz(by);
  e.setFlagWords(
    e.selectBit(still, e.carry(), carry),
    e.select(still, e.result(), result),
    e.select(still, e.x(), x),
  );
}

function shift(operation: (e: Emitter, a: Value, by: Value, size: Size) => Shifted): Lift {
  return (e) => {
    const size = e.size(0);
    const by = count(e, 1, size);
    const to = e.place(0);
    const shifted = operation(e, to.value, by, size);
    to.put(e.zext(shifted.value, size));
    setShiftFlags(e, by, size, shifted);
  };
}

const left = shift((e, a, by, size) => {
  const value = e.shl(a, by);
  // The bit shifted out last: for 64 bits there is no bit 64 to look at.
  const carry = size === 8 ? e.bit(a, e.sub(64n, by)) : e.bit(value, bits(size));
  return { value, carry, overflow: (result) => e.xorBit(carry, e.bit(result, 63n)) };
});

const right = shift((e, a, by, size) => ({
  value: e.shr(a, by),
  carry: e.bit(a, e.sub(by, 1n)),
  overflow: () => e.bit(a, bits(size) - 1n),
}));

const arithmeticRight = shift((e, a, by, size) => {
  const wide = e.sext(a, size);
  return { value: e.sar(wide, by), carry: e.bit(e.sar(wide, e.sub(by, 1n)), 0n), overflow: () => false };
});

/** Rotates change CF and OF only. */
function rotate(direction: "left" | "right"): Lift {
  return (e) => {
    const size = e.size(0);
    const width = bits(size);
    const masked = count(e, 1, size);
    const by = e.and(masked, width - 1n);
    const to = e.place(0);
    const a = to.value;
    const back = e.and(e.sub(width, by), width - 1n);
    const [l, r] = direction === "left" ? [by, back] : [back, by];
    const value = e.zext(e.or(e.shl(a, l), e.shr(a, r)), size);
    to.put(value);
    const top = e.bit(value, width - 1n);
    const carry = direction === "left" ? e.bit(value, 0n) : top;
    const overflow = direction === "left" ? e.xorBit(top, carry) : e.xorBit(top, e.bit(value, width - 2n));
    setRotateFlags(e, masked, carry, overflow);
  };
}

/** Rotates through the carry: an operand of one bit more. */
function rotateCarry(direction: "left" | "right"): Lift {
  return (e) => {
    const size = e.size(0);
    const width = bits(size);
    const masked = count(e, 1, size);
    // 8- and 16-bit operands rotate modulo 9 and 17; wider ones never get that far.
    const by = size < 4 ? e.binary("i64.rem_u", masked, width + 1n) : masked;
    const to = e.place(0);
    const a = to.value;
    const old = e.extend(e.carry());
    // Shifts by the full 64 cannot be said in one step; shifting by n - 1 and then by one can.
    const [forward, backward] =
      direction === "left" ? (["i64.shl", "i64.shr_u"] as const) : (["i64.shr_u", "i64.shl"] as const);
    const rest = e.sub(width, by);
    const wrapped = e.binary(backward, e.binary(backward, a, rest), 1n);
    const inserted = direction === "left" ? e.shl(old, e.sub(by, 1n)) : e.shl(old, rest);
    const still = e.eqz(by);
    const value = e.select(still, a, e.zext(e.or(e.or(e.binary(forward, a, by), wrapped), inserted), size));
    to.put(value);
    const out = direction === "left" ? e.bit(a, rest) : e.bit(a, e.sub(by, 1n));
    const carry = e.selectBit(still, e.carry(), out);
    const top = e.bit(value, width - 1n);
    const overflow = direction === "left" ? e.xorBit(top, carry) : e.xorBit(top, e.bit(value, width - 2n));
    setRotateFlags(e, masked, carry, overflow);
  };
}

function setRotateFlags(e: Emitter, masked: Value, carry: Bit, overflow: Bit): void {
  const still = e.eqz(masked);
  e.setCarryOverflow(e.selectBit(still, e.carry(), carry), e.selectBit(still, e.overflow(), overflow));
}

/** shld and shrd: bits come in from the second operand. For 16 bits, counts above 16 are undefined. */
function doubleShift(direction: "left" | "right"): Lift {
  return (e) => {
    const size = e.size(0);
    const width = bits(size);
    const by = count(e, 2, size);
    const from = e.read(1);
    const to = e.place(0);
    const a = to.value;
    const rest = e.sub(width, by);
    let shifted: Shifted;
    if (direction === "left") {
      // Of a zero count only the flags' absence counts: the filler is shifted out in two steps.
      const filler = size === 8 ? e.shr(e.shr(from, e.sub(63n, by)), 1n) : e.shr(from, rest);
      const value = e.or(e.shl(a, by), filler);
      const carry = e.bit(a, rest);
      shifted = { value, carry, overflow: (result) => e.xorBit(e.bit(a, width - 1n), e.bit(result, 63n)) };
    } else {
      const filler = size === 8 ? e.shl(e.shl(from, e.sub(63n, by)), 1n) : e.shl(from, rest);
      const value = e.or(e.shr(a, by), filler);
      const carry = e.bit(a, e.sub(by, 1n));
      shifted = { value, carry, overflow: (result) => e.xorBit(e.bit(a, width - 1n), e.bit(result, 63n)) };
    }
    to.put(e.zext(shifted.value, size));
    setShiftFlags(e, by, size, shifted);
  };
}

export const shifts: Family = {
  Shl: left,
  Sal: left, // the encoding that manuals leave out
  Shr: right,
  Sar: arithmeticRight,
  Rol: rotate("left"),
  Ror: rotate("right"),
  Rcl: rotateCarry("left"),
  Rcr: rotateCarry("right"),
  Shld: doubleShift("left"),
  Shrd: doubleShift("right"),
};
