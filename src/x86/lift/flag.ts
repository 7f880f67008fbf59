// Single flags, and the low flags through ah (SDM vol. 1, 7.3.13).

import { FLAG, RAX } from "../register.ts";
import { ANSWER, STATE } from "../state.ts";
import type { Family, Lift } from "./definition.ts";
import { flagsImage, setStatusFlags } from "./stack.ts";

function systemFlag(flag: bigint, on: boolean): Lift {
  return (e) => {
    const flags = e.getState(STATE.systemFlags);
    e.setState(STATE.systemFlags, on ? e.or(flags, flag) : e.and(flags, ~flag));
  };
}

export const flags: Family = {
  Clc: (e) => e.setCarry(false),
  Stc: (e) => e.setCarry(true),
  Cmc: (e) => e.setCarry(e.not(e.carry())),
  Cld: systemFlag(FLAG.DF, false),
  Std: systemFlag(FLAG.DF, true),
  // Outside the kernel both depend on IOPL, and with an interrupt waiting sti is more than a flag.
  Cli: (e) => {
    e.stopWhen(e.user(), ANSWER.system);
    systemFlag(FLAG.IF, false)(e);
  },
  Sti: (e) => {
    e.stopWhen(e.orBit(e.user(), e.ne(e.getState(STATE.attention), 0n)), ANSWER.system);
    const on = e.bit(e.getState(STATE.systemFlags), 9n);
    e.setState(STATE.shadow, e.select(on, e.getState(STATE.shadow), e.next()));
    systemFlag(FLAG.IF, true)(e);
  },
  Lahf: (e) => {
    const rest = e.and(e.reg(RAX), ~0xff00n);
    e.setReg(RAX, e.or(rest, e.shl(e.and(flagsImage(e), 0xffn), 8n)));
  },
  Sahf: (e) => setStatusFlags(e, e.shr(e.reg(RAX), 8n), e.extend(e.overflow())),
};
