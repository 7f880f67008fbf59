// One random instruction: its bytes, and what has to be known to run it with many states.
//
// Built with iced-x86's encoder and decoded again: everything said of it comes from the decoded bytes, so that prefixes
// put in front cannot make a description wrong. An attempt that cannot be encoded, decodes to something that is left
// out, or is not lifted in this form, is undefined: the caller tries again.

import {
  type Code,
  Decoder,
  DecoderOptions,
  Encoder,
  FlowControl,
  Instruction,
  InstructionInfoFactory,
  MemorySizeExt,
  Mnemonic,
  OpAccess,
  OpKind,
  Register,
  RegisterExt,
} from "iced-x86";
import { addr } from "../../src/base/addr.ts";
import { decode } from "../../src/x86/decode.ts";
import { definitionOf } from "../../src/x86/lift/table.ts";
import { flagEffect } from "../x86/cases-flags.ts";
import { CODE, DATA, DATA_SIZE, FS_BASE, GS_BASE, REGISTERS, type Registers } from "../x86/cases-model.ts";
import { chooseAddress, type Halves } from "./address.ts";
import type { Form } from "./forms.ts";
import type { Random } from "./random.ts";

/** One access to memory: `segment + base + index * scale + displacement`, cut to 32 bits before the segment if `narrow`. */
export interface Access {
  /** Register numbers; -1 for none. */
  readonly base: number;
  readonly index: number;
  /** The index is a low byte: xlat's al. */
  readonly byteIndex: boolean;
  /** log2. */
  readonly shift: number;
  readonly displacement: Halves;
  readonly segment: number;
  readonly narrow: boolean;
  readonly size: number;
  readonly read: boolean;
  readonly write: boolean;
  /** Of bt and kin: the register whose bits above the operand's width move the access; -1 for none. */
  readonly bits: number;
}

/** What the word that a branch goes to comes from. */
export type TargetSource = { readonly register: number } | "memory" | "stack" | "none";

export interface FuzzInstruction {
  readonly bytes: Uint8Array;
  readonly code: Code;
  readonly mnemonic: Mnemonic;
  /** `jcc`, `cmovcc` and `setcc` for the conditional ones, otherwise the mnemonic. */
  readonly family: string;
  readonly accesses: readonly Access[];
  readonly target: TargetSource;
  /** Through a register or memory. */
  readonly calls: boolean;
  readonly branches: boolean;
  readonly repeated: boolean;
  readonly locked: boolean;
  /** Operand size in bytes, of the first operand; 0 without. */
  readonly size: number;
  /** True if the count of a shift is in cl. */
  readonly countInCl: boolean;
  /** The manual's undefined flags by the count in cl, or at 0. Filled when asked. */
  readonly undefinedFlags: Int32Array;
  /** bsf and bsr of 32 bits: processors differ in the destination's upper half if the source is zero; else -1. */
  readonly scanDestination: number;
}

const scratch = new Instruction();
const factory = new InstructionInfoFactory();
const encoder = new Encoder(64);
const prefixed = new Uint8Array(15);

/** Prefixes that may stand in front of anything that allows them. */
const PREFIXES = [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf2, 0xf3];
const STRAIGHT = [FlowControl.Next, FlowControl.Interrupt, FlowControl.Exception];
const UNKNOWN = -1;

export class InstructionMaker {
  private readonly codes: ReadonlySet<Code>;

  constructor(included: readonly Form[]) {
    this.codes = new Set(included.map(({ code }) => code));
  }

  /** One attempt at a random instruction of the form. */
  make(random: Random, form: Form): FuzzInstruction | undefined {
    const iced = new Instruction();
    fill(random, iced, form);
    const bytes = encode(random, iced);
    iced.free();
    return bytes === undefined ? undefined : this.describe(bytes, form);
  }

