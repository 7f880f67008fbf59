// The text of a case line, read and written (the format: test/cases/README.md).
//
// Refuses, with file and line, what is not exactly that: unknown names, values that do not fit,
// memory outside the data window. Writes right-hand sides only; left sides are their author's.

import { parseHexBytes } from "../../src/base/bytes.ts";
import type { After, Before, Case, Fault, FlagName, RegisterName, Registers, Word } from "./cases-model.ts";
import { bytesOf, CODE, DATA, DATA_SIZE, FAULTS, FILL, FLAG_NAMES, FLAGS, REGISTERS } from "./cases-model.ts";

/** What a register holds where a case says nothing: not canonical, and another value in each. */
const UNNAMED = 0x5a5a_5a5a_5a5a_5a50n;

/** An unreadable case line: `alu.case:12: ...`. */
export class CaseError extends Error {
  override readonly name = "CaseError";
}

interface Side {
  readonly registers: Map<RegisterName, bigint>;
  readonly flags: Map<FlagName, string>;
  readonly memory: Word[];
  rip: string | null;
  fault: Fault | null;
}

/** One line as a case; null for blank lines and those that start with `#`. Throws CaseError. */
export function parseCase(source: string, file: string, line: number): Case | null {
  if (/^\s*(#|$)/.test(source)) return null;
  try {
    const { head, right } = splitLine(source);
    const [hex, text, left, ...rest] = head.split("|").map((part) => part.trim());
    if (!hex || !text || left === undefined || rest.length > 0)
      throw new SyntaxError("a case is: bytes | text | before => after ; comment");
    const bytes = parseHexBytes(hex);
    const before = beforeOf(parseSide(left));
    const after = right === null ? null : afterOf(parseSide(right), before, bytes.length);
    return { name: `${file}:${line} ${text}`, file, line, text, bytes, before, after };
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
    throw new CaseError(`${file}:${line}: ${error.message}`);
  }
}

/** The line with its right-hand side, if any, replaced by what `after` says changed. */
export function withRightSide(source: string, theCase: Case, after: After, written: number): string {
  const { head, comment } = splitLine(source);
  const parts = [
    head.trimEnd(),
    "=>",
    formatAfter(theCase, after, written),
    comment === null ? "" : `; ${comment}`,
  ];
  return parts.filter((part) => part !== "").join(" ");
}

/** `before => after ; comment` taken apart; the text between the bars may hold semicolons of its own. */
function splitLine(source: string): { head: string; right: string | null; comment: string | null } {
  const state = source.lastIndexOf("|") + 1;
  const semicolon = source.indexOf(";", state);
  const end = semicolon < 0 ? source.length : semicolon;
  const comment = semicolon < 0 ? null : source.slice(semicolon + 1).trim();
  const arrow = source.slice(0, end).indexOf("=>", state);
  if (arrow < 0) return { head: source.slice(0, end), right: null, comment };
  return { head: source.slice(0, arrow), right: source.slice(arrow + 2, end), comment };
}

function parseSide(text: string): Side {
  const side: Side = { registers: new Map(), flags: new Map(), memory: [], rip: null, fault: null };
  for (const item of text.split(/\s+/).filter((part) => part !== "")) {
    const [, place, value] = /^([^=]+)=(.+)$/.exec(item) ?? syntax(`'${item}' is not name=value`);
    const register = REGISTERS.find((name) => name === place);
    const flag = FLAG_NAMES.find((name) => name === place);
    if (register !== undefined) side.registers.set(register, parseValue(value!, 64));
    else if (flag !== undefined) side.flags.set(flag, value!);
    else if (place === "rip") side.rip = value!;
    else if (place === "fault") side.fault = parseFault(value!);
    else side.memory.push(parseWord(place!, value!));
  }
  return side;
}

function beforeOf(side: Side): Before {
  if (side.rip !== null || side.fault !== null) syntax("rip and fault belong to the right-hand side");
  const registers = Object.fromEntries(
    REGISTERS.map((name, number) => [name, side.registers.get(name) ?? unnamed(name, number)]),
  ) as Record<RegisterName, bigint>;
  let rflags = 0;
  for (const [name, value] of side.flags) rflags |= parseFlag(name, value);
  return { registers, rflags, memory: side.memory };
}

function afterOf(side: Side, before: Before, length: number): After {
  const registers: Registers = { ...before.registers, ...Object.fromEntries(side.registers) };
  let { rflags } = before;
  let undefinedFlags = 0;
  for (const [name, value] of side.flags) {
    if (value === "?") undefinedFlags |= FLAGS[name];
    else rflags = (rflags & ~FLAGS[name]) | parseFlag(name, value);
  }
  const rip = side.rip === null ? BigInt(CODE + (side.fault === null ? length : 0)) : parseRip(side.rip);
  return { registers, rflags, undefinedFlags, memory: side.memory, rip, fault: side.fault };
}

function unnamed(name: RegisterName, number: number): bigint {
  return name === "rsp" ? BigInt(DATA + DATA_SIZE / 2) : UNNAMED + BigInt(number);
}

function parseFlag(name: FlagName, value: string): number {
  if (value !== "0" && value !== "1") syntax(`${name} is 0 or 1, not '${value}'`);
  return value === "1" ? FLAGS[name] : 0;
}

function parseRip(text: string): bigint {
  return /^[+-]/.test(text) ? parseValue(`code${text}`, 64) : parseValue(text, 64);
}

function parseWord(place: string, text: string): Word {
  const [, where] = /^\[(.+)\]$/.exec(place) ?? syntax(`'${place}' is no register, flag or [data+N]`);
  const [, value, digits] =
    /^(.+):([1248])$/.exec(text) ?? syntax(`'${text}' has no size: write value:1, :2, :4 or :8`);
  const at = Number(parseValue(where!, 64));
  const size = Number(digits) as Word["size"];
  if (at < DATA || at + size > DATA + DATA_SIZE) syntax(`[${where}] is outside the data window`);
  return { at, size, value: parseValue(value!, 8 * size) };
}

function parseFault(text: string): Fault {
  const [, vector, , where, how] =
    /^(#[A-Z]{2})(\((.+),(\w+)\))?$/.exec(text) ?? syntax(`'${text}' is no fault`);
  const name = Object.values(FAULTS).find((known) => known === vector) ?? syntax(`'${vector}' is no fault`);
  if ((name === "#PF") !== (where !== undefined)) syntax(`'${text}': #PF alone has (address,access)`);
  const access = (["read", "write", "fetch"] as const).find((known) => known === how) ?? null;
  if (where !== undefined && access === null) syntax(`'${how}' is not read, write or fetch`);
  return { name, address: where === undefined ? null : parseValue(where, 64), access };
}

/** `-1`, `0x12`, `12`, `data`, `data+0x10`, `code-2`: unsigned in `bits` bits. */
function parseValue(text: string, bits: number): bigint {
  const [, base, sign, digits] =
    /^(data|code|)(?:([+-]|)(0x[0-9a-f]+|\d+))?$/.exec(text) ?? syntax(`'${text}' is not a value`);
  if (text === "" || (base !== "" && digits !== undefined && sign === "")) syntax(`'${text}' is not a value`);
  const start = base === "data" ? DATA : base === "code" ? CODE : 0;
  const magnitude = BigInt(digits ?? 0);
  const value = BigInt(start) + (sign === "-" ? -magnitude : magnitude);
  if (value >= 1n << BigInt(bits) || value < -(1n << BigInt(bits - 1)))
    syntax(`${text} does not fit ${bits} bits`);
  return BigInt.asUintN(bits, value);
}

function syntax(what: string): never {
  throw new SyntaxError(what);
}

/**
 * The right-hand side: changed registers, flags in `written` (the instructions' own) or changed, `?` for
 * undefined ones, changed memory, rip unless it is where it is expected, the fault.
 */
export function formatAfter(
  { bytes, before }: Pick<Case, "bytes" | "before">,
  after: After,
  written: number,
): string {
  const items: string[] = [];
  for (const name of REGISTERS)
    if (after.registers[name] !== before.registers[name])
      items.push(`${name}=${formatValue(after.registers[name])}`);
  for (const { at, size, value } of after.memory)
    items.push(
      `[${formatValue(BigInt(at))}]=${size === 8 ? formatValue(value) : formatNumber(value)}:${size}`,
    );
  for (const name of FLAG_NAMES) {
    const bit = FLAGS[name];
    if (after.undefinedFlags & bit) items.push(`${name}=?`);
    else if ((written | (after.rflags ^ before.rflags)) & bit)
      items.push(`${name}=${after.rflags & bit ? 1 : 0}`);
  }
  const expected = BigInt(CODE + (after.fault === null ? bytes.length : 0));
  if (after.rip !== expected)
    items.push(
      `rip=${formatValue(after.rip)
        .replace(/^code$/, "code+0")
        .replace(/^code/, "")}`,
    );
  if (after.fault !== null) items.push(`fault=${formatFault(after.fault)}`);
  return items.join(" ");
}

export function formatFault({ name, address, access }: Fault): string {
  return address === null ? name : `${name}(${formatValue(address)},${access})`;
}

/** Near the window or the code page as `data+0x10`, otherwise as a number. */
export function formatValue(value: bigint): string {
  for (const [name, base, low, high] of [
    ["data", DATA, DATA - 0x100, DATA + DATA_SIZE + 0x100],
    ["code", CODE, CODE - 0x800, CODE + 0x800],
  ] as const) {
    if (value < BigInt(low) || value > BigInt(high)) continue;
    const distance = value - BigInt(base);
    return distance === 0n
      ? name
      : `${name}${distance < 0n ? "-" : "+"}${formatNumber(distance < 0n ? -distance : distance)}`;
  }
  return formatNumber(value);
}

function formatNumber(value: bigint): string {
  return value < 10n ? value.toString() : `0x${value.toString(16)}`;
}

/**
 * Changed bytes as words: a word the case named itself comes back whole; the rest are cut into the
 * largest words that fit, bytes that happen to be unchanged in between filled in.
 */
export function wordsOf(before: Before, changed: ReadonlyMap<number, number>): Word[] {
  const named = bytesOf(before.memory);
  const byte = (offset: number) => changed.get(offset) ?? named.get(offset) ?? FILL;
  const word = (offset: number, size: Word["size"]): Word => {
    let value = 0n;
    for (let i = size - 1; i >= 0; i--) value = (value << 8n) | BigInt(byte(offset + i));
    return { at: DATA + offset, size, value };
  };
  const words: Word[] = [];
  const left = new Set(changed.keys());
  const take = (offset: number, size: Word["size"]) => {
    words.push(word(offset, size));
    for (let i = 0; i < size; i++) left.delete(offset + i);
  };
  for (const { at, size } of before.memory)
    if (Array.from({ length: size }, (_, i) => at - DATA + i).some((offset) => left.has(offset)))
      take(at - DATA, size);
  while (left.size > 0) {
    const start = Math.min(...left);
    let end = start + 1;
    for (const offset of [...left].sort((a, b) => a - b))
      if (offset > start && offset < end + GAP) end = offset + 1;
    take(start, ([8, 4, 2, 1] as const).find((size) => start + size <= end) ?? 1);
  }
  return words.sort((a, b) => a.at - b.at);
}

/** Changed bytes this close belong to one store. */
const GAP = 4;
