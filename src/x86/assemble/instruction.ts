// One instruction statement into a section: prefixes, branches, and fields that wait for a symbol.
//
// A symbol in an operand is encoded as a placeholder of the field's full width, found again in the bytes,
// and left to a fixup; so no encoding is ever chosen by an address that may still move.

import type { RelocationType } from "../object.ts";
import { checkPrefixed, type Encoding } from "./check.ts";
import type { InstructionEncoder } from "./encode.ts";
import { type Expression, tryAbsolute } from "./expression.ts";
import { Fault, fail, type Statement } from "./fault.ts";
import { CONDITION_NUMBERS, PREFIXES } from "./mnemonic.ts";
import { type Operand, parseOperand } from "./operand.ts";
import { type BranchForm, distanceNow, type Fixup, type SectionBuilder } from "./section.ts";
import { splitCommas } from "./source.ts";

/** Encodes the instruction of `statement` at the end of `section`; `expression` reads the numbers in it. Throws Fault. */
export function emitInstruction(
  section: SectionBuilder,
  statement: Statement,
  expression: (text: string) => Expression,
  encoder: InstructionEncoder,
): void {
  const { prefixes, mnemonic, rest } = splitPrefixes(statement.text);
  if (mnemonic === "") {
    section.emit(prefixes);
    return;
  }
  const form = branchForm(mnemonic);
  if (form && !/^[*%]|\(\s*%/.test(rest)) {
    const target = branchTarget(rest, expression); // before the prefixes: `.` is the instruction's start
    section.emit(prefixes);
    emitBranch(section, form, target, statement);
    return;
  }
  const operands = splitCommas(rest).map((text) => parseOperand(text, expression));
  if (form && operands.some((operand) => operand.kind !== "immediate" && !operand.indirect))
    fail(`an indirect ${mnemonic} is written with '*'`);
  const { encoding, symbols } = encodeSymbolic(mnemonic, operands, encoder);
  const bytes = withPrefixes(prefixes, encoding.bytes).slice();
  const shift = bytes.length - encoding.bytes.length;
  const fixups = symbols.map((symbol) => fixupFor(symbol, encoding, shift, bytes, statement));
  section.emit(bytes, fixups);
}

function splitPrefixes(text: string): { prefixes: number[]; mnemonic: string; rest: string } {
  const prefixes: number[] = [];
  let rest = text;
  for (;;) {
    const word = /^([\w.]+)\s*/.exec(rest) ?? fail("expected an instruction");
    const name = word[1]!.toLowerCase();
    const after = rest.slice(word[0].length);
    const prefix = PREFIXES[name];
    if (prefix === undefined) return { prefixes, mnemonic: name, rest: after };
    prefixes.push(prefix);
    rest = after;
    if (rest === "") return { prefixes, mnemonic: "", rest };
  }
}

/** Rank of each prefix byte in GNU as's order: segment, address size, operand size, repeat, lock. */
const PREFIX_RANK = new Map(
  [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x67, 0x66, 0xf2, 0xf3, 0xf0].map((byte, rank) => [byte, rank]),
);

function withPrefixes(prefixes: readonly number[], encoded: Uint8Array): Uint8Array {
  if (prefixes.length === 0) return encoded;
  const own = encoded.findIndex((byte) => !PREFIX_RANK.has(byte));
  if (encoded.subarray(0, own).some((byte) => prefixes.includes(byte)))
    fail("this instruction has this prefix already");
  const all = [...prefixes, ...encoded.subarray(0, own)].sort(
    (a, b) => PREFIX_RANK.get(a)! - PREFIX_RANK.get(b)!,
  );
  const bytes = Uint8Array.from([...all, ...encoded.subarray(own)]);
  checkPrefixed(bytes);
  return bytes;
}

const LOOPS: Readonly<Record<string, readonly number[]>> = {
  loopne: [0xe0],
  loopnz: [0xe0],
  loope: [0xe1],
  loopz: [0xe1],
  loop: [0xe2],
  jecxz: [0x67, 0xe3],
  jrcxz: [0xe3],
};

function branchForm(mnemonic: string): BranchForm | null {
  if (mnemonic === "call" || mnemonic === "callq") return { short: null, near: [0xe8] };
  if (mnemonic === "jmp" || mnemonic === "jmpq") return { short: [0xeb], near: [0xe9] };
  if (mnemonic === "xbegin") return { short: null, near: [0xc7, 0xf8] };
  const loop = LOOPS[mnemonic];
  if (loop) return { short: loop, near: null };
  const condition = CONDITION_NUMBERS.get(/^j(\w+)$/.exec(mnemonic)?.[1] ?? "");
  return condition === undefined ? null : { short: [0x70 + condition], near: [0x0f, 0x80 + condition] };
}

function branchTarget(text: string, expression: (text: string) => Expression): Expression {
  const target = expression(text.trim().replace(/@PLT$/i, ""));
  return target.kind === "number" ? fail("a branch wants a label, not a number") : target;
}

/** Only a branch with two forms stays open; the others have their size. */
function emitBranch(
  section: SectionBuilder,
  form: BranchForm,
  target: Expression,
  statement: Statement,
): void {
  if (form.short && form.near) {
    section.append({ kind: "branch", form, target, near: false, statement });
    return;
  }
  const size = form.near ? 4 : 1;
  const opcode = form.near ?? form.short!;
  const fixup: Fixup = {
    offset: opcode.length,
    size,
    type: "R_X86_64_PLT32",
    toEnd: size,
    expression: target,
    statement,
  };
  section.emit([...opcode, ...new Array<number>(size).fill(0)], [fixup]);
}

type Slot = "displacement" | "immediate";

interface Symbolic {
  readonly encoding: Encoding;
  readonly symbols: readonly {
    readonly place: Slot;
    readonly value: Expression;
    readonly ripRelative: boolean;
    readonly narrow: boolean;
  }[];
}

/** Numbers that no encoding shortens, by field width; displacements and immediates take different ones. */
const PLACEHOLDERS: Record<Slot, Readonly<Record<number, bigint>>> = {
  displacement: { 4: 0x7a5a3c1en, 8: 0x7a5a3c1e_96b4d2f0n },
  immediate: { 1: 0x5bn, 2: 0x5b3dn, 4: 0x5b3d1f79n, 8: 0x5b3d1f79_e8c6a4b2n },
};

function encodeSymbolic(
  mnemonic: string,
  operands: readonly Operand<Expression>[],
  encoder: InstructionEncoder,
): Symbolic {
  const symbols: Symbolic["symbols"][number][] = [];
  const wide = mnemonic.startsWith("movabs");
  const known = (
    place: Slot,
    value: Expression,
    width: number,
    ripRelative = false,
    narrow = false,
  ): bigint => {
    const number = tryAbsolute(value, distanceNow);
    if (number !== null) return number;
    symbols.push({ place, value, ripRelative, narrow });
    return PLACEHOLDERS[place][width]!;
  };
  let first: Fault | null = null;
  // The width of an immediate's field is the instruction's to say: the widest that encodes is it.
  for (const width of wide ? [8] : [4, 2, 1]) {
    symbols.length = 0;
    const numbers = operands.map((operand): Operand<bigint> => {
      if (operand.kind === "immediate")
        return { kind: "immediate", value: known("immediate", operand.value, width) };
      if (operand.kind === "register") return operand;
      const address = operand.base ?? operand.index;
      const narrow = address !== null && /^e|d$/.test(address);
      return {
        ...operand,
        displacement: known("displacement", operand.displacement, wide ? 8 : 4, address === "rip", narrow),
      };
    });
    try {
      return { encoding: encoder.encode({ mnemonic, operands: numbers }), symbols };
    } catch (error) {
      if (!(error instanceof Fault)) throw error;
      first ??= error;
      if (!symbols.some(({ place }) => place === "immediate")) throw first;
    }
  }
  throw first ?? new Fault("not encodable");
}

function fixupFor(
  { place, value, ripRelative, narrow }: Symbolic["symbols"][number],
  encoding: Encoding,
  shift: number,
  bytes: Uint8Array,
  statement: Statement,
): Fixup {
  const { offset, size } = encoding[place];
  if (size !== 1 && size !== 2 && size !== 4 && size !== 8)
    return fail("this operand has no field for an address");
  const at = offset + shift;
  const placeholder = PLACEHOLDERS[place][size] ?? fail("this operand has no field for an address");
  for (let i = 0; i < size; i++) {
    if (BigInt(bytes[at + i]!) !== ((placeholder >> BigInt(8 * i)) & 0xffn))
      fail("the address did not arrive in its field");
    bytes[at + i] = 0;
  }
  const signed = place === "displacement" ? !narrow : encoding.immediate.signExtended;
  const types: Record<number, RelocationType | undefined> = {
    4: signed ? "R_X86_64_32S" : "R_X86_64_32",
    8: "R_X86_64_64",
  };
  return {
    offset: at,
    size,
    type: ripRelative ? "R_X86_64_PC32" : (types[size] ?? null),
    toEnd: ripRelative ? bytes.length - at : null,
    expression: value,
    statement,
  };
}
