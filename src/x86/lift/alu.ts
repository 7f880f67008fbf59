// Addition, subtraction, comparison, logic (SDM vol. 1, 7.3.2 and 7.3.5).

import type { Size } from "../decode.ts";
import { X_MASK } from "../state.ts";
import type { Family, Lift } from "./definition.ts";
import type { Emitter } from "./emitter.ts";
import { type Bit, mask, type Value } from "./values.ts";

/** A value to be written, and the flags that go with it, set after the write because that may fault. */
export interface Result {
  readonly value: Value;
  readonly setFlags: () => void;
}

export interface Sum extends Result {
  readonly carry: Bit;
}

export function added(e: Emitter, a: Value, b: Value, size: Size, carryIn: Bit = false): Sum {
  const plain = e.add(a, b);
  const full = carryIn === false ? plain : e.add(plain, e.extend(carryIn));
  let carry: Bit;
  if (size < 8) carry = e.bit(full, BigInt(8 * size));
  else if (carryIn === false) carry = e.below(full, a);
  else carry = e.orBit(e.below(plain, a), e.below(full, plain));
  return {
    value: e.zext(full, size),
    carry,
    setFlags: () => e.setFlags(carry, e.sext(full, size), e.sext(e.xor(a, b), size)),
  };
}

export function subtracted(e: Emitter, a: Value, b: Value, size: Size, borrowIn: Bit = false): Result {
  let full = e.sub(a, b);
  let borrow = e.below(a, b);
  if (borrowIn !== false) {
    full = e.sub(full, e.extend(borrowIn));
    borrow = e.orBit(borrow, e.andBit(borrowIn, e.eq(a, b)));
  }
  return {
    value: e.zext(full, size),
    setFlags: () => e.setFlags(borrow, e.sext(full, size), e.sext(e.xor(a, b), size)),
  };
}

/** CF and OF are cleared; AF, which the manual leaves undefined, reads as zero here. */
export function logical(e: Emitter, value: Value, size: Size): Result {
  return {
    value,
    setFlags: () => {
      const result = e.sext(value, size);
      e.setFlags(false, result, result);
    },
  };
}

const SIGN = 1n << 63n;

type Combine = (e: Emitter, a: Value, b: Value, size: Size) => Result;

/** destination = destination OP source */
function combine(operation: Combine): Lift {
  return (e) => {
    const size = e.size(0);
    const source = e.kind(0) === "memory" ? e.read(1) : undefined;
    const to = e.place(0);
    const result = operation(e, to.value, source ?? e.read(1), size);
    to.put(result.value);
    result.setFlags();
  };
}

/** The same for the flags alone. */
function test(operation: Combine): Lift {
  return (e) => operation(e, e.read(0), e.read(1), e.size(0)).setFlags();
}

/** inc and dec leave CF alone. OF xor the result's sign is the operand's and the result's: both for inc, either for dec. */
function step(by: 1n | -1n): Lift {
  return (e) => {
    const size = e.size(0);
    const to = e.place(0);
    const full = e.add(to.value, by);
    const [operand, result] = [e.sext(to.value, size), e.sext(full, size)];
    const carry = e.carry();
    to.put(e.zext(full, size));
    const low = by === 1n ? e.and(operand, e.or(result, ~SIGN)) : e.or(operand, e.and(result, SIGN));
    e.setFlagWords(carry, result, e.xor(e.and(low, X_MASK), e.shl(e.extend(carry), 63n)));
  };
}

export const alu: Family = {
  Add: combine((e, a, b, size) => added(e, a, b, size)),
  Adc: combine((e, a, b, size) => added(e, a, b, size, e.carry())),
  Sub: combine((e, a, b, size) => subtracted(e, a, b, size)),
  Sbb: combine((e, a, b, size) => subtracted(e, a, b, size, e.carry())),
  Cmp: test(subtracted),
  And: combine((e, a, b, size) => logical(e, e.and(a, b), size)),
  Or: combine((e, a, b, size) => logical(e, e.or(a, b), size)),
  Xor: combine((e, a, b, size) => logical(e, e.xor(a, b), size)),
  Test: test((e, a, b, size) => logical(e, e.and(a, b), size)),
  Inc: step(1n),
  Dec: step(-1n),
  Neg: (e) => {
    const to = e.place(0);
    const result = subtracted(e, 0n, to.value, e.size(0));
    to.put(result.value);
    result.setFlags();
  },
  Not: (e) => {
    const to = e.place(0);
    to.put(e.xor(to.value, mask(e.size(0))));
  },
  Xadd: (e) => {
    const to = e.place(0);
    const result = added(e, to.value, e.read(1), e.size(0));
    const old = to.value;
    // xadd %rax,%rax stores the sum: the destination is written last.
    if (e.kind(0) === "memory") {
      to.put(result.value);
      e.write(1, old);
    } else {
      e.write(1, old);
      to.put(result.value);
    }
    result.setFlags();
  },
};
