// Whether bytes say what was asked: decoded once more, by iced-x86, and compared part by part.
//
// An encoding passes when it is one instruction of the asked name, with the asked registers, numbers,
// addresses and operand size. Different encodings of the same instruction pass alike.

import {
  Decoder,
  Formatter,
  FormatterSyntax,
  type Instruction,
  MemorySizeExt,
  Mnemonic,
  OpKind,
  Register,
} from "iced-x86";
import { hexBytes } from "../../base/bytes.ts";
import { fail } from "./fault.ts";
import {
  COMMUTES,
  hasImpliedOperands,
  intelNames,
  SUFFIXES,
  TAKES_NO_SUFFIX,
  TAKES_WORDS,
} from "./mnemonic.ts";
import { isDefaultSegment, type MemoryOperand, type Operand } from "./operand.ts";

/** One instruction to encode, all numbers known. */
export interface Ask {
  readonly mnemonic: string;
  readonly operands: readonly Operand<bigint>[];
}

/** Where the numbers of an encoding are, in bytes; size 0 for none. */
export interface Encoding {
  readonly bytes: Uint8Array;
  readonly displacement: { readonly offset: number; readonly size: number };
  readonly immediate: { readonly offset: number; readonly size: number; readonly signExtended: boolean };
}

/** The encoding that `bytes` are of `ask`. Throws Fault when they are anything else. */
export function checkEncoding(ask: Ask, bytes: Uint8Array): Encoding {
  const decoder = new Decoder(64, bytes, 0);
  const instruction = decoder.decode();
  const offsets = decoder.getConstantOffsets(instruction);
  try {
    const wrong = difference(ask, instruction, bytes.length);
    if (wrong) fail(`${wrong}: the bytes ${hexBytes(bytes)} are ${describe(instruction)}`);
    return {
      bytes,
      displacement: { offset: offsets.displacementOffset, size: offsets.displacementSize },
      immediate: {
        offset: offsets.immediateOffset,
        size: offsets.immediateSize,
        signExtended: isSignExtended(instruction),
      },
    };
  } finally {
    offsets.free();
    instruction.free();
    decoder.free();
  }
}

/** Refuses bytes that are not one instruction: a prefix that it may not have, such as lock on a register. */
export function checkPrefixed(bytes: Uint8Array): void {
  const decoder = new Decoder(64, bytes, 0);
  const instruction = decoder.decode();
  const whole = !instruction.isInvalid && instruction.length === bytes.length;
  instruction.free();
  decoder.free();
  if (!whole) fail("this instruction may not have this prefix");
}

function describe(instruction: Instruction): string {
  const formatter = new Formatter(FormatterSyntax.Gas);
  const text = formatter.format(instruction);
  formatter.free();
  return text;
}

function isSignExtended(instruction: Instruction): boolean {
  for (let i = 0; i < instruction.opCount; i++)
    if (instruction.opKind(i) === OpKind.Immediate32to64) return true;
  return false;
}

/** What the instruction has that was not asked for, or null. */
function difference(ask: Ask, instruction: Instruction, length: number): string | null {
  if (instruction.isInvalid) return "not encodable";
  if (instruction.length !== length) return "more than one instruction";
  const name = Mnemonic[instruction.mnemonic]!.toLowerCase();
  const match = [...intelNames(ask.mnemonic)].find((spelling) => spelling.name === name);
  if (isNop(ask, name)) return null;
  if (!match) return "another instruction was encoded";
  if (match.suffix !== "" && TAKES_NO_SUFFIX.has(name)) return `'${match.name}' takes no suffix`;
  const decoded = explicitOperands(instruction, length);
  if (!sameOperands(ask.operands, decoded, name)) return "operands do not match";
  const width = SUFFIXES[match.suffix];
  const memory = ask.operands.some((operand) => operand.kind === "memory");
  const far = ask.mnemonic.startsWith("l") && (name === "call" || name === "jmp");
  if (
    width &&
    memory &&
    !far &&
    !/^(nop|lea)$/.test(name) &&
    MemorySizeExt.size(instruction.memorySize) !== width
  )
    return `operand size is not that of '${ask.mnemonic}'`;
  return null;
}

/** `xchg %ax, %ax` is a NOP. */
function isNop({ mnemonic, operands: [a, b] }: Ask, name: string): boolean {
  return (
    name === "nop" &&
    mnemonic.startsWith("xchg") &&
    a?.kind === "register" &&
    b?.kind === "register" &&
    a.name === b.name
  );
}

interface Decoded {
  readonly operand: Operand<bigint>;
  /** Of an immediate, in bytes: numbers are equal modulo this size. */
  readonly width: number;
}

