// Which flags a case's instructions write, and which the manual leaves undefined afterwards.
//
// A count in %cl is taken from the state before the case: only its first instruction may shift by %cl.
// An instruction that faults writes none.

import { Decoder, DecoderOptions, type Instruction } from "iced-x86";
import { flagEffect as effectOf, type FlagEffect } from "../../src/x86/flagEffect.ts";
import { CODE, type Program } from "./cases-model.ts";

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

/** The effect of one instruction; a count in %cl is that of the state before `program`. */
export function instructionEffect(instruction: Instruction, program: Program): FlagEffect {
  return effectOf(instruction, Number(program.before.registers.rcx & 0xffn));
}
