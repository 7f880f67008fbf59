// Push, pop, enter, leave, and the flags through the stack (SDM vol. 1, 6.2).

import { PAGE_SIZE } from "../../base/addr.ts";
import { Code } from "../decode.ts";
import { FLAG, POPF_SYSTEM_FLAGS, RBP, RSP } from "../register.ts";
import { ANSWER, STATE } from "../state.ts";
import type { Family, Lift } from "./definition.ts";
import type { Emitter } from "./emitter.ts";
import type { Value } from "./values.ts";

/** RFLAGS with its lazy part worked out. */
export function flagsImage(e: Emitter): Value {
  const at = (bit: bigint, value: Value) => (bit === 0n ? value : e.shl(value, bit));
  let image = e.getState(STATE.systemFlags);
  image = e.or(image, at(0n, e.extend(e.carry())));
  image = e.or(image, at(2n, e.extend(e.parity())));
  image = e.or(image, at(4n, e.extend(e.adjust())));
  image = e.or(image, at(6n, e.extend(e.zero())));
  image = e.or(image, at(7n, e.extend(e.sign())));
  return e.or(image, at(11n, e.extend(e.overflow())));
}

/** The five status flags that SAHF has, OF given apart, as lazy words. */
export function setStatusFlags(e: Emitter, image: Value, overflow: Value): void {
  const flag = (n: bigint) => e.and(e.shr(image, n), 1n);
  const [carry, parity, adjust, zero, sign] = [flag(0n), flag(2n), flag(4n), flag(6n), flag(7n)];
  // result is 0 or 1: its top bit and its bit 4 are clear, and its parity is the opposite of ZF.
  const result = e.xor(zero, 1n);
  let x = e.or(e.shl(adjust, 4n), e.shl(e.xor(parity, zero), 8n));
  x = e.or(x, e.shl(sign, 62n));
  x = e.or(x, e.shl(e.xor(overflow, carry), 63n));
  e.setFlagWords(e.bit(carry, 0n), result, x);
}

/** The 16-bit form leaves what is above. */
function popFlags(size: 2 | 8): Lift {
  const changed = POPF_SYSTEM_FLAGS & (size === 2 ? 0xffffn : -1n);
  return (e) => {
    const image = e.peek(size);
    // Outside the kernel IOPL decides what changes; TF traps; AC may change what can be accessed; a waiting
    // interrupt may be taken.
    const access = e.and(e.xor(image, e.getState(STATE.systemFlags)), size === 2 ? 0n : FLAG.AC);
    const special = e.ne(e.or(e.and(image, FLAG.TF), access), 0n);
    const careful = e.orBit(e.user(), e.orBit(special, e.ne(e.getState(STATE.attention), 0n)));
    e.stopWhen(careful, ANSWER.system);
    e.setReg(RSP, e.add(e.reg(RSP), BigInt(size)));
    const kept = e.and(e.getState(STATE.systemFlags), ~(changed | FLAG.RF));
    e.setState(STATE.systemFlags, e.or(kept, e.and(image, changed)));
    setStatusFlags(e, image, e.and(e.shr(image, 11n), 1n));
  };
}

/**
 * Pushes rbp and makes room. The new top of the stack must be writable, or it faults with rbp stored: if that is not the
 * page of the push, it is done step by step, as it is where it nests (machine/system/enter.ts).
 */
const enter: Lift = (e) => {
  const size = e.code === Code.Enterw_imm16_imm8 ? 2 : 8;
  const frame = e.sub(e.reg(RSP), BigInt(size));
  const top = e.sub(frame, e.read(0));
  const stored = e.check(frame, size, "write");
  e.stopWhen(e.ne(pageOf(e, top), pageOf(e, frame)), ANSWER.system);
  e.storeTo(stored, size, e.reg(RBP));
  e.setReg(RSP, top);
  e.setReg(RBP, frame, size);
};

function pageOf(e: Emitter, address: Value): Value {
  return e.and(address, BigInt(-PAGE_SIZE));
}

export const stack: Family = {
  Push: (e) => e.push(e.read(0), e.size(0) === 2 ? 2 : 8),
  Pop: (e) => {
    const size = e.size(0) === 2 ? 2 : 8;
    const value = e.peek(size);
    const above = e.add(e.reg(RSP), BigInt(size));
    if (e.kind(0) === "memory") {
      // An address with rsp in it is computed after the increment (SDM vol. 2, POP).
      e.store(e.addressAfterPop(BigInt(size)), size, value);
      e.setReg(RSP, above);
    } else {
      e.setReg(RSP, above); // first, so that pop %rsp keeps what it popped
      e.write(0, value);
    }
  },
  Pushfq: (e) => e.push(e.and(flagsImage(e), ~FLAG.RF)),
  Pushf: (e) => e.push(flagsImage(e), 2),
  Popfq: popFlags(8),
  Popf: popFlags(2),
  Enter: enter,
  Leave: (e) => {
    const size = e.code === Code.Leavew ? 2 : 8;
    const frame = e.reg(RBP);
    const value = e.load(frame, size);
    e.setReg(RSP, e.add(frame, BigInt(size)));
    e.setReg(RBP, value, size);
  },
};