  private describe(bytes: Uint8Array, form: Form): FuzzInstruction | undefined {
    const decoder = new Decoder(64, bytes, DecoderOptions.None);
    decoder.ip = BigInt(CODE);
    decoder.decodeOut(scratch);
    decoder.free();
    if (scratch.length !== bytes.length || !this.codes.has(scratch.code)) return undefined;
    if (scratch.mnemonic !== form.mnemonic) return undefined; // `--only` keeps its word
    // With 0x66 AMD's near branches are 16 bits wide, Intel's are not.
    if (!STRAIGHT.includes(scratch.flowControl) && bytes.subarray(0, -1).includes(0x66)) return undefined;
    const decoded = decode(bytes, addr(CODE));
    if (decoded.kind !== "instruction" || definitionOf(decoded.instruction) === undefined) return undefined;
    return describe(bytes);
  }
}

function describe(bytes: Uint8Array): FuzzInstruction | undefined {
  const { mnemonic } = scratch;
  const size = firstOperandSize();
  const last = scratch.opCount - 1;
  const countInCl =
    last >= 1 && scratch.opKind(last) === OpKind.Register && scratch.opRegister(last) === Register.CL;
  // A 64-bit store with a 0x66 too many, across two pages: silicon stores its first part before the second faults.
  if (mnemonic === Mnemonic.Movbe && size === 8 && bytes.subarray(0, 4).includes(0x66)) return undefined;
  const wideShift = mnemonic === Mnemonic.Shld || mnemonic === Mnemonic.Shrd;
  // For 16 bits, counts above 16 leave everything undefined (SDM vol. 2, SHLD).
  if (wideShift && size === 2 && !countInCl && (scratch.immediate8 & 31) > 16) return undefined;
  const scans = (mnemonic === Mnemonic.Bsf || mnemonic === Mnemonic.Bsr) && size === 4;
  const locked = scratch.hasLockPrefix || (mnemonic === Mnemonic.Xchg && scratch.memorySize !== 0);
  return {
    bytes,
    code: scratch.code,
    mnemonic,
    family: familyOf(),
    accesses: accessesOf(),
    target: targetOf(),
    branches: !STRAIGHT.includes(scratch.flowControl),
    calls: scratch.flowControl === FlowControl.IndirectCall,
    repeated: scratch.isStringInstruction && (scratch.hasRepPrefix || scratch.hasRepnePrefix),
    locked,
    size,
    countInCl,
    undefinedFlags: new Int32Array(256).fill(UNKNOWN),
    scanDestination: scans ? RegisterExt.number(scratch.op0Register) : -1,
  };
}

function firstOperandSize(): number {
  if (scratch.opCount === 0) return 0;
  const kind = scratch.op0Kind;
  if (kind === OpKind.Register) return RegisterExt.size(scratch.op0Register);
  return kind === OpKind.Memory ? MemorySizeExt.size(scratch.memorySize) : 0;
}

function familyOf(): string {
  const name = Mnemonic[scratch.mnemonic]!.toLowerCase();
  if (scratch.conditionCode === 0 || /^(loop|str|cmpxchg)/.test(name)) return name;
  return `${/^(cmov|set|j)/.exec(name)?.[0] ?? name}cc`;
}

function targetOf(): TargetSource {
  switch (scratch.flowControl) {
    case FlowControl.IndirectBranch:
    case FlowControl.IndirectCall:
      return scratch.op0Kind === OpKind.Register
        ? { register: RegisterExt.number(RegisterExt.fullRegister(scratch.op0Register)) }
        : "memory";
    case FlowControl.Return:
      return "stack";
    default:
      return "none";
  }
}

const BIT_TESTS = [Mnemonic.Bt, Mnemonic.Bts, Mnemonic.Btr, Mnemonic.Btc];
const READS = [OpAccess.Read, OpAccess.CondRead, OpAccess.ReadWrite, OpAccess.ReadCondWrite];
const WRITES = [OpAccess.Write, OpAccess.CondWrite, OpAccess.ReadWrite, OpAccess.ReadCondWrite];

