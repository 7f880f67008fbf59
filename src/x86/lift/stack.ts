// Push, pop, leave, and the flags through the stack (SDM vol. 1, 6.2).

import { FLAG, POPF_SYSTEM_FLAGS, RBP, RSP } from "../register.ts";
import { STATE } from "../state.ts";
import type { Family, Lift } from "./definition.ts";
import type { Emitter, Value } from "./emitter.ts";

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
    e.setReg(RSP, e.add(e.reg(RSP), BigInt(size)));
    const kept = e.and(e.getState(STATE.systemFlags), ~(changed | FLAG.RF));
    e.setState(STATE.systemFlags, e.or(kept, e.and(image, changed)));
    setStatusFlags(e, image, e.and(e.shr(image, 11n), 1n));
  };
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
  Pushfq: (e) => e.push(flagsImage(e)),
  Pushf: (e) => e.push(flagsImage(e), 2),
  Popfq: popFlags(8),
  Popf: popFlags(2),
  Leave: (e) => {
    const frame = e.reg(RBP);
    const value = e.load(frame, 8);
    e.setReg(RSP, e.add(frame, 8n));
    e.setReg(RBP, value);
  },
};
