// Which flags a case's instructions write, and which the manual leaves undefined afterwards.
//
// iced-x86 has the manual's table per instruction; for shifts and rotates the manual's answer depends
// on the count (Intel SDM vol. 2, SAL/SAR/SHL/SHR, RCL/RCR/ROL/ROR, SHLD, SHRD), so this file has it. A count
// in %cl is taken from the state before the case: only its first instruction may shift by %cl.
// An instruction that faults writes none.

import {
  Decoder,
  DecoderOptions,
  type Instruction,
  MemorySizeExt,
  Mnemonic,
  OpKind,
  Register,
  RegisterExt,
  RflagsBits,
} from "iced-x86";
import { CODE, FLAGS, type Program } from "./cases-model.ts";

export interface FlagEffect {
  /** Bits of rflags that the case writes with a defined value. */
  readonly written: number;
  /** Bits of rflags that nothing may be said about afterwards. */
  readonly undefined: number;
}

const { cf: CF, pf: PF, af: AF, zf: ZF, sf: SF, of: OF } = FLAGS;
const RESULT = PF | ZF | SF;
const NONE: FlagEffect = { written: 0, undefined: 0 };

/** The effect of all the program's instructions, one after the other; of none if it faulted. */
export function flagEffect(program: Program, faulted: boolean): FlagEffect {
  if (faulted) return NONE;
  let { written, undefined: unknown } = NONE;
  for (const instruction of decodeAll(program.bytes)) {
    const effect = instructionEffect(instruction, program);
    written = (written | effect.written) & ~effect.undefined;
    unknown = (unknown & ~effect.written) | effect.undefined;
    instruction.free();
  }
  return { written, undefined: unknown };
}

/** The instructions that the bytes decode to at CODE. The caller frees them. */
export function decodeAll(bytes: Uint8Array): Instruction[] {
  const decoder = new Decoder(64, bytes, DecoderOptions.None);
  decoder.ip = BigInt(CODE);
  const instructions: Instruction[] = [];
  while (decoder.canDecode) instructions.push(decoder.decode());
  decoder.free();
  return instructions;
}

function instructionEffect(instruction: Instruction, program: Program): FlagEffect {
  const bits = operandBits(instruction);
  const count = () => shiftCount(instruction, program, bits);
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

/** AF is undefined after every shift that moves anything, OF after one by more than a bit. */
function shift(count: number, alsoUndefined: number): FlagEffect {
  if (count === 0) return NONE;
  const unknown = AF | (count === 1 ? 0 : OF) | alsoUndefined;
  return { written: (CF | RESULT | OF) & ~unknown, undefined: unknown };
}

/** The last operand: an immediate (1 in the one-operand forms too) or %cl; masked as the processor does. */
function shiftCount(instruction: Instruction, program: Program, bits: number): number {
  const last = instruction.opCount - 1;
  const count =
    instruction.opKind(last) === OpKind.Register && instruction.opRegister(last) === Register.CL
      ? Number(program.before.registers.rcx & 0xffn)
      : instruction.immediate8;
  return count & (bits === 64 ? 63 : 31);
}

function operandBits(instruction: Instruction): number {
  if (instruction.opCount === 0) return 0;
  const inMemory = instruction.op0Kind === OpKind.Memory;
  return (
    8 * (inMemory ? MemorySizeExt.size(instruction.memorySize) : RegisterExt.size(instruction.op0Register))
  );
}

/** iced's flag bits as the processor's. */
function rflags(bits: number): number {
  let mask = 0;
  for (const [theirs, ours] of [
    [RflagsBits.CF, CF],
    [RflagsBits.PF, PF],
    [RflagsBits.AF, AF],
    [RflagsBits.ZF, ZF],
    [RflagsBits.SF, SF],
    [RflagsBits.OF, OF],
    [RflagsBits.DF, FLAGS.df],
  ] as const)
    if (bits & theirs) mask |= ours;
  return mask;
}
