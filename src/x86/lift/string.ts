// String instructions (SDM vol. 1, 7.3.9).
//
// A repeated one does a single iteration and then goes back to itself: each iteration is a boundary at
// which the CPU can be interrupted, and counts as one instruction here.

import type { Size } from "../decode.ts";
import { RAX, RCX, RDI, RSI } from "../register.ts";
import { STATE } from "../state.ts";
import { subtracted } from "./alu.ts";
import type { Family, Lift } from "./definition.ts";
import type { Emitter } from "./emitter.ts";
import type { Bit, Value } from "./values.ts";

/** What is left to do of an iteration when nothing can stop it any more. */
interface Outcome {
  /** Sets rax or the flags. */
  readonly commit: () => void;
  /** Of the comparing ones: whether both were the same. */
  readonly equal?: Bit;
}

type Iteration = (e: Emitter, size: Size) => Outcome;

function string(size: Size, moves: readonly number[], iteration: Iteration): Lift {
  return (e) => {
    if (e.repeat === undefined) {
      const { commit } = iteration(e, size);
      advance(e, size, moves);
      commit();
      return;
    }
    const left = e.reg(RCX, e.addressSize);
    e.skipIf(e.eqz(left));
    const { commit, equal } = iteration(e, size);
    advance(e, size, moves);
    const rest = e.sub(left, 1n);
    e.setReg(RCX, rest, e.addressSize);
    let more: Bit = e.not(e.eqz(e.zext(rest, e.addressSize)));
    if (equal === undefined) commit();
    else {
      more = e.andBit(more, e.repeat === "rep" ? equal : e.not(equal));
      // A fault in a later iteration finds the flags as they were before the instruction (SDM vol. 2, REP).
      e.when(e.not(more), commit);
    }
    e.again(more);
  };
}

function advance(e: Emitter, size: Size, registers: readonly number[]): void {
  const down = e.bit(e.getState(STATE.systemFlags), 10n);
  const by = e.select(down, BigInt(-size), BigInt(size));
  for (const register of registers) e.setReg(register, e.add(e.reg(register), by), e.addressSize);
}

function source(e: Emitter): Value {
  return e.add(e.reg(RSI, e.addressSize), e.segmentBase());
}

/** A destination is always in es, whose base is zero. */
function destination(e: Emitter): Value {
  return e.reg(RDI, e.addressSize);
}

const copy: Iteration = (e, size) => {
  const value = e.load(source(e), size);
  e.store(destination(e), size, value);
  return { commit: () => {} };
};

const fill: Iteration = (e, size) => {
  e.store(destination(e), size, e.reg(RAX, size));
  return { commit: () => {} };
};

const fetch: Iteration = (e, size) => {
  const value = e.load(source(e), size);
  return { commit: () => e.setReg(RAX, value, size) };
};

const scan: Iteration = (e, size) => {
  const left = e.reg(RAX, size);
  const right = e.load(destination(e), size);
  return { commit: subtracted(e, left, right, size).setFlags, equal: e.eq(left, right) };
};

const compare: Iteration = (e, size) => {
  const left = e.load(source(e), size);
  const right = e.load(destination(e), size, "read2");
  return { commit: subtracted(e, left, right, size).setFlags, equal: e.eq(left, right) };
};

export const strings: Family = Object.fromEntries(
  (
    [
      ["b", 1],
      ["w", 2],
      ["d", 4],
      ["q", 8],
    ] as const
  ).flatMap(([suffix, size]): [string, Lift][] => [
    [`Movs${suffix}`, string(size, [RSI, RDI], copy)],
    [`Stos${suffix}`, string(size, [RDI], fill)],
    [`Lods${suffix}`, string(size, [RSI], fetch)],
    [`Scas${suffix}`, string(size, [RDI], scan)],
    [`Cmps${suffix}`, string(size, [RSI, RDI], compare)],
  ]),
);
