// What an instruction does to registers and control flow, beyond its operands: from iced-x86's tables.

import {
  Decoder,
  DecoderOptions,
  FlowControl,
  InstructionInfoFactory,
  OpAccess,
  Register,
  RegisterExt,
} from "iced-x86";
import type { Addr } from "../base/addr.ts";
import { MAX_LENGTH } from "./decode.ts";
import type { Gpr } from "./register.ts";

/** Where execution goes after an instruction; `next` also after one that traps and comes back. */
export type Flow =
  | "next"
  | "jump"
  | "indirect-jump"
  | "conditional-jump"
  | "call"
  | "indirect-call"
  /** Leaves for where the stack says, or a register: ret, iret, sysret. */
  | "return"
  /** ud2 and its like: always #UD. */
  | "undefined";

export interface Effects {
  readonly flow: Flow;
  /** Written as a whole or in part, perhaps not always. */
  readonly writes: readonly Gpr[];
  /** What push, pop, call, ret and their like add to rsp, in bytes; 0 for all others. */
  readonly stackPointer: number;
  /** Whether memory is written, by the memory operand or as the stack. */
  readonly writesMemory: boolean;
}

const factory = new InstructionInfoFactory();

const FLOW = new Map<FlowControl, Flow>([
  [FlowControl.UnconditionalBranch, "jump"],
  [FlowControl.IndirectBranch, "indirect-jump"],
  [FlowControl.ConditionalBranch, "conditional-jump"],
  [FlowControl.IndirectCall, "indirect-call"],
  [FlowControl.Return, "return"],
  [FlowControl.Exception, "undefined"],
]);

const WRITES = [OpAccess.Write, OpAccess.ReadWrite, OpAccess.CondWrite, OpAccess.ReadCondWrite];

/** The effects of the valid instruction at the start of `bytes`, which lie at `ip`. */
export function effectsOf(bytes: Uint8Array, ip: Addr): Effects {
  const decoder = new Decoder(64, bytes.subarray(0, MAX_LENGTH), DecoderOptions.None);
  decoder.ip = BigInt.asUintN(64, BigInt(ip));
  const instruction = decoder.decode();
  const info = factory.info(instruction);
  const registers = info.usedRegisters();
  const memories = info.usedMemory();
  const writes = registers
    .filter(({ access }) => WRITES.includes(access))
    .map(({ register }) => RegisterExt.fullRegister(register))
    .filter((register) => register >= Register.RAX && register <= Register.R15)
    .map((register): Gpr => register - Register.RAX);
  const writesMemory = memories.some(({ access }) => WRITES.includes(access));
  // iced-x86 counts syscall and vmcall among the calls; they come back to the next instruction.
  const flow = instruction.isCallNear ? "call" : (FLOW.get(instruction.flowControl) ?? "next");
  const stackPointer = instruction.stackPointerIncrement;
  for (const used of [...registers, ...memories, info, instruction, decoder]) used.free();
  return { flow, writes, stackPointer, writesMemory };
}
