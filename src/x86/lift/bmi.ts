// Bit manipulation by three operands: BMI1, BMI2 (SDM vol. 1, 7.3.19), and the additions with a carry
// of their own, ADX (vol. 2, ADCX and ADOX).
//
// Undefined flags (AF, PF everywhere; SF of bextr) come from the result, as those of logic do.

import type { Size } from "../decode.ts";
import { RDX } from "../register.ts";
import { added } from "./alu.ts";
import type { Family, Lift } from "./definition.ts";
import type { Emitter } from "./emitter.ts";
import { product } from "./multiply.ts";
import type { Bit, Value } from "./values.ts";

function bits(size: Size): bigint {
  return BigInt(8 * size);
}

/** Writes operand 0, with SF and ZF from it, CF as given, OF clear. */
function writeWithFlags(e: Emitter, value: Value, carry: Bit): void {
  const result = e.sext(value, e.size(0));
  e.write(0, value);
  e.setFlags(carry, result, e.xor(result, e.shl(e.extend(carry), 63n)));
}

/** blsi and kin: on the lowest set bit of operand 1; `carry` is told whether there is none. */
function lowestSet(change: (e: Emitter, a: Value) => Value, carry: (e: Emitter, none: Bit) => Bit): Lift {
  return (e) => {
    const source = e.read(1);
    const value = e.zext(change(e, source), e.size(0));
    writeWithFlags(e, value, carry(e, e.eqz(source)));
  };
}

/** The `count` lowest bits; all 64 for counts from 64 on. */
function lowMask(e: Emitter, count: Value): Value {
  return e.select(e.below(count, 64n), e.sub(e.shl(1n, count), 1n), -1n);
}

/** Shifts that leave the flags alone. */
function flagless(shift: (e: Emitter, a: Value, by: Value, size: Size) => Value): Lift {
  return (e) => {
    const size = e.size(0);
    const by = e.and(e.read(2), bits(size) - 1n);
    e.write(0, e.zext(shift(e, e.read(1), by, size), size));
  };
}

/**
 * pdep and pext: a turn for each set bit of the mask (operand 2), lowest first. `turn` gets that bit, and
 * what the two words that it may change hold: the answer so far, and `moving`, which starts as `start`.
 */
function scatter(
  start: (source: Value) => Value,
  turn: (e: Emitter, source: Value, lowest: Value, moving: Value) => { add: Value; moving: Value },
): Lift {
  return (e) => {
    const { f } = e;
    const source = e.read(1);
    const [answer, mask, moving] = [e.temp("i64"), e.temp("i64"), e.temp("i64")];
    e.push64(e.read(2));
    f.set(mask).i64(0).set(answer);
    e.push64(start(source));
    f.set(moving);
    const done = f.block();
    const top = f.loop();
    f.get(mask).op("i64.eqz").brIf(done);
    const lowest = e.and(mask, e.sub(0n, mask));
    const next = turn(e, source, lowest, moving);
    e.push64(e.or(answer, next.add));
    f.set(answer);
    e.push64(next.moving);
    f.set(moving);
    e.push64(e.xor(mask, lowest));
    f.set(mask).br(top).end().end();
    e.write(0, answer);
  };
}

export const bitManipulations: Family = {
  Andn: (e) => writeWithFlags(e, e.and(e.zext(e.xor(e.read(1), -1n), e.size(0)), e.read(2)), false),
  Bextr: (e) => {
    const control = e.read(2);
    const start = e.and(control, 0xffn);
    const shifted = e.select(e.below(start, 64n), e.shr(e.read(1), start), 0n);
    writeWithFlags(e, e.and(shifted, lowMask(e, e.and(e.shr(control, 8n), 0xffn))), false);
  },
  Blsi: lowestSet(
    (e, a) => e.and(a, e.sub(0n, a)),
    (e, none) => e.not(none),
  ),
  Blsmsk: lowestSet(
    (e, a) => e.xor(a, e.sub(a, 1n)),
    (_, none) => none,
  ),
  Blsr: lowestSet(
    (e, a) => e.and(a, e.sub(a, 1n)),
    (_, none) => none,
  ),
  Bzhi: (e) => {
    const index = e.and(e.read(2), 0xffn);
    writeWithFlags(e, e.and(e.read(1), lowMask(e, index)), e.not(e.below(index, bits(e.size(0)))));
  },
  Mulx: (e) => {
    const size = e.size(0);
    const { low, high } = product(e, e.reg(RDX, size), e.read(2), size, false);
    e.write(1, low);
    e.write(0, high); // last: of one register twice the upper half stays
  },
  Pdep: scatter(
    (source) => source,
    (e, _, lowest, moving) => ({
      add: e.select(e.bit(moving, 0n), lowest, 0n),
      moving: e.shr(moving, 1n),
    }),
  ),
  Pext: scatter(
    () => 1n,
    (e, source, lowest, moving) => ({
      add: e.select(e.eqz(e.and(source, lowest)), 0n, moving),
      moving: e.shl(moving, 1n),
    }),
  ),
  Rorx: flagless((e, a, by, size) =>
    e.or(e.shr(a, by), e.shl(a, e.and(e.sub(bits(size), by), bits(size) - 1n))),
  ),
  Sarx: flagless((e, a, by, size) => e.sar(e.sext(a, size), by)),
  Shlx: flagless((e, a, by) => e.shl(a, by)),
  Shrx: flagless((e, a, by) => e.shr(a, by)),
  Adcx: (e) => {
    const { value, carry } = added(e, e.read(0), e.read(1), e.size(0), e.carry());
    e.write(0, value);
    e.setCarry(carry);
  },
  Adox: (e) => {
    const carry = e.carry();
    const { value, carry: out } = added(e, e.read(0), e.read(1), e.size(0), e.overflow());
    e.write(0, value);
    e.setCarryOverflow(carry, out);
  },
};
