// Compare-and-exchange, compare-and-add, and operations on memory alone (SDM vol. 2). Instructions are indivisible here, so that the lock prefix changes
// nothing; xadd is with the additions, xchg with the moves.

import { FLAG, RAX, RBX, RCX, RDX } from "../register.ts";
import { ANSWER } from "../state.ts";
import { subtracted } from "./alu.ts";
import { CONDITIONS, type Family, type Lift } from "./definition.ts";
import type { Emitter, Place } from "./emitter.ts";
import { flagsImage, setStatusFlags } from "./stack.ts";
import type { Bit, Value } from "./values.ts";

/** cmpxchg8b and cmpxchg16b: rdx:rax against memory, rcx:rbx into it. Only ZF changes. */
function exchangePair(size: 4 | 8): Lift {
  return (e) => {
    const address = e.address();
    // 16 bytes must be aligned, whatever else alignment checks say (SDM vol. 2, CMPXCHG16B).
    if (size === 8) e.stopWhen(e.not(e.eqz(e.and(address, 15n))), ANSWER.generalProtection);
    const host = e.check(address, 2 * size, "write");
    const [low, high] = [e.loadFrom(host, size), e.loadFrom(host, size, size)];
    const equal = e.andBit(e.eq(low, e.reg(RAX, size)), e.eq(high, e.reg(RDX, size)));
    const [rax, rdx] = [e.reg(RAX), e.reg(RDX)];
    e.storeTo(host, size, e.select(equal, e.reg(RBX, size), low));
    e.storeTo(host, size, e.select(equal, e.reg(RCX, size), high), size);
    e.setReg(RAX, e.select(equal, rax, low));
    e.setReg(RDX, e.select(equal, rdx, high));
    const others = e.and(flagsImage(e), ~FLAG.ZF);
    setStatusFlags(e, e.or(others, e.shl(e.extend(equal), 6n)), e.extend(e.overflow()));
  };
}

/** An access that must be aligned, whatever else alignment checks say. */
function alignedPlace(e: Emitter): Place {
  const address = e.address();
  e.stopWhen(e.ne(e.and(address, BigInt(e.size(0) - 1)), 0n), ANSWER.generalProtection);
  return e.placeAt(address, e.size(0));
}

/** aadd and kin: memory OP= register, no flags. */
function remote(operation: (e: Emitter, a: Value, b: Value) => Value): Lift {
  return (e) => {
    const to = alignedPlace(e);
    to.put(e.zext(operation(e, to.value, e.read(1)), e.size(0)));
  };
}

/** cmpccxadd: compares memory with operand 1, which gets what was there, and if `condition` holds adds operand 2. */
function addIf(condition: (e: Emitter) => Bit): Lift {
  return (e) => {
    const to = alignedPlace(e);
    const [compared, addend] = [e.read(1), e.read(2)];
    subtracted(e, to.value, compared, e.size(0)).setFlags();
    to.put(e.select(condition(e), e.zext(e.add(to.value, addend), e.size(0)), to.value)); // written either way
    e.write(1, to.value);
  };
}

export const atomics: Family = {
  Aadd: remote((e, a, b) => e.add(a, b)),
  Aand: remote((e, a, b) => e.and(a, b)),
  Aor: remote((e, a, b) => e.or(a, b)),
  Axor: remote((e, a, b) => e.xor(a, b)),
  Cmpoxadd: addIf(CONDITIONS.o),
  Cmpnoxadd: addIf(CONDITIONS.no),
  Cmpbxadd: addIf(CONDITIONS.b),
  Cmpnbxadd: addIf(CONDITIONS.ae),
  Cmpzxadd: addIf(CONDITIONS.e),
  Cmpnzxadd: addIf(CONDITIONS.ne),
  Cmpbexadd: addIf(CONDITIONS.be),
  Cmpnbexadd: addIf(CONDITIONS.a),
  Cmpsxadd: addIf(CONDITIONS.s),
  Cmpnsxadd: addIf(CONDITIONS.ns),
  Cmppxadd: addIf(CONDITIONS.p),
  Cmpnpxadd: addIf(CONDITIONS.np),
  Cmplxadd: addIf(CONDITIONS.l),
  Cmpnlxadd: addIf(CONDITIONS.ge),
  Cmplexadd: addIf(CONDITIONS.le),
  Cmpnlexadd: addIf(CONDITIONS.g),
  Cmpxchg: (e) => {
    const size = e.size(0);
    const accumulator = e.reg(RAX, size);
    const to = e.place(0);
    const equal = e.eq(accumulator, to.value);
    const result = subtracted(e, accumulator, to.value, size);
    const source = e.read(1);
    // Of the accumulator and a destination register only one is written: a 32-bit write clears the upper half.
    const whole = e.reg(RAX);
    const merged = e.select(equal, whole, size === 4 ? to.value : e.merge(whole, to.value, size));
    if (e.kind(0) === "memory") {
      to.put(e.select(equal, source, to.value)); // written either way
      e.setReg(RAX, merged);
    } else {
      e.setReg(RAX, merged);
      e.when(equal, () => to.put(source));
    }
    result.setFlags();
  },
  Cmpxchg8b: exchangePair(4),
  Cmpxchg16b: exchangePair(8),
};
