// The bytes of a random instruction: every operand kind that forms.ts lets through, filled at random, and encoded by
// iced-x86. An attempt that cannot be encoded is undefined: the caller tries again.

import { Encoder, Instruction, OpKind, Register } from "iced-x86";
import { CODE, DATA, DATA_SIZE } from "../x86/cases-model.ts";
import { type Choice, chooseAddress } from "./address.ts";
import type { Form } from "./forms.ts";
import type { Halves } from "./halves.ts";
import type { Random } from "./random.ts";

const encoder = new Encoder(64);
const prefixed = new Uint8Array(15);

/** Prefixes that may stand in front of anything that allows them. */
const PREFIXES = [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf2, 0xf3];

/** One attempt at the bytes of a random instruction of the form, to stand at `ip`. */
export function build(random: Random, form: Form, ip: number): Uint8Array | undefined {
  const iced = new Instruction();
  fill(random, iced, form, ip);
  const bytes = encode(random, iced, ip);
  iced.free();
  return bytes;
}

function fill(random: Random, iced: Instruction, form: Form, ip: number): void {
  iced.code = form.code;
  const inMemory = random.chance(55);
  for (const [n, kind] of form.operands.entries())
    if (kind.startsWith("br64")) fillTarget(random, iced, n, ip, kind === "br64_1");
    else fillOperand(random, iced, n, kind, inMemory);
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
  else if (kind === "seg_rSI") {
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

function fillTarget(random: Random, iced: Instruction, n: number, ip: number, short: boolean): void {
  iced.setOpKind(n, OpKind.NearBranch64);
  iced.nearBranch64 = BigInt(ip + branchDistance(random, short));
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
const NEAR: Choice = { narrow: true, code: true, tame: false };

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
    chooseAddress(random, place, 16, NEAR);
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
  chooseAddress(random, place, 16, NEAR);
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
  chooseAddress(random, place, 16, { ...NEAR, narrow });
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

/** Never into the instruction's own bytes, which are at most 15; another prefix moves the target by one. */
function branchDistance(random: Random, short: boolean): number {
  if (short) return random.chance(50) ? 16 + random.below(100) : -2 - random.below(110);
  const kind = random.below(100);
  if (kind < 45) return 16 + random.below(0x7c0);
  if (kind < 80) return -2 - random.below(0x7f0);
  if (kind < 90) return DATA - CODE + random.below(DATA_SIZE);
  return 0x2000_0000 + random.below(0x5fff_0000);
}

/** The instruction's bytes, sometimes with a prefix more than it needs; undefined if it cannot be encoded. */
function encode(random: Random, iced: Instruction, ip: number): Uint8Array | undefined {
  try {
    encoder.encode(iced, BigInt(ip));
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
