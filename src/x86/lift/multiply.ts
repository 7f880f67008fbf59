// Multiplication and division (SDM vol. 1, 7.3.2), with the double-width results in rdx:rax.

import type { Size } from "../decode.ts";
import { RAX, RDX } from "../register.ts";
import { ANSWER } from "../state.ts";
import type { Family } from "./definition.ts";
import type { Emitter } from "./emitter.ts";
import type { Bit, Value } from "./values.ts";

/** The two halves of a product, each cut to `size`. */
export function product(
  e: Emitter,
  a: Value,
  b: Value,
  size: Size,
  signed: boolean,
): { low: Value; high: Value } {
  if (size === 8) {
    const low = e.mul(a, b);
    let high = e.mulHigh(a, b);
    if (signed) {
      high = e.sub(high, e.and(e.sar(a, 63n), b));
      high = e.sub(high, e.and(e.sar(b, 63n), a));
    }
    return { low, high };
  }
  const full = signed ? e.mul(e.sext(a, size), e.sext(b, size)) : e.mul(a, b);
  return { low: e.zext(full, size), high: e.zext(e.shr(full, BigInt(8 * size)), size) };
}

/** CF and OF say whether the upper half matters; the other four are undefined, and come from the lower half. */
function setProductFlags(e: Emitter, low: Value, high: Value, size: Size, signed: boolean): void {
  const fits = signed ? e.sar(e.sext(low, size), 63n) : 0n;
  const carry = e.ne(signed ? e.sext(high, size) : high, fits);
  const result = e.sext(low, size);
  e.setFlags(carry, result, result);
}

function writeHalves(e: Emitter, low: Value, high: Value, size: Size): void {
  if (size === 1) {
    e.setReg(RAX, e.or(low, e.shl(high, 8n)), 2);
    return;
  }
  e.setReg(RAX, low, size);
  e.setReg(RDX, high, size);
}

function multiply(e: Emitter, signed: boolean): void {
  const size = e.size(0);
  const { low, high } = product(e, e.reg(RAX, size), e.read(0), size, signed);
  writeHalves(e, low, high, size);
  setProductFlags(e, low, high, size, signed);
}

/** Quotient to rax, remainder to rdx; #DE if the divisor is zero or the quotient does not fit. */
function divide(e: Emitter, signed: boolean): void {
  const size = e.size(0);
  const divisor = e.read(0);
  e.stopWhen(e.eqz(divisor), ANSWER.divideError);
  const low = size === 1 ? e.reg(RAX, 2) : e.reg(RAX, size);
  const { quotient, remainder } =
    size === 8
      ? divideWide(e, e.reg(RDX), low, divisor, signed)
      : divideNarrow(
          e,
          size === 1 ? low : e.or(low, e.shl(e.reg(RDX, size), BigInt(8 * size))),
          divisor,
          size,
          signed,
        );
  writeHalves(e, e.zext(quotient, size), e.zext(remainder, size), size);
}

interface Division {
  readonly quotient: Value;
  readonly remainder: Value;
}

/** Dividends of 16, 32 and 64 bits. */
function divideNarrow(e: Emitter, dividend: Value, divisor: Value, size: Size, signed: boolean): Division {
  if (!signed) {
    const quotient = e.binary("i64.div_u", dividend, divisor);
    e.stopWhen(e.ne(quotient, e.zext(quotient, size)), ANSWER.divideError);
    return { quotient, remainder: e.binary("i64.rem_u", dividend, divisor) };
  }
  const wide = size === 4 ? dividend : e.sext(dividend, size === 1 ? 2 : 4);
  const by = e.sext(divisor, size);
  // The one quotient that WebAssembly traps on, and that never fits: the smallest number by -1.
  const smallest = e.eq(wide, -(1n << 63n));
  e.stopWhen(e.andBit(smallest, e.eq(by, -1n)), ANSWER.divideError);
  const quotient = e.binary("i64.div_s", wide, by);
  e.stopWhen(e.ne(quotient, e.sext(quotient, size)), ANSWER.divideError);
  return { quotient, remainder: e.binary("i64.rem_s", wide, by) };
}

/** 128 bits by 64: signs apart, then long division bit by bit. */
function divideWide(e: Emitter, high: Value, low: Value, divisor: Value, signed: boolean): Division {
  const negative: Bit = signed ? e.bit(high, 63n) : false;
  const negativeDivisor: Bit = signed ? e.bit(divisor, 63n) : false;
  // Minus a 128-bit number: the low half's borrow goes into the high half.
  const minusLow = e.sub(0n, low);
  const minusHigh = e.sub(e.sub(0n, high), e.extend(e.ne(low, 0n)));
  const a = { high: e.select(negative, minusHigh, high), low: e.select(negative, minusLow, low) };
  const by = e.select(negativeDivisor, e.sub(0n, divisor), divisor);
  e.stopWhen(e.not(e.below(a.high, by)), ANSWER.divideError);
  const { quotient, remainder } = longDivision(e, a.high, a.low, by);
  if (!signed) return { quotient, remainder };
  const minus = e.xorBit(negative, negativeDivisor);
  // The magnitude may be 2^63 only if the quotient is negative.
  const limit = e.add((1n << 63n) - 1n, e.extend(minus));
  e.stopWhen(e.below(limit, quotient), ANSWER.divideError);
  return {
    quotient: e.select(minus, e.sub(0n, quotient), quotient),
    remainder: e.select(negative, e.sub(0n, remainder), remainder),
  };
}

/** high:low / by for high < by. Compilers divide with an empty upper half, which needs no loop. */
function longDivision(e: Emitter, high: Value, low: Value, by: Value): Division {
  const { f } = e;
  const quotient = e.temp("i64");
  const remainder = e.temp("i64");
  const count = e.temp("i32");
  const carried = e.temp("i32");
  e.push32(e.eqz(high));
  f.if();
  e.push64(low);
  e.push64(by);
  f.op("i64.div_u").set(quotient);
  e.push64(low);
  e.push64(by);
  f.op("i64.rem_u").set(remainder);
  f.else();
  e.push64(high);
  f.set(remainder);
  e.push64(low);
  f.set(quotient);
  f.i32(64).set(count);
  const top = f.loop();
  // remainder:quotient <<= 1, the bit that falls out kept in `carried`
  f.get(remainder).op("i64.clz").op("i64.eqz").set(carried);
  f.get(remainder).i64(1).op("i64.shl").get(quotient).i64(63).op("i64.shr_u").op("i64.or").set(remainder);
  f.get(quotient).i64(1).op("i64.shl").set(quotient);
  f.get(carried).get(remainder);
  e.push64(by);
  f.op("i64.ge_u").op("i32.or");
  f.if();
  f.get(remainder);
  e.push64(by);
  f.op("i64.sub").set(remainder);
  f.get(quotient).i64(1).op("i64.or").set(quotient);
  f.end();
  f.get(count).i32(1).op("i32.sub").tee(count).brIf(top);
  f.end();
  f.end();
  return { quotient, remainder };
}

export const multiplications: Family = {
  Mul: (e) => multiply(e, false),
  Imul: (e) => {
    if (e.operandCount === 1) return multiply(e, true);
    const size = e.size(0);
    const [a, b] = e.operandCount === 2 ? [e.read(0), e.read(1)] : [e.read(1), e.read(2)];
    const { low, high } = product(e, a, b, size, true);
    e.write(0, low);
    setProductFlags(e, low, high, size, true);
  },
  Div: (e) => divide(e, false),
  Idiv: (e) => divide(e, true),
};
