// What an instruction case is: machine code, the state it starts from, the state the processor leaves.
//
// Any engine can be held against the cases: put `windowOf(case)` at DATA, `codePageOf(case)` at CODE_PAGE,
// nothing around them, set `case.before`, run from CODE as a user until the int3 behind the case (or its
// fault), and ask `differences(case, outcome)` (cases-verdict.ts). Types and the layout: nothing to refuse.

import { PAGE_SIZE } from "../../src/base/addr.ts";

export const REGISTERS = [
  ...(["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"] as const),
  ...(["r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"] as const),
] as const;
export type RegisterName = (typeof REGISTERS)[number];
export type Registers = Readonly<Record<RegisterName, bigint>>;

/** The flags a case names, as bits of rflags. */
export const FLAGS = { cf: 0x1, pf: 0x4, af: 0x10, zf: 0x40, sf: 0x80, of: 0x800, df: 0x400 } as const;
export type FlagName = keyof typeof FLAGS;
export const FLAG_NAMES = Object.keys(FLAGS) as readonly FlagName[];
export const FLAG_MASK = Object.values(FLAGS).reduce<number>((mask, bit) => mask | bit, 0);
/** The other bits of rflags while a case runs: IF, and bit 1, which is always set. */
export const RFLAGS_BASE = 0x202;

/** The data window: readable, writable, not executable; the pages before and after it are not mapped. */
export const DATA = 0x1000_0000;
export const DATA_SIZE = 0x2000;
/** What the window holds where a case says nothing. */
export const FILL = 0xa5;
/** Where a case's first byte is: the middle of one page of int3, readable, writable and executable. */
export const CODE = 0x2000_0800;
export const CODE_PAGE = 0x2000_0000;
/** The bases of %gs and %fs. */
export const GS_BASE = DATA;
export const FS_BASE = DATA + 0x1000;

/** `size` bytes at address `at` hold `value`, little-endian, unsigned. */
export interface Word {
  readonly at: number;
  readonly size: 1 | 2 | 4 | 8;
  readonly value: bigint;
}

export interface Before {
  readonly registers: Registers;
  /** Only bits of FLAG_MASK. */
  readonly rflags: number;
  readonly memory: readonly Word[];
}

export const FAULTS = {
  0: "#DE",
  1: "#DB",
  3: "#BP",
  4: "#OF",
  5: "#BR",
  6: "#UD",
  7: "#NM",
  8: "#DF",
  10: "#TS",
  11: "#NP",
  12: "#SS",
  13: "#GP",
  14: "#PF",
  17: "#AC",
} as const;
export type FaultName = (typeof FAULTS)[keyof typeof FAULTS];

/** `address` (CR2) and `access` are #PF's; null for the others. */
export interface Fault {
  readonly name: FaultName;
  readonly address: bigint | null;
  readonly access: "read" | "write" | "fetch" | null;
}

/** What a right-hand side says. */
export interface After {
  readonly registers: Registers;
  /** Only bits of FLAG_MASK. */
  readonly rflags: number;
  /** Flags the manual leaves undefined here (`of=?`): not compared. */
  readonly undefinedFlags: number;
  /** Words in which anything changed; every other byte of the window is as before. */
  readonly memory: readonly Word[];
  /** Behind the case unless it branched; the faulting instruction for a fault, behind it for #BP and #DB. */
  readonly rip: bigint;
  readonly fault: Fault | null;
}

/** What ran: the input of an oracle. */
export interface Program {
  readonly bytes: Uint8Array;
  readonly before: Before;
}

/** What an engine or the processor did with a program. */
export interface Outcome {
  readonly registers: Registers;
  /** Only bits of FLAG_MASK. */
  readonly rflags: number;
  readonly rip: bigint;
  /** "hang" if it was cut off. */
  readonly fault: Fault | "hang" | null;
  /** The bytes of the window that changed: offset from DATA to new value, in ascending order. */
  readonly changed: ReadonlyMap<number, number>;
}

export interface Case extends Program {
  /** `alu.case:12 add %ebx,%eax` */
  readonly name: string;
  readonly file: string;
  /** From 1. */
  readonly line: number;
  /** AT&T; several instructions are parted by semicolons. */
  readonly text: string;
  /** Null while it has no right-hand side. */
  readonly after: After | null;
}

/** What the window holds when the program begins: DATA_SIZE bytes. */
export function windowOf(program: Program): Uint8Array {
  const window = new Uint8Array(DATA_SIZE).fill(FILL);
  for (const [offset, byte] of bytesOf(program.before.memory)) window[offset] = byte;
  return window;
}

/** What the page at CODE_PAGE holds when the program begins: its bytes at CODE, int3s around them. */
export function codePageOf(program: Program): Uint8Array {
  const page = new Uint8Array(PAGE_SIZE).fill(0xcc);
  page.set(program.bytes, CODE - CODE_PAGE);
  return page;
}

/** `Outcome.changed` for an engine that has the whole window at hand. */
export function changedBytes(before: Uint8Array, after: Uint8Array): Map<number, number> {
  const changed = new Map<number, number>();
  for (let i = 0; i < after.length; i++) if (after[i] !== before[i]) changed.set(i, after[i]!);
  return changed;
}

/** The words byte by byte: offset from DATA to value; a later word wins. */
export function bytesOf(words: readonly Word[]): Map<number, number> {
  const bytes = new Map<number, number>();
  for (const { at, size, value } of words)
    for (let i = 0; i < size; i++) bytes.set(at - DATA + i, Number((value >> BigInt(8 * i)) & 0xffn));
  return bytes;
}

export function sameFault(a: Fault | "hang" | null, b: Fault | "hang" | null): boolean {
  if (a === null || b === null || a === "hang" || b === "hang") return a === b;
  return a.name === b.name && a.address === b.address && a.access === b.access;
}
