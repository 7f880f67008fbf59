// The instruction set as the decoder knows it, form by form, and what of it can be executed.
//
// Found by decoding, not read from a list: every opcode of every map with every prefix that selects among
// instructions and a ModR/M byte of each kind. So it is what 64-bit mode on this decoder has, no more and no less;
// but x87, vectors, and what belongs to virtual machines, enclaves and the like are left out.

import {
  Code,
  CodeExt,
  CpuidFeature,
  Decoder,
  DecoderOptions,
  Instruction as IcedInstruction,
  Mnemonic,
} from "iced-x86";
import { addr } from "../base/addr.ts";
import { decode } from "./decode.ts";
import { definitionOf } from "./lift/table.ts";

export interface Form {
  /** Lower case. */
  readonly mnemonic: string;
  /** As manuals write it, without the prefixes that select operand and address size: `80 /0 ib`. */
  readonly opcode: string;
  /** CPUID features, as iced-x86 spells them, joined by `+`. */
  readonly feature: string;
  readonly privileged: boolean;
  /** It can be executed. */
  readonly lifted: boolean;
}

export interface InstructionSet {
  /** What 64-bit mode has: by mnemonic, then opcode. Forms that differ in sizes alone are one. */
  readonly forms: readonly Form[];
  /** What other modes have and 64-bit mode does not, in the same order. */
  readonly invalid: readonly Form[];
}

/** Features whose instructions have registers or modes that this machine has not. What is lifted of them is listed. */
const LEFT_OUT =
  /^(?:AES|AMX|AVX|CET_SS|D3NOW|F16C|FMA|FPU|FRED|FXSR|GFNI|INVEPT|INVVPID|KL|MMX|OSS|PADLOCK|PCLMUL|RMPQUERY|SEV|SGX|SHA|SKINIT|SMM|SMX|SSE|SSSE|SVM|TDX|TSE|VAES|VMX|XOP|XSAVE)/;
/** Where what 64-bit mode dropped comes from; not what single processors of old had to themselves. */
const OTHER_MODES = /^INTEL(?:8086|[123]86)$/;

/** Decodes half a million samples: takes a second or two. */
export function instructionSet(): InstructionSet {
  const forms = new Map<string, Form>();
  const valid = new Set<string>();
  for (const [code, bytes] of decodable()) {
    const form = { ...describe(code), lifted: isLifted(bytes) };
    valid.add(placeOf(code));
    if (form.lifted || !LEFT_OUT.test(form.feature)) join(forms, form);
  }
  const invalid = new Map<string, Form>();
  for (const code of allCodes()) {
    const info = CodeExt.opCode(code);
    const only = info.mode32 && !info.mode64;
    info.free();
    const form = { ...describe(code), lifted: false };
    if (only && OTHER_MODES.test(form.feature) && !valid.has(placeOf(code))) join(invalid, form);
  }
  return { forms: sorted(forms), invalid: sorted(invalid) };
}

/** Forms that differ in sizes alone count as lifted if all of them are. */
function join(forms: Map<string, Form>, form: Form): void {
  const key = `${form.mnemonic} ${form.opcode}`;
  const known = forms.get(key);
  forms.set(key, known === undefined ? form : { ...form, lifted: form.lifted && known.lifted });
}

function sorted(forms: ReadonlyMap<string, Form>): Form[] {
  const order = ({ mnemonic, opcode }: Form) => `${mnemonic} ${opcode.length < 10 ? 0 : 1}${opcode}`;
  return [...forms.values()].sort((a, b) => (order(a) < order(b) ? -1 : 1));
}

/** Everything of a form that its code says. */
function describe(code: Code): Omit<Form, "lifted"> {
  const info = CodeExt.opCode(code);
  const instruction = new IcedInstruction();
  instruction.code = code;
  const feature = [...instruction.cpuidFeatures()].map((each) => CpuidFeature[each]!).join("+");
  const privileged = instruction.isPrivileged;
  const mnemonic = Mnemonic[info.mnemonic]!.toLowerCase();
  const opcode = info.opCodeString
    .replace(/\b(?:[oa]\d\d|REX\.W|NP|NFx) |\.W[01G]\w*/g, "")
    .replace(/\+r[bwdo]/, "+r")
    .replace("!(11):rrr:bbb", "/r");
  instruction.free();
  info.free();
  return { mnemonic, opcode, feature, privileged };
}

/** Where in the opcode maps a code is, whatever its sizes. */
function placeOf(code: Code): string {
  const info = CodeExt.opCode(code);
  const place = `${info.mnemonic} ${info.table} ${info.opCode} ${info.groupIndex} ${info.mandatoryPrefix}`;
  info.free();
  return place;
}

function isLifted(bytes: Uint8Array): boolean {
  const decoded = decode(bytes, addr(0n));
  return decoded.kind === "instruction" && definitionOf(decoded.instruction) !== undefined;
}

function allCodes(): Code[] {
  return Object.values(Code).filter((value): value is Code => typeof value === "number");
}

/** Room for the longest sample: prefixes, opcode, ModR/M, displacement and immediates, all zero. */
const STRIDE = 24;

/** Each code that decoding yields, with bytes that yield it. */
function decodable(): Map<Code, Uint8Array> {
  const found = new Map<Code, Uint8Array>();
  const instruction = new IcedInstruction();
  for (const head of [...legacyHeads(), ...vexHeads()]) {
    const modRms = REGISTERS_TELL.has(head.slice(-2).join()) ? ALL_KINDS : KINDS;
    const samples = new Uint8Array(modRms.length * STRIDE);
    modRms.forEach((modRm, n) => {
      samples.set([...head, modRm], n * STRIDE);
    });
    const decoder = new Decoder(64, samples, DecoderOptions.None);
    for (let at = 0; at < samples.length; at += STRIDE) {
      decoder.position = at;
      decoder.decodeOut(instruction);
      const { code } = instruction;
      if (code !== Code.INVALID && !found.has(code))
        found.set(code, samples.slice(at, at + instruction.length));
    }
    decoder.free();
  }
  instruction.free();
  return found;
}

/** ModR/M bytes: every /digit with a register, with memory, and with memory by rip. */
const KINDS = [0xc0, 0x01, 0x05].flatMap((kind) => range(8).map((digit) => kind | (digit << 3)));
const ALL_KINDS = [...KINDS, ...range(64).map((rest) => 0xc0 | rest)];
/** Opcodes under which each register is an instruction of its own. */
const REGISTERS_TELL = new Set([0x01, 0x1e, 0xae].map((opcode) => [0x0f, opcode].join()));

function range(length: number): number[] {
  return Array.from({ length }, (_, n) => n);
}

function* legacyHeads(): Generator<number[]> {
  for (const address of [[], [0x67]])
    for (const selector of [[], [0x66], [0xf3], [0xf2], [0x66, 0xf2]])
      for (const rex of [[], [0x48]])
        for (const map of [[], [0x0f], [0x0f, 0x38], [0x0f, 0x3a]])
          for (const opcode of range(256)) yield [...address, ...selector, ...rex, ...map, opcode];
}

/** Of 128 bits: what works on general registers has that length. */
function* vexHeads(): Generator<number[]> {
  for (const map of [1, 2, 3])
    for (const w of [0, 0x80])
      for (const prefix of range(4))
        for (const opcode of range(256)) yield [0xc4, 0xe0 | map, w | 0x78 | prefix, opcode];
}
