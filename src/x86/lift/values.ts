// Values and bits while code is emitted: temporaries, arithmetic, comparisons.
//
// Every operation emits its code and answers with a fresh temporary. Values are 64 bits wide, with the bits
// above an operand's size zero unless said otherwise. Constants fold where a definition would otherwise have
// to care.

import type { FunctionBuilder, Local } from "../../wasm/function.ts";
import type { OpName, ValueType } from "../../wasm/opcode.ts";
import type { Size } from "../decode.ts";

/** An i64: a local, or a constant. */
export type Value = Local | bigint;
/** An i32 that is 0 or 1: a local, or a constant. */
export type Bit = Local | boolean;

export function mask(size: Size): bigint {
  return (1n << BigInt(8 * size)) - 1n;
}

export abstract class ValueEmitter {
  readonly f: FunctionBuilder;
  private readonly pools: Record<ValueType, { locals: Local[]; used: number }> = {
    i32: { locals: [], used: 0 },
    i64: { locals: [], used: 0 },
    f32: { locals: [], used: 0 },
    f64: { locals: [], used: 0 },
  };

  constructor(f: FunctionBuilder) {
    this.f = f;
  }

  /** Every temporary may be used again. */
  protected freeTemporaries(): void {
    for (const pool of Object.values(this.pools)) pool.used = 0;
  }

  // ---- Arithmetic on values. Constants fold where a definition would otherwise have to care.

  add(a: Value, b: Value): Value {
    if (a === 0n) return b;
    if (b === 0n) return a;
    return this.binary("i64.add", a, b);
  }
  sub(a: Value, b: Value): Value {
    return this.binary("i64.sub", a, b);
  }
  mul(a: Value, b: Value): Value {
    return this.binary("i64.mul", a, b);
  }
  and(a: Value, b: Value): Value {
    if (typeof a === "bigint" && typeof b === "bigint") return a & b;
    return this.binary("i64.and", a, b);
  }
  or(a: Value, b: Value): Value {
    return this.binary("i64.or", a, b);
  }
  xor(a: Value, b: Value): Value {
    return this.binary("i64.xor", a, b);
  }
  /** Shift counts are taken modulo 64. */
  shl(a: Value, count: Value): Value {
    return this.binary("i64.shl", a, count);
  }
  shr(a: Value, count: Value): Value {
    return this.binary("i64.shr_u", a, count);
  }
  sar(a: Value, count: Value): Value {
    return this.binary("i64.shr_s", a, count);
  }
  rotl(a: Value, count: Value): Value {
    return this.binary("i64.rotl", a, count);
  }
  binary(op: OpName, a: Value, b: Value): Value {
    const value = this.temp("i64");
    this.push64(a);
    this.push64(b);
    this.f.op(op).set(value);
    return value;
  }
  unary(op: OpName, a: Value): Value {
    const value = this.temp("i64");
    this.push64(a);
    this.f.op(op).set(value);
    return value;
  }
  /** `whole` with its low `size` bytes replaced. */
  merge(whole: Value, part: Value, size: Size): Value {
    return size === 8 ? part : this.or(this.and(whole, ~mask(size)), part);
  }
  zext(a: Value, size: Size): Value {
    return size === 8 ? a : this.and(a, mask(size));
  }
  sext(a: Value, size: Size): Value {
    if (typeof a === "bigint") return BigInt.asIntN(8 * size, a);
    if (size === 8) return a;
    return this.unary(size === 4 ? "i64.extend32_s" : size === 2 ? "i64.extend16_s" : "i64.extend8_s", a);
  }
  select(condition: Bit, then: Value, otherwise: Value): Value {
    if (typeof condition === "boolean") return condition ? then : otherwise;
    const value = this.temp("i64");
    this.push64(then);
    this.push64(otherwise);
    this.f.get(condition).op("select").set(value);
    return value;
  }
  /** The high 64 bits of the unsigned product. */
  mulHigh(a: Value, b: Value): Value {
    const low = mask(4);
    const [al, ah, bl, bh] = [this.and(a, low), this.shr(a, 32n), this.and(b, low), this.shr(b, 32n)];
    const cross = this.add(this.mul(ah, bl), this.shr(this.mul(al, bl), 32n));
    const middle = this.add(this.mul(al, bh), this.and(cross, low));
    return this.add(this.add(this.mul(ah, bh), this.shr(cross, 32n)), this.shr(middle, 32n));
  }

  // ---- Bits.

  compare(op: OpName, a: Value, b: Value): Bit {
    const bit = this.temp("i32");
    this.push64(a);
    this.push64(b);
    this.f.op(op).set(bit);
    return bit;
  }
  eq(a: Value, b: Value): Bit {
    return this.compare("i64.eq", a, b);
  }
  ne(a: Value, b: Value): Bit {
    return this.compare("i64.ne", a, b);
  }
  below(a: Value, b: Value): Bit {
    return this.compare("i64.lt_u", a, b);
  }
  eqz(a: Value): Bit {
    if (typeof a === "bigint") return a === 0n;
    const bit = this.temp("i32");
    this.f.get(a).op("i64.eqz").set(bit);
    return bit;
  }
  /** Bit `n` of `a`. */
  bit(a: Value, n: Value): Bit {
    const bit = this.temp("i32");
    this.push64(a);
    this.push64(n);
    this.f.op("i64.shr_u").op("i32.wrap_i64").i32(1).op("i32.and").set(bit);
    return bit;
  }
  extend(bit: Bit): Value {
    if (typeof bit === "boolean") return bit ? 1n : 0n;
    const value = this.temp("i64");
    this.f.get(bit).op("i64.extend_i32_u").set(value);
    return value;
  }
  not(bit: Bit): Bit {
    if (typeof bit === "boolean") return !bit;
    const value = this.temp("i32");
    this.f.get(bit).op("i32.eqz").set(value);
    return value;
  }
  xorBit(a: Bit, b: Bit): Bit {
    return this.binaryBit("i32.xor", a, b);
  }
  andBit(a: Bit, b: Bit): Bit {
    return this.binaryBit("i32.and", a, b);
  }
  orBit(a: Bit, b: Bit): Bit {
    return this.binaryBit("i32.or", a, b);
  }
  selectBit(condition: Bit, then: Bit, otherwise: Bit): Bit {
    if (typeof condition === "boolean") return condition ? then : otherwise;
    const bit = this.temp("i32");
    this.push32(then);
    this.push32(otherwise);
    this.f.get(condition).op("select").set(bit);
    return bit;
  }
  private binaryBit(op: OpName, a: Bit, b: Bit): Bit {
    const bit = this.temp("i32");
    this.push32(a);
    this.push32(b);
    this.f.op(op).set(bit);
    return bit;
  }

  // ---- Emission.

  temp(type: ValueType): Local {
    const pool = this.pools[type];
    if (pool.used === pool.locals.length) pool.locals.push(this.f.local(type));
    return pool.locals[pool.used++]!;
  }

  push64(value: Value): void {
    if (typeof value === "bigint") this.f.i64(value);
    else this.f.get(value);
  }

  push32(bit: Bit): void {
    if (typeof bit === "boolean") this.f.i32(bit ? 1 : 0);
    else this.f.get(bit);
  }

  copy(value: Value): Local {
    if (typeof value !== "bigint") return value;
    const local = this.temp("i64");
    this.f.i64(value).set(local);
    return local;
  }
}
