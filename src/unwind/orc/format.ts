// ORC on disk: .orc_unwind_ip has one 32-bit self-relative address for each 6-byte rule of .orc_unwind.
//
// Two layouts: Linux 6.1's, and the later one, which an .orc_header goes with. Refuses sections that do not fit together,
// bits and numbers that mean nothing, and addresses outside the text. Entries come and go in the file's order.
// Bit by bit: arch/x86/include/asm/orc_types.h of a kernel.

import type { Addr } from "../../base/addr.ts";
import { hex } from "../../base/addr.ts";
import { hexBytes } from "../../base/bytes.ts";
import { bug, refuse } from "../../base/refuse.ts";
import type { Extent } from "../../image/symbolTable.ts";
import { type BpRegister, type CfaRegister, frameless, type OrcEntry, type OrcRule } from "./entry.ts";

export type OrcLayout = "6.1" | "6.12";

export interface OrcSections {
  /** .orc_unwind_ip */
  readonly ip: Uint8Array;
  /** .orc_unwind */
  readonly rules: Uint8Array;
  /** .orc_header: a hash by which a kernel knows that the layout is its own. Only the later layout has it. */
  readonly header?: Uint8Array;
}

export const RULE_SIZE = 6;
export const IP_SIZE = 4;
export const HEADER_SIZE = 20;

const REGISTER = {
  undefined: 0,
  prevsp: 1,
  dx: 2,
  di: 3,
  bp: 4,
  sp: 5,
  r10: 6,
  r13: 7,
  "bp-indirect": 8,
  "sp-indirect": 9,
} as const satisfies Record<CfaRegister | BpRegister, number>;

const CFA = numbered<CfaRegister>(REGISTER, (name) => name !== "prevsp");
const BP = numbered<BpRegister>(REGISTER, (name) => ["undefined", "prevsp", "bp"].includes(name));

/** 6.1 knows neither of the types without a frame: it has no base register there, and the `end` bit or not. */
const TYPE_6_1 = { CALL: 0, REGS: 1, REGS_PARTIAL: 2 } as const;
const END_6_1 = 1 << 10;
const TYPE = { UNDEFINED: 0, END_OF_STACK: 1, CALL: 2, REGS: 3, REGS_PARTIAL: 4 } as const;
const SIGNAL = 1 << 11;

const FRAMED_6_1 = numbered<keyof typeof TYPE_6_1>(TYPE_6_1, () => true);
const TYPES = numbered<keyof typeof TYPE>(TYPE, () => true);

/** The entries of sections whose addresses lie at `ipAddress`; `name` is whose they are, `text` where code is. */
export function readOrc(
  name: string,
  { ip, rules, header }: OrcSections,
  ipAddress: Addr,
  text: readonly Extent[],
): OrcEntry[] {
  const malformed = (what: string): never => refuse("orc-malformed", { name, what });
  if (header !== undefined && header.length !== HEADER_SIZE)
    malformed(`its .orc_header has ${header.length} bytes, not ${HEADER_SIZE}`);
  if (rules.length % RULE_SIZE !== 0)
    malformed(`its .orc_unwind has ${rules.length} bytes, no multiple of ${RULE_SIZE}`);
  const count = rules.length / RULE_SIZE;
  if (ip.length !== count * IP_SIZE)
    malformed(`its .orc_unwind_ip has ${ip.length} bytes, where ${count} rules need ${count * IP_SIZE}`);
  const ips = viewOf(ip);
  const words = viewOf(rules);
  const decode = header === undefined ? decode6_1 : decodeLater;
  return Array.from({ length: count }, (_, n) => {
    const address = (ipAddress + IP_SIZE * n + ips.getInt32(IP_SIZE * n, true)) as Addr;
    // A section's last entry is for its end.
    if (!text.some((extent) => address >= extent.address && address <= extent.address + extent.size))
      malformed(`ORC entry ${n} is for ${hex(address)}, where it has no code`);
    const at = RULE_SIZE * n;
    const rule = decode(
      words.getInt16(at, true),
      words.getInt16(at + 2, true),
      words.getUint16(at + 4, true),
    );
    if (rule !== undefined) return { address, ...rule };
    const bytes = hexBytes(rules.subarray(at, at + RULE_SIZE));
    return malformed(`ORC entry ${n}, ${bytes}, has bits that mean nothing in this layout`);
  });
}