const WIDTH_OF_IMMEDIATE = new Map<OpKind, number>([
  [OpKind.Immediate8, 1],
  [OpKind.Immediate8_2nd, 1],
  [OpKind.Immediate16, 2],
  [OpKind.Immediate32, 4],
  [OpKind.Immediate64, 8],
  [OpKind.Immediate8to16, 2],
  [OpKind.Immediate8to32, 4],
  [OpKind.Immediate8to64, 8],
  [OpKind.Immediate32to64, 8],
]);

/** In AT&T's order. */
function explicitOperands(instruction: Instruction, length: number): Decoded[] {
  const decoded: Decoded[] = [];
  for (let i = 0; i < instruction.opCount; i++) {
    const kind = instruction.opKind(i);
    const width = WIDTH_OF_IMMEDIATE.get(kind);
    if (width) decoded.push({ operand: { kind: "immediate", value: instruction.immediate(i) }, width });
    else if (kind === OpKind.Register)
      decoded.push({
        operand: { kind: "register", name: registerName(instruction.opRegister(i)), indirect: false },
        width: 0,
      });
    else decoded.push({ operand: memoryOf(instruction, kind, length), width: 0 });
  }
  return instruction.mnemonic === Mnemonic.Enter ? decoded : decoded.reverse();
}

/** As AT&T spells it; iced-x86 says R8L where others say r8b. */
function registerName(register: Register): string {
  return Register[register]!.toLowerCase()
    .replace(/^(r\d+)l$/, "$1b")
    .replace(/^st(\d)$/, "st($1)");
}

function memoryOf(instruction: Instruction, kind: OpKind, length: number): MemoryOperand<bigint> {
  const register = (number: Register): string | null =>
    number === Register.None ? null : registerName(number);
  const string = /^Memory(?:Seg|ES)([RE]?[SD]I)$/.exec(OpKind[kind]!)?.[1];
  const base = string ? string.toLowerCase() : register(instruction.memoryBase);
  const rip = base === "rip" || base === "eip";
  return {
    kind: "memory",
    segment: OpKind[kind]!.startsWith("MemoryES") ? "es" : register(instruction.segmentPrefix),
    base,
    index: string ? null : register(instruction.memoryIndex),
    scale: (string ? 1 : instruction.memoryIndexScale) as 1 | 2 | 4 | 8,
    displacement: string
      ? 0n
      : BigInt.asIntN(64, instruction.memoryDisplacement) - (rip ? BigInt(length) : 0n),
    indirect: false,
  };
}

function sameOperands(asked: readonly Operand<bigint>[], decoded: readonly Decoded[], name: string): boolean {
  const all = (list: readonly Operand<bigint>[]) =>
    list.length === decoded.length && list.every((operand, i) => sameOperand(operand, decoded[i]!, name));
  if (all(asked) || (COMMUTES.has(name) && all([...asked].reverse()))) return true;
  if (!hasImpliedOperands(name)) return false;
  let at = 0;
  return asked.every((operand) => {
    while (at < decoded.length && !sameOperand(operand, decoded[at]!, name)) at++;
    return at++ < decoded.length;
  });
}

function sameOperand(asked: Operand<bigint>, { operand, width }: Decoded, name: string): boolean {
  if (asked.kind === "register") {
    const register = asked.name.replace(/^db/, "dr");
    const names = TAKES_WORDS.has(name)
      ? [register, `e${register}`, register.replace(/w$/, "d")]
      : [register];
    return operand.kind === "register" && names.includes(operand.name);
  }
  if (asked.kind === "immediate") {
    if (operand.kind !== "immediate") return false;
    const bits = 8 * width;
    const fits =
      width === 8 || (asked.value >= -(2n ** BigInt(bits - 1)) && asked.value < 2n ** BigInt(bits));
    return fits && BigInt.asUintN(bits, asked.value) === BigInt.asUintN(bits, operand.value);
  }
  if (operand.kind !== "memory") return false;
  const bits = /^e|d$/.test(asked.base ?? asked.index ?? "") ? 32 : 64;
  const written = asked.segment && !isDefaultSegment(asked.segment, asked.base) ? asked.segment : null;
  const segment =
    operand.segment && !isDefaultSegment(operand.segment, operand.base) ? operand.segment : null;
  return (
    (written === segment || (written === null && segment === "es" && /di$/.test(operand.base ?? ""))) &&
    asked.base === operand.base &&
    asked.index === operand.index &&
    (asked.index === null || asked.scale === operand.scale) &&
    BigInt.asIntN(bits, asked.displacement) === BigInt.asIntN(bits, operand.displacement)
  );
}