function accessesOf(): Access[] {
  const info = factory.info(scratch);
  const accesses: Access[] = [];
  for (const used of info.usedMemory()) {
    const { base, index, segment, displacement, access } = used;
    const narrow = [base, index].some(
      (register) => register !== Register.None && RegisterExt.size(register) === 4,
    );
    const bitOffset =
      BIT_TESTS.includes(scratch.mnemonic) && scratch.op1Kind === OpKind.Register && scratch.op1Register;
    accesses.push({
      base: base === Register.None ? -1 : RegisterExt.number(base),
      index: index === Register.None ? -1 : RegisterExt.number(index),
      byteIndex: index !== Register.None && RegisterExt.size(index) === 1,
      shift: Math.log2(used.scale),
      displacement: halves(displacement),
      segment: segment === Register.FS ? FS_BASE : segment === Register.GS ? GS_BASE : 0,
      narrow,
      // Repeated string instructions have no size of their own there.
      size: MemorySizeExt.size(used.memorySize) || MemorySizeExt.size(scratch.memorySize),
      read: READS.includes(access),
      write: WRITES.includes(access),
      bits: bitOffset ? RegisterExt.number(bitOffset) : -1,
    });
    used.free();
  }
  info.free();
  return accesses;
}

export function halves(value: bigint): Halves {
  return { low: Number(BigInt.asIntN(32, value)), high: Number(BigInt.asIntN(32, value >> 32n)) };
}

// ---- Building.

function fill(random: Random, iced: Instruction, form: Form): void {
  iced.code = form.code;
  const inMemory = random.chance(55);
  for (const [n, kind] of form.operands.entries()) fillOperand(random, iced, n, kind, inMemory);
  const memory = iced.memoryDisplSize !== 0 || iced.memoryBase !== 0 || iced.memoryIndex !== 0;
  if (memory && form.lock && random.chance(25)) iced.hasLockPrefix = true;
  if (form.repeat && random.chance(60)) iced.hasRepPrefix = true;
  else if (form.repeatNot && random.chance(60)) iced.hasRepnePrefix = true;
}

function fillOperand(random: Random, iced: Instruction, n: number, kind: string, inMemory: boolean): void {
  const sized = /^r(8|16|32|64)_(\w+)$/.exec(kind);
  if (sized !== null) {
    if (sized[2] === "or_mem" && inMemory) fillMemory(random, iced, n);
    else fillRegister(iced, n, randomRegister(random, Number(sized[1])));
  } else if (kind === "mem") fillMemory(random, iced, n);
  else if (kind === "mem_offs") fillOffset(random, iced, n);
  else if (kind.startsWith("imm")) fillImmediate(random, iced, n, kind);
  else if (kind.startsWith("br64")) {
    iced.setOpKind(n, OpKind.NearBranch64);
    iced.nearBranch64 = BigInt(CODE + branchDistance(random, kind === "br64_1"));
  } else if (kind === "seg_rSI") {
    iced.setOpKind(n, random.chance(80) ? OpKind.MemorySegRSI : OpKind.MemorySegESI);
    iced.segmentPrefix = random.chance(80) ? Register.None : random.pick([Register.FS, Register.GS]);
  } else if (kind === "es_rDI") {
    // Both operands of movs and cmps have the same address size.
    const narrow = n === 1 && iced.op0Kind === OpKind.MemorySegESI;
    const wide = n === 1 && iced.op0Kind === OpKind.MemorySegRSI;
    const short = narrow || (!wide && random.chance(20));
    iced.setOpKind(n, short ? OpKind.MemoryESEDI : OpKind.MemoryESRDI);
  } else if (kind === "seg_rBX_al") {
    iced.setOpKind(n, OpKind.Memory);
    iced.memoryBase = random.chance(80) ? Register.RBX : Register.EBX;
    iced.memoryIndex = Register.AL;
  } else fillRegister(iced, n, Register[kind.toUpperCase() as keyof typeof Register]);
}

