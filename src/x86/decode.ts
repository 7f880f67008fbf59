// Decoding, with iced-x86, into plain records that the lifter and the analyses read.
//
// Undefined encodings are a value, not an error; so is running out of bytes, which at the end
// of a mapping means a page fault of the fetch, and nothing else does.

import {
  Code,
  Decoder,
  DecoderError,
  DecoderOptions,
  Formatter,
  FormatterSyntax,
  Instruction as IcedInstruction,
  MemorySizeExt,
  Mnemonic,
  OpKind,
  Register,
  RegisterExt,
} from "iced-x86";
import { type Addr, addr, isCanonical } from "../base/addr.ts";
import type { Gpr } from "./register.ts";

export { Code, Mnemonic } from "iced-x86";

/** The longest instruction, in bytes (SDM vol. 2, 2.3.11). */
export const MAX_LENGTH = 15;

/** Operand sizes in bytes. */
export type Size = 1 | 2 | 4 | 8;

export type Operand =
  /** `high` is one of ah, ch, dh, bh: bits 8 to 15 of `reg`. */
  | { readonly kind: "register"; readonly reg: Gpr; readonly size: Size; readonly high: boolean }
  /** The instruction's `memory`. `size` is 0 where nothing is accessed (lea, nop, prefetch). */
  | { readonly kind: "memory"; readonly size: number }
  /** `value` is extended as the instruction does, then cut to `size` bytes, unsigned. */
  | { readonly kind: "immediate"; readonly value: bigint; readonly size: Size }
  | { readonly kind: "target"; readonly at: Addr }
  /** Enter's second, 0 to 31. */
  | { readonly kind: "nesting"; readonly level: number }
  /** What rsi or rdi point at, in string instructions. */
  | { readonly kind: "string" }
  /** `number` is the encoded one: es cs ss ds fs gs, cr0 to cr15, dr0 to dr15. */
  | { readonly kind: "segment" | "control" | "debug"; readonly number: number }
  /** Vector and other registers, far pointers. */
  | { readonly kind: "other" };

export interface MemoryOperand {
  readonly base: Gpr | undefined;
  readonly index: Gpr | undefined;
  /** log2 of the scale. */
  readonly shift: number;
  /** Signed; for RIP-relative operands the absolute address, with neither base nor index. */
  readonly displacement: bigint;
  /** Only these two have a base in 64-bit mode. */
  readonly segment: "fs" | "gs" | undefined;
}

export interface Instruction {
  readonly ip: Addr;
  /** Address of the instruction after this one. */
  readonly next: Addr;
  readonly length: number;
  readonly mnemonic: Mnemonic;
  /** iced-x86's code: one per encoding form. */
  readonly code: Code;
  readonly operands: readonly Operand[];
  readonly memory: MemoryOperand | undefined;
  /** In bytes, of addresses and of the counter of string and loop instructions. */
  readonly addressSize: 4 | 8;
  readonly lock: boolean;
  readonly repeat: "rep" | "repne" | undefined;
}

export type Decoded =
  | { readonly kind: "instruction"; readonly instruction: Instruction }
  /** The bytes encode nothing: #UD. */
  | { readonly kind: "invalid" }
  /** More bytes are needed than were given. */
  | { readonly kind: "truncated" };

const scratch = new IcedInstruction();

/** Decodes the instruction at the start of `bytes`, which lie at `ip`. */
export function decode(bytes: Uint8Array, ip: Addr): Decoded {
  const decoder = new Decoder(
    64,
    bytes.length > MAX_LENGTH ? bytes.subarray(0, MAX_LENGTH) : bytes,
    DecoderOptions.None,
  );
  decoder.ip = BigInt.asUintN(64, BigInt(ip));
  decoder.decodeOut(scratch);
  const exhausted = decoder.lastError === DecoderError.NoMoreBytes && bytes.length < MAX_LENGTH;
  decoder.free();
  if (scratch.code === Code.INVALID)
    return exhausted && !startsInvalid(bytes) ? { kind: "truncated" } : { kind: "invalid" };
  const next = ip + scratch.length;
  if (!isCanonical(next)) return { kind: "invalid" };
  return { kind: "instruction", instruction: plain(scratch, ip, next as Addr) };
}

/**
 * Opcodes of the first two maps that are nothing in 64-bit mode and that processors ask no further byte of: at the end of
 * a page they are #UD, whatever comes behind (seen on silicon; iced-x86 wants a ModR/M byte).
 */
const INVALID_ALONE = new Set([
  ...[0x06, 0x07, 0x0e, 0x16, 0x17, 0x1e, 0x1f, 0x27, 0x2f, 0x37, 0x3f, 0x60, 0x61, 0xce, 0xd6],
  ...[0x0f04, 0x0f0a, 0x0f0c, 0x0f24, 0x0f25, 0x0f26, 0x0f27, 0x0f36, 0x0f39, 0x0f3b, 0x0f3c, 0x0f3d],
  ...[0x0f3e, 0x0f3f, 0x0f7a, 0x0f7b, 0x0fa6, 0x0fa7],
]);
const LEGACY_PREFIXES = new Set([0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf0, 0xf2, 0xf3]);

/** Whether prefixes and opcode say already that `bytes` encode nothing. */
function startsInvalid(bytes: Uint8Array): boolean {
  let at = 0;
  while (LEGACY_PREFIXES.has(bytes[at]!)) at++;
  if (at < bytes.length && (bytes[at]! & 0xf0) === 0x40) at++; // REX
  const opcode = bytes[at] === 0x0f ? 0x0f00 | (bytes[at + 1] ?? 0) : bytes[at];
  return opcode !== undefined && INVALID_ALONE.has(opcode);
}

