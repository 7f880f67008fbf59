// Instructions that Keystone lacks, or gets wrong, encoded here: fixed bytes, or iced-x86's encoder by opcode.
//
// One table each. What is not in them goes to Keystone.

import { Code, Encoder, MemoryOperand as IcedMemory, Instruction, Register } from "iced-x86";
import type { Ask } from "./check.ts";
import { fail } from "./fault.ts";
import { isDefaultSegment, type MemoryOperand, type Operand, registerWidth } from "./operand.ts";

/** Instructions without operands. */
const FIXED: Readonly<Record<string, readonly number[]>> = {
  endbr64: [0xf3, 0x0f, 0x1e, 0xfa],
  endbr32: [0xf3, 0x0f, 0x1e, 0xfb],
  serialize: [0x0f, 0x01, 0xe8],
  setssbsy: [0xf3, 0x0f, 0x01, 0xe8],
  saveprevssp: [0xf3, 0x0f, 0x01, 0xea],
  wbnoinvd: [0xf3, 0x0f, 0x09],
  leavew: [0x66, 0xc9],
};

/** Instructions with operands, in AT&T order: `r64` a register of 8 bytes, `m` memory, `rm64` either. */
const CODES: readonly (readonly [mnemonic: string, operands: string, code: Code])[] = [
  ["nop", "r16", Code.Nop_rm16],
  ["nop", "r32", Code.Nop_rm32],
  ["nop", "r64", Code.Nop_rm64],
  ["nopw", "rm16", Code.Nop_rm16],
  ["nopl", "rm32", Code.Nop_rm32],
  ["nopq", "rm64", Code.Nop_rm64],
  ["ud0", "rm32 r32", Code.Ud0_r32_rm32],
  ["ud0", "rm64 r64", Code.Ud0_r64_rm64],
  ["ud1", "rm32 r32", Code.Ud1_r32_rm32],
  ["ud1l", "rm32 r32", Code.Ud1_r32_rm32],
  ["ud1", "rm64 r64", Code.Ud1_r64_rm64],
  ["ud1q", "rm64 r64", Code.Ud1_r64_rm64],
  ["movsxd", "rm32 r64", Code.Movsxd_r64_rm32],
  ["lar", "r64 r64", Code.Lar_r64_r64m16],
  ["lsl", "r64 r64", Code.Lsl_r64_r64m16],
  ["rdpid", "r64", Code.Rdpid_r64],
  ["rdsspd", "r32", Code.Rdsspd_r32],
  ["rdsspq", "r64", Code.Rdsspq_r64],
  ["incsspd", "r32", Code.Incsspd_r32],
  ["incsspq", "r64", Code.Incsspq_r64],
  ["rstorssp", "m", Code.Rstorssp_m64],
  ["clrssbsy", "m", Code.Clrssbsy_m64],
  ["wrssd", "r32 m", Code.Wrssd_m32_r32],
  ["wrssq", "r64 m", Code.Wrssq_m64_r64],
  ["wrussd", "r32 m", Code.Wrussd_m32_r32],
  ["wrussq", "r64 m", Code.Wrussq_m64_r64],
  ["cldemote", "m", Code.Cldemote_m8],
  ["movdiri", "r32 m", Code.Movdiri_m32_r32],
  ["movdiri", "r64 m", Code.Movdiri_m64_r64],
  ["movdir64b", "m r64", Code.Movdir64b_r64_m512],
  ["enqcmd", "m r64", Code.Enqcmd_r64_m512],
  ["enqcmds", "m r64", Code.Enqcmds_r64_m512],
  ["umonitor", "r64", Code.Umonitor_r64],
  ["umwait", "r32", Code.Umwait_r32],
  ["tpause", "r32", Code.Tpause_r32],
  ["ptwrite", "r32", Code.Ptwrite_rm32],
  ["ptwrite", "r64", Code.Ptwrite_rm64],
  ["ptwritel", "rm32", Code.Ptwrite_rm32],
  ["ptwriteq", "rm64", Code.Ptwrite_rm64],
];

const FORMS = new Map<string, (typeof CODES)[number][]>();
for (const entry of CODES) FORMS.set(entry[0], [...(FORMS.get(entry[0]) ?? []), entry]);

/** The bytes of `ask` if it is one of ours, else null: Keystone's. */
export function encodeForm({ mnemonic, operands }: Ask): Uint8Array | null {
  const fixed = operands.length === 0 ? FIXED[mnemonic] : undefined;
  if (fixed) return Uint8Array.from(fixed);
  for (const [, shape, code] of FORMS.get(mnemonic) ?? [])
    if (fits(shape.split(" "), operands)) return encodeCode(code, operands);
  return null;
}

function fits(shapes: readonly string[], operands: readonly Operand<bigint>[]): boolean {
  return shapes.length === operands.length && shapes.every((shape, i) => fitsOne(shape, operands[i]!));
}

function fitsOne(shape: string, operand: Operand<bigint>): boolean {
  const [, kind, bits] = /^(r|m|rm)(\d*)$/.exec(shape)!;
  if (operand.kind === "memory") return kind !== "r";
  return operand.kind === "register" && kind !== "m" && registerWidth(operand.name) === Number(bits) / 8;
}

function encodeCode(code: Code, operands: readonly Operand<bigint>[]): Uint8Array {
  const [first, second] = [...operands].reverse();
  const instruction = build(code, first!, second);
  const encoder = new Encoder(64);
  try {
    tryEncode(encoder, instruction);
    const bytes = encoder.takeBuffer();
    const offsets = encoder.getConstantOffsets();
    const memory = operands.find((operand) => operand.kind === "memory");
    // The encoder takes an rip-relative operand's target; sources write the distance.
    if (memory?.base === "rip")
      new DataView(bytes.buffer).setInt32(offsets.displacementOffset, Number(memory.displacement), true);
    offsets.free();
    return bytes;
  } finally {
    encoder.free();
    instruction.free();
  }
}

function tryEncode(encoder: Encoder, instruction: Instruction): void {
  try {
    encoder.encode(instruction, 0n);
  } catch (error) {
    fail(`not encodable: ${error instanceof Error ? error.message : error}`);
  }
}

/** Operands in Intel's order. */
function build(code: Code, first: Operand<bigint>, second: Operand<bigint> | undefined): Instruction {
  if (first.kind === "memory")
    return second?.kind === "register"
      ? Instruction.createMemReg(code, memoryOf(first), registerOf(second.name))
      : Instruction.createMem(code, memoryOf(first));
  const register = first.kind === "register" ? registerOf(first.name) : Register.None;
  if (second?.kind === "memory") return Instruction.createRegMem(code, register, memoryOf(second));
  if (second?.kind === "register") return Instruction.createRegReg(code, register, registerOf(second.name));
  return Instruction.createReg(code, register);
}

const REGISTERS = new Map(
  Object.entries(Register).flatMap(([name, number]) =>
    typeof number === "number" ? [[name.toLowerCase(), number] as const] : [],
  ),
);

function registerOf(name: string | null): Register {
  return name === null ? Register.None : (REGISTERS.get(name) ?? Register.None);
}

function memoryOf({ segment, base, index, scale, displacement }: MemoryOperand<bigint>): IcedMemory {
  const override = segment && !isDefaultSegment(segment, base) ? segment : null;
  const rip = base === "rip";
  const size = rip || (!base && !index) ? 8 : displacement === 0n ? 0 : 1;
  return new IcedMemory(
    registerOf(base),
    registerOf(index),
    scale,
    rip ? 0n : displacement,
    size,
    false,
    registerOf(override),
  );
}
