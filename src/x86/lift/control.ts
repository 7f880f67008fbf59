// Branches, calls, returns (SDM vol. 1, 7.3.8). A near branch to an address that is not canonical faults
// before anything else happens.

import { RCX } from "../register.ts";
import { CONDITIONS, type Family, type Lift } from "./definition.ts";
import type { Emitter } from "./emitter.ts";
import type { Bit } from "./values.ts";

export const jumps: Family = {
  Jmp: (e) => {
    if (e.kind(0) === "target") {
      e.branch();
      return;
    }
    const target = e.read(0);
    e.checkTarget(target);
    e.jump(target);
  },
  Ret: (e) => e.jump(e.popReturn(e.operandCount === 0 ? 0n : e.read(0))),
};

/** loop and kin count rcx down, without flags, and go on while it is not zero and `condition` holds. */
function loop(condition: (e: Emitter) => Bit): Lift {
  return (e) => {
    const size = e.addressSize;
    const left = e.sub(e.reg(RCX, size), 1n);
    e.setReg(RCX, left, size);
    e.branch(e.andBit(e.not(e.eqz(e.zext(left, size))), condition(e)));
  };
}

const jumpIfCountIsZero: Lift = (e) => e.branch(e.eqz(e.reg(RCX, e.addressSize)));

export const branches: Family = {
  Loop: loop(() => true),
  Loope: loop((e) => e.zero()),
  Loopne: loop((e) => e.not(e.zero())),
  Jrcxz: jumpIfCountIsZero,
  Jecxz: jumpIfCountIsZero,
  Call: (e) => {
    if (e.kind(0) === "target") {
      e.call();
      e.branch();
      return;
    }
    const target = e.read(0);
    e.checkTarget(target);
    e.call();
    e.jump(target);
  },
  ...Object.fromEntries(
    Object.entries(CONDITIONS).map(([suffix, condition]): [string, Lift] => [
      `J${suffix}`,
      (e) => e.branch(condition(e)),
    ]),
  ),
};
