// AT&T operands: registers, `$` immediates, memory, and `*` for indirect branches.
//
// Says how an operand is written, not whether an instruction takes it. Refuses unknown registers and
// addresses that x86 cannot form.

import type { Expression } from "./expression.ts";
import { fail } from "./fault.ts";

export interface MemoryOperand<Offset> {
  readonly kind: "memory";
  /** Written segment register without `%`, or null. */
  readonly segment: string | null;
  readonly base: string | null;
  readonly index: string | null;
  readonly scale: 1 | 2 | 4 | 8;
  readonly displacement: Offset;
  readonly indirect: boolean;
}

/** `Offset` is what stands for the numbers in it: an Expression as parsed, a bigint once known. */
export type Operand<Offset> =
  | { readonly kind: "register"; readonly name: string; readonly indirect: boolean }
  | { readonly kind: "immediate"; readonly value: Offset }
  | MemoryOperand<Offset>;

const LEGACY = ["ax", "cx", "dx", "bx", "sp", "bp", "si", "di"];
const NUMBERED = [8, 9, 10, 11, 12, 13, 14, 15];
const GENERAL: readonly (readonly [number, readonly string[]])[] = [
  [8, [...LEGACY.map((name) => `r${name}`), ...NUMBERED.map((n) => `r${n}`), "rip"]],
  [4, [...LEGACY.map((name) => `e${name}`), ...NUMBERED.map((n) => `r${n}d`), "eip"]],
  [2, [...LEGACY, ...NUMBERED.map((n) => `r${n}w`)]],
  [
    1,
    [
      "al",
      "cl",
      "dl",
      "bl",
      "ah",
      "ch",
      "dh",
      "bh",
      "spl",
      "bpl",
      "sil",
      "dil",
      ...NUMBERED.map((n) => `r${n}b`),
    ],
  ],
];
const SEGMENTS = ["es", "cs", "ss", "ds", "fs", "gs"];

const WIDTHS = new Map(GENERAL.flatMap(([width, names]) => names.map((name) => [name, width] as const)));
const OTHERS = new Set([
  ...SEGMENTS,
  "st",
  ...[...Array(16).keys()].flatMap((n) => [`cr${n}`, `dr${n}`, `db${n}`, `xmm${n}`, `ymm${n}`]),
  ...[...Array(8).keys()].flatMap((n) => [`mm${n}`, `st(${n})`]),
]);

/** In bytes, of a general-purpose register; undefined for the others. */
export function registerWidth(name: string): number | undefined {
  return WIDTHS.get(name);
}

/** True for the byte registers that no instruction with a REX prefix can name. */
export function isHighByte(name: string): boolean {
  return /^[abcd]h$/.test(name);
}

function parseRegister(text: string): string {
  const name = text.trim().slice(1).trim().toLowerCase();
  if (!text.trim().startsWith("%") || !(WIDTHS.has(name) || OTHERS.has(name)))
    fail(`'${text}' is not a register`);
  return name;
}

/** The operand that `text` spells; `expression` reads the numbers in it. */
export function parseOperand(text: string, expression: (text: string) => Expression): Operand<Expression> {
  if (text.startsWith("*")) {
    const inner = parseOperand(text.slice(1).trim(), expression);
    return inner.kind === "immediate" ? fail("'*' wants a register or memory") : { ...inner, indirect: true };
  }
  if (text.startsWith("$")) return { kind: "immediate", value: expression(text.slice(1)) };
  if (/^\(\s*%dx\s*\)$/.test(text)) return { kind: "register", name: "dx", indirect: false }; // ports: in and out
  const segmented = /^%\s*(\w+)\s*:(.*)$/s.exec(text);
  if (segmented) {
    const segment = segmented[1]!.toLowerCase();
    if (!SEGMENTS.includes(segment)) fail(`'%${segment}' is not a segment register`);
    return parseMemory(segmented[2]!.trim(), segment, expression);
  }
  if (text.startsWith("%")) return { kind: "register", name: parseRegister(text), indirect: false };
  return parseMemory(text, null, expression);
}

function parseMemory(
  text: string,
  segment: string | null,
  expression: (text: string) => Expression,
): MemoryOperand<Expression> {
  // The address in parentheses is the last pair that opens with a register or a comma; others belong to the number.
  const address = /\(\s*([%,][^()]*)\)$/.exec(text);
  const number = (address ? text.slice(0, address.index) : text).trim();
  if (!address && number === "") fail("expected an operand");
  const [base = "", index = "", scale = "1", ...rest] = (address?.[1] ?? "")
    .split(",")
    .map((part) => part.trim());
  if (rest.length > 0) fail(`too many parts in the address '${text}'`);
  const operand: MemoryOperand<Expression> = {
    kind: "memory",
    segment,
    base: base === "" ? null : parseRegister(base),
    index: index === "" || index === "%riz" ? null : parseRegister(index),
    scale: parseScale(scale, expression),
    displacement: number === "" ? { kind: "number", value: 0n } : expression(number),
    indirect: false,
  };
  checkAddress(operand, text);
  return operand;
}

function parseScale(text: string, expression: (text: string) => Expression): 1 | 2 | 4 | 8 {
  const scale = expression(text === "" ? "1" : text);
  const value = scale.kind === "number" ? Number(scale.value) : 0;
  return value === 1 || value === 2 || value === 4 || value === 8
    ? value
    : fail(`scale '${text}' is not 1, 2, 4 or 8`);
}

function checkAddress({ base, index }: MemoryOperand<Expression>, text: string): void {
  const widths = [base, index].filter((name) => name !== null).map((name) => WIDTHS.get(name));
  if (widths.some((width) => width !== 8 && width !== 4) || (widths.length === 2 && widths[0] !== widths[1]))
    fail(`'${text}' is not an address in 64-bit code`);
  if (index && /^[re](sp|ip)$/.test(index)) fail(`%${index} cannot be an index`);
  if (base && /^[re]ip$/.test(base) && index) fail(`%${base} takes no index`);
}

/** A segment register that changes nothing for this base: `%ss` with the stack's registers, `%ds` else. */
export function isDefaultSegment(segment: string, base: string | null): boolean {
  return segment === (base && /^[re](sp|bp)$/.test(base) ? "ss" : "ds");
}