/** The instruction's mnemonic as iced-x86 spells it, in lower case: `movzx`. */
export function mnemonicName(instruction: Instruction): string {
  return Mnemonic[instruction.mnemonic]!.toLowerCase();
}

/** The instruction as iced-x86 prints it in GNU syntax: `mov %rsp,%rbp`. */
export function printInstruction(bytes: Uint8Array, ip: Addr): string {
  const decoder = new Decoder(64, bytes, DecoderOptions.None);
  decoder.ip = BigInt.asUintN(64, BigInt(ip));
  const instruction = decoder.decode();
  const formatter = new Formatter(FormatterSyntax.Gas);
  const text = formatter.format(instruction);
  instruction.free();
  formatter.free();
  decoder.free();
  return text;
}

function plain(iced: IcedInstruction, ip: Addr, next: Addr): Instruction {
  const operands: Operand[] = [];
  let memory: MemoryOperand | undefined;
  for (let n = 0; n < iced.opCount; n++) {
    const operand = plainOperand(iced, n);
    operands.push(operand);
    if (operand.kind === "memory") memory = plainMemory(iced);
    else if (operand.kind === "string") memory ??= plainMemory(iced); // for its segment override
  }
  return {
    ip,
    next,
    length: iced.length,
    mnemonic: iced.mnemonic,
    code: iced.code,
    operands,
    memory,
    addressSize: addressSize(iced),
    lock: iced.hasLockPrefix,
    repeat: iced.hasRepePrefix ? "rep" : iced.hasRepnePrefix ? "repne" : undefined,
  };
}

const SHORT_STRING_OPERANDS = [OpKind.MemorySegESI, OpKind.MemoryESEDI];
const STRING_OPERANDS = [OpKind.MemorySegRSI, OpKind.MemoryESRDI, ...SHORT_STRING_OPERANDS];
const SHORT_COUNTERS = [
  Code.Loop_rel8_64_ECX,
  Code.Loope_rel8_64_ECX,
  Code.Loopne_rel8_64_ECX,
  Code.Jecxz_rel8_64,
];

/** Four with the address-size prefix, for whatever it is that the instruction addresses or counts with. */
function addressSize(iced: IcedInstruction): 4 | 8 {
  if (SHORT_COUNTERS.includes(iced.code)) return 4;
  for (let n = 0; n < iced.opCount; n++) if (SHORT_STRING_OPERANDS.includes(iced.opKind(n))) return 4;
  const registers = [iced.memoryBase, iced.memoryIndex].filter((register) => register !== Register.None);
  if (registers.length === 0) return iced.memoryDisplSize === 4 ? 4 : 8;
  return registers.some((register) => RegisterExt.size(register) === 4) ? 4 : 8;
}

const IMMEDIATE_SIZE = new Map<OpKind, Size>([
  [OpKind.Immediate8, 1],
  [OpKind.Immediate16, 2],
  [OpKind.Immediate32, 4],
  [OpKind.Immediate64, 8],
  [OpKind.Immediate8to16, 2],
  [OpKind.Immediate8to32, 4],
  [OpKind.Immediate8to64, 8],
  [OpKind.Immediate32to64, 8],
]);

function plainOperand(iced: IcedInstruction, n: number): Operand {
  const kind = iced.opKind(n);
  if (kind === OpKind.Register) {
    const register = iced.opRegister(n);
    const full = RegisterExt.fullRegister(register);
    if (full < Register.RAX || full > Register.R15) return systemRegister(register);
    const size = RegisterExt.size(register);
    if (size !== 1 && size !== 2 && size !== 4 && size !== 8) return { kind: "other" };
    const high = register >= Register.AH && register <= Register.BH;
    return { kind: "register", reg: full - Register.RAX, size, high };
  }
  if (kind === OpKind.Memory) {
    if (iced.isCallFarIndirect || iced.isJmpFarIndirect) return { kind: "other" };
    return { kind: "memory", size: MemorySizeExt.size(iced.memorySize) };
  }
  if (kind === OpKind.NearBranch64) {
    const target = BigInt.asIntN(64, iced.nearBranchTarget);
    return isCanonical(target) ? { kind: "target", at: addr(target) } : { kind: "other" };
  }
  if (STRING_OPERANDS.includes(kind)) return { kind: "string" };
  if (kind === OpKind.Immediate8_2nd && iced.mnemonic === Mnemonic.Enter)
    return { kind: "nesting", level: iced.immediate8_2nd & 31 };
  const size = IMMEDIATE_SIZE.get(kind);
  if (size !== undefined)
    return { kind: "immediate", value: BigInt.asUintN(8 * size, iced.immediate(n)), size };
  return { kind: "other" };
}

function systemRegister(register: Register): Operand {
  const number = RegisterExt.number(register);
  if (RegisterExt.isSegmentRegister(register)) return { kind: "segment", number };
  if (RegisterExt.isCR(register)) return { kind: "control", number };
  if (RegisterExt.isDR(register)) return { kind: "debug", number };
  return { kind: "other" };
}

function plainMemory(iced: IcedInstruction): MemoryOperand {
  const base = iced.memoryBase;
  const index = iced.memoryIndex;
  const prefix = iced.memorySegment;
  const relative = base === Register.RIP || base === Register.EIP;
  return {
    base: relative || base === Register.None ? undefined : RegisterExt.number(base),
    index: index === Register.None ? undefined : RegisterExt.number(index),
    shift: Math.log2(iced.memoryIndexScale),
    displacement: BigInt.asIntN(64, iced.memoryDisplacement),
    segment: prefix === Register.FS ? "fs" : prefix === Register.GS ? "gs" : undefined,
  };
}
