// Bit tests, scans and counts (SDM vol. 1, 7.3.6 and 7.3.7).

import type { Size } from "../decode.ts";
import type { Family, Lift } from "./definition.ts";
import type { Emitter } from "./emitter.ts";
import type { Value } from "./values.ts";

/** bt and kin: CF gets the bit; ZF stays; the other four are undefined and stay too. */
function bitTest(change: ((e: Emitter, a: Value, bit: Value) => Value) | undefined): Lift {
  return (e) => {
    const size = e.size(0);
    const width = BigInt(8 * size);
    const raw = e.read(1);
    const index = e.and(raw, width - 1n);
    if (change === undefined) {
      const value = e.kind(0) === "memory" ? e.load(bitAddress(e, raw, size), size) : e.read(0);
      e.setCarry(e.bit(value, index));
      return;
    }
    const to = e.kind(0) === "memory" ? e.placeAt(bitAddress(e, raw, size), size) : e.place(0);
    const carry = e.bit(to.value, index);
    to.put(change(e, to.value, e.shl(1n, index)));
    e.setCarry(carry);
  };
}

/** A bit offset from a register reaches beyond the operand (SDM vol. 2, BT); an immediate does not. */
function bitAddress(e: Emitter, raw: Value, size: Size): Value {
  if (e.kind(1) === "immediate") return e.address();
  const words = e.sar(e.sext(raw, size), BigInt(3 + Math.log2(size)));
  const offset = e.add(e.effectiveAddress(), e.shl(words, BigInt(Math.log2(size))));
  return e.add(e.zext(offset, e.addressSize), e.segmentBase());
}

/** bsf and bsr: a zero source sets ZF and leaves the destination, as CPUs do though the manual does not say so. */
function scan(find: (e: Emitter, source: Value) => Value): Lift {
  return (e) => {
    const size = e.size(0);
    const source = e.read(1);
    const empty = e.eqz(source);
    const found = find(e, source);
    // Not even the upper half of a 32-bit destination is cleared then.
    e.write(0, e.select(empty, e.read(0), found));
    const result = e.sext(source, size);
    e.setFlags(false, result, result);
  };
}

/** tzcnt and lzcnt: CF says that the source is zero, ZF that the answer is. */
function count(answer: (e: Emitter, source: Value, size: Size) => Value): Lift {
  return (e) => {
    const size = e.size(0);
    const source = e.read(1);
    const value = answer(e, source, size);
    e.write(0, value);
    e.setFlags(e.eqz(source), value, value);
  };
}

export const bitOperations: Family = {
  Bt: bitTest(undefined),
  Bts: bitTest((e, a, bit) => e.or(a, bit)),
  Btr: bitTest((e, a, bit) => e.and(a, e.xor(bit, -1n))),
  Btc: bitTest((e, a, bit) => e.xor(a, bit)),
  Bsf: scan((e, source) => e.unary("i64.ctz", source)),
  Bsr: scan((e, source) => e.sub(63n, e.unary("i64.clz", source))),
  // A bit just above the operand stops the count where the operand ends.
  Tzcnt: count((e, source, size) =>
    e.unary("i64.ctz", size === 8 ? source : e.or(source, 1n << BigInt(8 * size))),
  ),
  Lzcnt: count((e, source, size) => e.sub(e.unary("i64.clz", source), BigInt(64 - 8 * size))),
  Popcnt: (e) => {
    const value = e.unary("i64.popcnt", e.read(1));
    e.write(0, value);
    // ZF is the only flag not cleared. A result of 1 has odd parity; for 0, bit 8 of x makes it odd.
    const empty = e.eqz(value);
    e.setFlagWords(false, e.extend(e.not(empty)), e.shl(e.extend(empty), 8n));
  },
};
