// What an instruction does to registers and flags, as far as that can be said without executing it: what a sequence is
// put together by.

import {
  Decoder,
  DecoderOptions,
  FlowControl,
  Instruction,
  InstructionInfoFactory,
  Mnemonic,
  OpAccess,
  OpKind,
  Register,
  RegisterExt,
} from "iced-x86";
import { flagEffect, isShiftByCl, rflags } from "../../src/x86/flagEffect.ts";
import { FLAGS } from "../x86/cases-model.ts";
import type { FuzzCode } from "./code.ts";

export type Flow = "next" | "branch" | "call" | "elsewhere";

export interface Effects {
  /** Registers that it may write, a bit for each number. */
  readonly writes: number;
  /** What is added to rsp, where nothing else happens to it. */
  readonly moves: number | undefined;
  /** Bits of rflags that it reads. */
  readonly reads: number;
  /** Bits of rflags that have a defined value afterwards, whatever it executes with. */
  readonly defines: number;
  /** Bits of rflags that the manual may leave undefined afterwards. */
  readonly spoils: number;
  readonly ipRelative: boolean;
  /** "branch" and "call" go where their last bytes say; "elsewhere" is all else that does not go on. */
  readonly flow: Flow;
}

const scratch = new Instruction();
const factory = new InstructionInfoFactory();

const WRITES = [OpAccess.Write, OpAccess.CondWrite, OpAccess.ReadWrite, OpAccess.ReadCondWrite];
const STACK = [Mnemonic.Push, Mnemonic.Pop, Mnemonic.Pushf, Mnemonic.Pushfq, Mnemonic.Call];
const COMPARISONS = /^(cmps|scas)/;
/** A shift by cl writes none for a count of 0, and for others leaves undefined what goes by the count. */
const SPOILT_BY_COUNT = FLAGS.cf | FLAGS.af | FLAGS.of;

/** The effects of `code`, a single instruction that stands at `ip`. */
export function effectsOf(code: FuzzCode, ip: number): Effects {
  const decoder = new Decoder(64, code.bytes, DecoderOptions.None);
  decoder.ip = BigInt(ip);
  decoder.decodeOut(scratch);
  decoder.free();
  // None of the flags is written when no element is compared.
  const countsInCl = isShiftByCl(scratch);
  const conditional = countsInCl || (code.repeated && COMPARISONS.test(code.family));
  const flags = conditional ? undefined : flagEffect(scratch, 0);
  return {
    writes: writtenRegisters(),
    moves: movesOf(),
    reads: rflags(scratch.rflagsRead),
    defines: flags?.written ?? 0,
    spoils: flags?.undefined ?? (countsInCl ? SPOILT_BY_COUNT : 0),
    ipRelative: scratch.isIpRelMemoryOperand,
    flow: flowOf(),
  };
}

function writtenRegisters(): number {
  const info = factory.info(scratch);
  let writes = 0;
  for (const used of info.usedRegisters()) {
    const register = RegisterExt.fullRegister(used.register);
    if (WRITES.includes(used.access) && RegisterExt.isGPR64(register))
      writes |= 1 << RegisterExt.number(register);
    used.free();
  }
  info.free();
  return writes;
}

function movesOf(): number | undefined {
  if (!STACK.includes(scratch.mnemonic)) return undefined;
  const popsIt =
    scratch.mnemonic === Mnemonic.Pop &&
    scratch.op0Kind === OpKind.Register &&
    RegisterExt.fullRegister(scratch.op0Register) === Register.RSP;
  return popsIt ? undefined : scratch.stackPointerIncrement;
}

function flowOf(): Flow {
  switch (scratch.flowControl) {
    case FlowControl.Next:
      return "next";
    case FlowControl.ConditionalBranch:
    case FlowControl.UnconditionalBranch:
      return "branch";
    case FlowControl.Call:
      return "call";
    default:
      return "elsewhere";
  }
}
