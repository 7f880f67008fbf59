// Which flags an instruction writes, and which the manual leaves undefined afterwards.
//
// iced-x86 has the manual's table per instruction; for shifts and rotates the manual's answer depends
// on the count (Intel SDM vol. 2, SAL/SAR/SHL/SHR, RCL/RCR/ROL/ROR, SHLD, SHRD), so this file has it.

import {
  type Instruction,
  MemorySizeExt,
  Mnemonic,
  OpKind,
  Register,
  RegisterExt,
  RflagsBits,
} from "iced-x86";
import { FLAG } from "./register.ts";

export interface FlagEffect {
  /** Bits of rflags that are written with a defined value. */
  readonly written: number;
  /** Bits of rflags that nothing may be said about afterwards. */
  readonly undefined: number;
}

const [CF, PF, AF, ZF, SF, OF, DF] = [FLAG.CF, FLAG.PF, FLAG.AF, FLAG.ZF, FLAG.SF, FLAG.OF, FLAG.DF].map(
  Number,
) as [number, number, number, number, number, number, number];
const RESULT = PF | ZF | SF;
const NONE: FlagEffect = { written: 0, undefined: 0 };

/** The effect of an instruction that does not fault; `cl` is what is in %cl before it. */
export function flagEffect(instruction: Instruction, cl: number): FlagEffect {
  const bits = operandBits(instruction);
  const count = () => shiftCount(instruction, cl, bits);
  switch (instruction.mnemonic) {
    case Mnemonic.Shl:
    case Mnemonic.Sal:
    case Mnemonic.Shr:
      return shift(count(), count() >= bits ? CF : 0);
    case Mnemonic.Sar:
    case Mnemonic.Shld:
    case Mnemonic.Shrd:
      return shift(count(), 0);
    case Mnemonic.Rol:
    case Mnemonic.Ror:
    case Mnemonic.Rcl:
    case Mnemonic.Rcr:
      if (count() === 0) return NONE;
      return count() === 1 ? { written: CF | OF, undefined: 0 } : { written: CF, undefined: OF };
    default: {
      const unknown = rflags(instruction.rflagsUndefined);
      return { written: rflags(instruction.rflagsModified) & ~unknown, undefined: unknown };
    }
  }
}

/** A shift or rotate whose count is in %cl. */
export function isShiftByCl(instruction: Instruction): boolean {
  const last = instruction.opCount - 1;
  return (
    SHIFTS.has(instruction.mnemonic) &&
    instruction.opKind(last) === OpKind.Register &&
    instruction.opRegister(last) === Register.CL
  );
}

const SHIFTS: ReadonlySet<Mnemonic> = new Set([
  ...[Mnemonic.Shl, Mnemonic.Sal, Mnemonic.Shr, Mnemonic.Sar, Mnemonic.Shld, Mnemonic.Shrd],
  ...[Mnemonic.Rol, Mnemonic.Ror, Mnemonic.Rcl, Mnemonic.Rcr],
]);

/** iced's flag bits as the processor's. */
export function rflags(bits: number): number {
  let mask = 0;
  for (const [theirs, ours] of [
    [RflagsBits.CF, CF],
    [RflagsBits.PF, PF],
    [RflagsBits.AF, AF],
    [RflagsBits.ZF, ZF],
    [RflagsBits.SF, SF],
    [RflagsBits.OF, OF],
    [RflagsBits.DF, DF],
  ] as const)
    if (bits & theirs) mask |= ours;
  return mask;
}

/** AF is undefined after every shift that moves anything, OF after one by more than a bit. */
function shift(count: number, alsoUndefined: number): FlagEffect {
  if (count === 0) return NONE;
  const unknown = AF | (count === 1 ? 0 : OF) | alsoUndefined;
  return { written: (CF | RESULT | OF) & ~unknown, undefined: unknown };
}

/** The last operand: an immediate (1 in the one-operand forms too) or %cl; masked as the processor does. */
function shiftCount(instruction: Instruction, cl: number, bits: number): number {
  return (isShiftByCl(instruction) ? cl : instruction.immediate8) & (bits === 64 ? 63 : 31);
}

function operandBits(instruction: Instruction): number {
  if (instruction.opCount === 0) return 0;
  const inMemory = instruction.op0Kind === OpKind.Memory;
  return (
    8 * (inMemory ? MemorySizeExt.size(instruction.memorySize) : RegisterExt.size(instruction.op0Register))
  );
}