/** The sections that hold `entries`, in this order, for addresses at `ipAddress`. 6.1 loses which end an end is. */
export function writeOrc(layout: OrcLayout, entries: readonly OrcEntry[], ipAddress: Addr): OrcSections {
  const ip = new Uint8Array(IP_SIZE * entries.length);
  const rules = new Uint8Array(RULE_SIZE * entries.length);
  const [ips, words] = [viewOf(ip), viewOf(rules)];
  for (const [n, entry] of entries.entries()) {
    const distance = entry.address - (ipAddress + IP_SIZE * n);
    if (distance !== (distance | 0)) bug(`ORC entry for ${hex(entry.address)} is too far from its table`);
    ips.setInt32(IP_SIZE * n, distance, true);
    const at = RULE_SIZE * n;
    words.setInt16(at, short(entry.cfa.offset), true);
    words.setInt16(at + 2, short(entry.bp.offset), true);
    const registers = REGISTER[entry.cfa.register] | (REGISTER[entry.bp.register] << 4);
    words.setUint16(at + 4, registers | (layout === "6.1" ? bits6_1(entry) : bitsLater(entry)), true);
  }
  return layout === "6.1" ? { ip, rules } : { ip, rules, header: new Uint8Array(HEADER_SIZE) };
}

/** Undefined for what this layout gives no meaning. */
function decode6_1(cfaOffset: number, bpOffset: number, word: number): OrcRule | undefined {
  if (word >> 11 !== 0) return undefined;
  const end = (word & END_6_1) !== 0;
  const type = FRAMED_6_1.get((word >> 8) & 3);
  if (type === undefined) return undefined;
  const registers = decodeRegisters(cfaOffset, bpOffset, word);
  if (registers?.cfa.register !== "undefined")
    return end ? undefined : registers && { type, ...registers, signal: type !== "CALL" };
  return (word & ~END_6_1) === 0 && isNowhere(registers)
    ? frameless(end ? "END_6_1" : "UNDEFINED")
    : undefined;
}

function decodeLater(cfaOffset: number, bpOffset: number, word: number): OrcRule | undefined {
  if (word >> 12 !== 0) return undefined;
  const type = TYPES.get((word >> 8) & 7);
  const registers = decodeRegisters(cfaOffset, bpOffset, word);
  const signal = (word & SIGNAL) !== 0;
  if (type === undefined || registers === undefined) return undefined;
  if (type === "UNDEFINED" || type === "END_OF_STACK")
    return !signal && isNowhere(registers) ? frameless(type) : undefined;
  return registers.cfa.register === "undefined" ? undefined : { type, ...registers, signal };
}

function decodeRegisters(
  cfaOffset: number,
  bpOffset: number,
  word: number,
): Pick<OrcRule, "cfa" | "bp"> | undefined {
  const [cfa, bp] = [CFA.get(word & 15), BP.get((word >> 4) & 15)];
  if (cfa === undefined || bp === undefined) return undefined;
  if (bp === "undefined" && bpOffset !== 0) return undefined;
  return { cfa: { register: cfa, offset: cfaOffset }, bp: { register: bp, offset: bpOffset } };
}

function isNowhere({ cfa, bp }: Pick<OrcRule, "cfa" | "bp">): boolean {
  return cfa.register === "undefined" && cfa.offset === 0 && bp.register === "undefined";
}

function bits6_1({ type }: OrcRule): number {
  if (type === "UNDEFINED") return 0;
  return type === "END_OF_STACK" || type === "END_6_1" ? END_6_1 : TYPE_6_1[type] << 8;
}

function bitsLater({ type, signal }: OrcRule): number {
  if (type === "END_6_1") return bug("the later ORC layout has no ambiguous end");
  return (TYPE[type] << 8) | (signal ? SIGNAL : 0);
}

function short(offset: number): number {
  return offset === (offset << 16) >> 16 ? offset : bug(`ORC offset ${offset} does not fit 16 bits`);
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}

/** Names by number. */
function numbered<N extends string>(
  numbers: Readonly<Record<string, number>>,
  wanted: (name: string) => boolean,
): ReadonlyMap<number, N> {
  const named = Object.entries(numbers).filter(([name]) => wanted(name));
  return new Map(named.map(([name, number]) => [number, name as N]));
}