function fillRegister(iced: Instruction, n: number, register: Register): void {
  iced.setOpKind(n, OpKind.Register);
  iced.setOpRegister(n, register);
}

function randomRegister(random: Random, bits: number): Register {
  const number = random.below(16);
  if (bits === 16) return Register.AX + number;
  if (bits === 32) return Register.EAX + number;
  if (bits === 64) return Register.RAX + number;
  return random.chance(25) ? Register.AH + random.below(4) : Register.AL + random.below(20);
}

const place: Halves = { low: 0, high: 0 };

/** Every shape that a ModRM byte with a SIB byte can say. */
function fillMemory(random: Random, iced: Instruction, n: number): void {
  iced.setOpKind(n, OpKind.Memory);
  if (random.chance(15)) iced.segmentPrefix = random.pick([Register.FS, Register.GS]);
  const narrow = random.chance(15);
  const register = () => (narrow ? Register.EAX : Register.RAX) + random.below(16);
  const shape = random.below(100);
  if (shape < 8) {
    fillAbsolute(random, iced, random.chance(30), narrow);
    return;
  }
  if (shape < 14) {
    iced.memoryBase = narrow ? Register.EIP : Register.RIP;
    chooseAddress(random, place, 16, true, true);
    iced.memoryDisplacement = BigInt(place.low);
    iced.memoryDisplSize = narrow ? 4 : 8;
    return;
  }
  const hasIndex = shape >= 55;
  if (!hasIndex || shape < 92) iced.memoryBase = register();
  if (hasIndex) {
    iced.memoryIndex = register();
    iced.memoryIndexScale = 1 << random.below(4);
  }
  const displacement = random.below(100);
  if (displacement < 40) {
    iced.memoryDisplacement = BigInt((random.word() << 24) >> 24);
    iced.memoryDisplSize = 1;
  } else if (displacement < 65) {
    const value = random.chance(50) ? random.word() : DATA + random.below(DATA_SIZE);
    iced.memoryDisplacement = BigInt(value);
    iced.memoryDisplSize = narrow ? 4 : 8;
  }
}

/** No register: 32 bits, sign-extended or, with the address-size prefix, not. */
function fillAbsolute(random: Random, iced: Instruction, high: boolean, narrow: boolean): void {
  chooseAddress(random, place, 16, true, true);
  let value = BigInt(place.low >>> 0);
  if (iced.segmentPrefix !== Register.None) value -= BigInt(DATA);
  if (high) value = BigInt(-0x7fff_0000 + random.below(0x7000_0000));
  iced.memoryDisplacement = narrow ? BigInt.asUintN(32, value) : BigInt.asIntN(32, value);
  iced.memoryDisplSize = narrow ? 4 : 8;
}

/** mov between the accumulator and an address of full width. */
function fillOffset(random: Random, iced: Instruction, n: number): void {
  iced.setOpKind(n, OpKind.Memory);
  const narrow = random.chance(20);
  chooseAddress(random, place, 16, narrow, true);
  if (random.chance(15)) iced.segmentPrefix = random.pick([Register.FS, Register.GS]);
  const value = (BigInt(place.high >>> 0) << 32n) | BigInt(place.low >>> 0);
  iced.memoryDisplacement = BigInt.asIntN(64, value);
  iced.memoryDisplSize = narrow ? 4 : 8;
}

const EDGE_IMMEDIATES = [0n, 1n, -1n, 2n, 0x7fn, -0x80n, 0x7fffn, -0x8000n, 0x7fff_ffffn, -0x8000_0000n];

function fillImmediate(random: Random, iced: Instruction, n: number, kind: string): void {
  const wide = (BigInt(random.word()) << 32n) | BigInt(random.word() >>> 0);
  const value = random.chance(40)
    ? random.pick(EDGE_IMMEDIATES)
    : random.chance(40)
      ? BigInt(random.below(64))
      : wide;
  const low = Number(BigInt.asIntN(32, value));
  switch (kind) {
    case "imm8": {
      const second = n > 0 && iced.opKind(n - 1) === OpKind.Immediate16; // enter
      iced.setOpKind(n, second ? OpKind.Immediate8_2nd : OpKind.Immediate8);
      if (second) iced.immediate8_2nd = low & 0xff;
      else iced.immediate8 = low & 0xff;
      return;
    }
    case "imm8_const_1":
      iced.setOpKind(n, OpKind.Immediate8);
      iced.immediate8 = 1;
      return;
    case "imm16":
      iced.setOpKind(n, OpKind.Immediate16);
      iced.immediate16 = low & 0xffff;
      return;
    case "imm32":
      iced.setOpKind(n, OpKind.Immediate32);
      iced.immediate32 = low >>> 0;
      return;
    case "imm64":
      iced.setOpKind(n, OpKind.Immediate64);
      iced.immediate64 = BigInt.asUintN(64, value);
      return;
    case "imm8sex16":
      iced.setOpKind(n, OpKind.Immediate8to16);
      iced.immediate8to16 = (low << 24) >> 24;
      return;
    case "imm8sex32":
      iced.setOpKind(n, OpKind.Immediate8to32);
      iced.immediate8to32 = (low << 24) >> 24;
      return;
    case "imm8sex64":
      iced.setOpKind(n, OpKind.Immediate8to64);
      iced.immediate8to64 = BigInt.asIntN(8, value);
      return;
    case "imm32sex64":
      iced.setOpKind(n, OpKind.Immediate32to64);
      iced.immediate32to64 = BigInt.asIntN(32, value);
      return;
    default:
      throw new Error(`no immediate for operand kind ${kind}`);
  }
}

/** From CODE; never into the instruction's own bytes, which are at most 15; another prefix moves the target by one. */
function branchDistance(random: Random, short: boolean): number {
  if (short) return random.chance(50) ? 16 + random.below(100) : -2 - random.below(110);
  const kind = random.below(100);
  if (kind < 45) return 16 + random.below(0x7c0);
  if (kind < 80) return -2 - random.below(0x7f0);
  if (kind < 90) return DATA - CODE + random.below(DATA_SIZE);
  return 0x2000_0000 + random.below(0x5fff_0000);
}

/** The instruction's bytes, sometimes with a prefix more than it needs; undefined if it cannot be encoded. */
function encode(random: Random, iced: Instruction): Uint8Array | undefined {
  try {
    encoder.encode(iced, BigInt(CODE));
  } catch {
    encoder.takeBuffer(); // high bytes beside a REX prefix, operands out of reach
    return undefined;
  }
  const bytes = encoder.takeBuffer();
  if (bytes.length > 14 || !random.chance(6)) return bytes;
  prefixed[0] = random.pick(PREFIXES);
  prefixed.set(bytes, 1);
  return prefixed.slice(0, bytes.length + 1);
}

// ---- Flags.

const ZEROS = Object.fromEntries(REGISTERS.map((name) => [name, 0n])) as Registers;

/** The flags that the manual leaves undefined, with `cl` as the count where that matters. */
export function undefinedFlags(instruction: FuzzInstruction, cl: number): number {
  const known = instruction.undefinedFlags[instruction.countInCl ? cl : 0]!;
  if (known !== UNKNOWN) return known;
  const registers = { ...ZEROS, rcx: BigInt(cl) };
  const program = { bytes: instruction.bytes, before: { registers, rflags: 0, memory: [] } };
  const { undefined: unknown } = flagEffect(program, false);
  instruction.undefinedFlags[instruction.countInCl ? cl : 0] = unknown;
  return unknown;
}
