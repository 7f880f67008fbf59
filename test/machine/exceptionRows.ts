// What raises each vector, and what is to be seen of it: one instruction, harmless until it is armed.
//
// #BR and #OF come by int 5 and int 4 only: bound and into are no instructions of 64-bit mode.

import { type Addr, addr, offset, PAGE_SIZE, toWord } from "../../src/base/addr.ts";
import { parseHexBytes } from "../../src/base/bytes.ts";
import { FLAG, type RegisterName } from "../../src/x86/register.ts";
import {
  type GateOptions,
  KERNEL_DATA,
  KERNEL_TEXT,
  onReturn,
  SELECTOR,
  type SystemGuest,
  setGate,
  TSS,
  USER_DATA,
  USER_TEXT,
} from "./systemGuest.ts";

export type Registers = Partial<Record<RegisterName, bigint | number>>;
type Act = (guest: SystemGuest, here: Addr, user: boolean) => void;
export type InMode<T> = T | ((user: boolean) => T);

export interface Row {
  readonly vector: number;
  /** One instruction, which raises it if it is armed. */
  readonly code: string;
  readonly length: number;
  /** The saved rip is behind it, and it has retired. */
  readonly trap?: boolean;
  /** An interrupt: nothing of the program raises it, and RF is not set. */
  readonly interrupt?: boolean;
  readonly error?: InMode<number>;
  readonly cr2?: InMode<bigint>;
  /** What dr6 has beside its fixed bits. */
  readonly dr6?: bigint;
  /** Registers that are harmless, given the address behind the instruction; and those that are not. */
  readonly calm?: (user: boolean, behind: bigint) => Registers;
  readonly hostile?: InMode<Registers>;
  /** Does the harm that registers cannot; undoes it. */
  readonly arm?: Act;
  readonly mend?: Act;
  /** Done when the instruction is the next one. */
  readonly before?: Act;
  /** Flags that differ from what they were, in the frame. */
  readonly flags?: bigint;
  readonly only?: "kernel" | "user";
  /** It retires, and the fault is where it leads. */
  readonly elsewhere?: { readonly rip: Addr };
}

const NOT_CANONICAL = 0x8000_0000_0000n;
const UNMAPPED = 0x7000_0000n;
/** What `value` is at a level. */
export const of = <T extends object | bigint | number>(
  value: InMode<T> | undefined,
  user: boolean,
): T | undefined => (typeof value === "function" ? value(user) : value);
const data = (user: boolean): bigint => toWord(user ? USER_DATA : KERNEL_DATA);
const readOnly = (user: boolean): bigint => toWord(user ? USER_TEXT : KERNEL_TEXT);
/** #PF's error code bits: present, write, user. */
const pf = (bits: number) => (user: boolean) => bits | (user ? 4 : 0);
/** Segments that are not present: users' data, and a stack of the level that the row is tried at. */
export const ABSENT = 0x50;
export const ABSENT_STACK = 0x58;
/** The usual gate of `vector`, for users too, but for `options`. */
export const gate = (guest: SystemGuest, vector: number, options: Partial<GateOptions> = {}): void =>
  setGate(guest, vector, { handler: guest.at(`vector${vector}`), dpl: 3, ...options });
const write = (guest: SystemGuest, at: Addr, bytes: string): void =>
  guest.machine.memory.write(at, parseHexBytes(bytes));
const debug = (n: number, at: bigint, control: bigint) => (guest: SystemGuest) => {
  guest.vcpu.system.setWord("dr", at, n);
  guest.vcpu.system.setWord("dr", 0x400n | control, 7);
};

const LOAD = { code: "mov (%rcx),%r11", length: 3, calm: (user: boolean) => ({ rcx: data(user) }) };
const STORE = { ...LOAD, code: "mov %rax,(%rcx)" };
const SELECT = { code: "mov %ecx,%ds", length: 2, calm: () => ({ rcx: SELECTOR.userData }) };
const INT = { code: "int $50", length: 2 };

export const ROWS: Record<string, Row> = {
  "#DE by zero": {
    vector: 0,
    code: "div %rcx",
    length: 3,
    calm: () => ({ rcx: 3, rdx: 0 }),
    hostile: { rcx: 0 },
  },
  "#DE by overflow": {
    ...{ vector: 0, code: "idiv %rcx", length: 3 },
    ...{ calm: () => ({ rcx: 1, rdx: 0 }), hostile: { rdx: 1n << 60n } },
  },
  "#DB by int1": { vector: 1, code: ".byte 0xf1", length: 1, trap: true },
  "#DB, a single step": {
    ...{ vector: 1, ...STORE, trap: true, dr6: 1n << 14n, flags: FLAG.TF },
    before: ({ vcpu }) => {
      vcpu.rflags |= FLAG.TF;
    },
    mend: (guest) => onReturn(guest, 1, { clear: FLAG.TF }),
  },
  "#DB, an instruction breakpoint": {
    ...{ vector: 1, ...STORE, dr6: 1n },
    arm: (guest, here) => debug(0, toWord(here), 1n)(guest),
  },
  "#DB, a data breakpoint": {
    ...{ vector: 1, ...STORE, trap: true, dr6: 2n },
    arm: (guest, _, user) => debug(1, data(user), 0x90_0004n)(guest),
  },
  "#DB, general detect": {
    ...{ vector: 1, code: "mov %dr3,%rax", length: 3, dr6: 1n << 13n, only: "kernel" },
    arm: debug(0, 0n, 1n << 13n),
  },
  NMI: { vector: 2, ...STORE, interrupt: true, before: ({ vcpu }) => vcpu.nmi() },
  "#BP": { vector: 3, code: "int3", length: 1, trap: true },
  "#OF by int 4": { vector: 4, code: "int $4", length: 2, trap: true },
  "#BR by int 5": { vector: 5, code: "int $5", length: 2, trap: true },
  "#UD": {
    ...{ vector: 6, code: "xchg %ax,%ax", length: 2 },
    arm: (guest, here) => write(guest, here, "0f 0b"),
    mend: (guest, here) => write(guest, here, "66 90"),
  },
  "#DF of #GP and #NP": {
    ...{ vector: 8, ...LOAD, error: 0, hostile: { rcx: NOT_CANONICAL } },
    arm: (guest) => gate(guest, 13, { present: false }),
    mend: (guest) => gate(guest, 13),
  },
  "#DF of #PF and #PF": {
    ...{ vector: 8, ...LOAD, error: 0, cr2: UNMAPPED - 48n, hostile: { rcx: UNMAPPED } },
    arm: (guest) => {
      guest.machine.memory.writeWord(offset(TSS, 0x24 + 8 * 5), UNMAPPED);
      gate(guest, 14, { ist: 6 });
    },
    mend: (guest) => gate(guest, 14),
  },
  "#TS by an interrupt stack that the TSS lacks": {
    ...{ vector: 10, ...INT, error: SELECTOR.tss },
    arm: (guest) => {
      gate(guest, 50, { ist: 7 });
      guest.vcpu.system.setWord("tssLimit", 0x5an);
    },
    mend: ({ vcpu }) => vcpu.system.setWord("tssLimit", 0x67n),
  },
  "#NP by a gate": {
    ...{ vector: 11, ...INT, error: 50 * 8 + 2 },
    arm: (guest) => gate(guest, 50, { present: false }),
    mend: (guest) => gate(guest, 50),
  },
  "#NP by a data segment": { vector: 11, ...SELECT, error: ABSENT, hostile: { rcx: ABSENT | 3 } },
  "#SS by an address": {
    ...{ vector: 12, code: "mov (%rbp),%r11", length: 4, error: 0 },
    ...{ calm: (user) => ({ rbp: data(user) }), hostile: { rbp: NOT_CANONICAL } },
  },
  "#SS by a stack segment": {
    ...{ vector: 12, code: "mov %ecx,%ss", length: 2, error: ABSENT_STACK },
    calm: (user) => ({ rcx: user ? SELECTOR.userData : SELECTOR.kernelData }),
    hostile: (user) => ({ rcx: ABSENT_STACK | (user ? 3 : 0) }),
  },
  "#GP by an address": { vector: 13, ...LOAD, error: 0, hostile: { rcx: NOT_CANONICAL } },
  "#GP by a selector": { vector: 13, ...SELECT, error: 0x78, hostile: { rcx: 0x7b } },
  "#GP by int n that is not for users": {
    ...{ vector: 13, ...INT, error: 50 * 8 + 2, only: "user" },
    arm: (guest) => gate(guest, 50, { dpl: 0 }),
    mend: (guest) => gate(guest, 50),
  },
  "#GP by a privileged instruction": {
    ...{ vector: 13, code: "nop", length: 1, error: 0, only: "user" },
    arm: (guest, here) => write(guest, here, "fa"),
    mend: (guest, here) => write(guest, here, "90"),
  },
  "#PF by a read": { vector: 14, ...LOAD, error: pf(0), cr2: UNMAPPED, hostile: { rcx: UNMAPPED } },
  "#PF by a write": { vector: 14, ...STORE, error: pf(2), cr2: UNMAPPED, hostile: { rcx: UNMAPPED } },
  "#PF by a write to what can be read": {
    ...{ vector: 14, ...STORE, error: pf(3), cr2: readOnly },
    hostile: (user) => ({ rcx: readOnly(user) }),
  },
  "#PF by the second page": {
    ...{ vector: 14, ...LOAD, error: pf(0), cr2: (user) => data(user) + 0x4000n },
    hostile: (user) => ({ rcx: data(user) + 0x3ffdn }),
  },
  "#PF by user code that reads the kernel's": {
    ...{ vector: 14, ...LOAD, error: 5, cr2: toWord(KERNEL_DATA), only: "user" },
    hostile: { rcx: toWord(KERNEL_DATA) },
  },
  "#PF by a fetch": {
    ...{ vector: 14, code: "jmp *%rcx", length: 2, error: pf(16), cr2: UNMAPPED, hostile: { rcx: UNMAPPED } },
    calm: (_, behind) => ({ rcx: behind, rdx: behind }),
    elsewhere: { rip: addr(UNMAPPED) },
    mend: ({ machine: { memory } }, _, user) => {
      if (!memory.isMapped(addr(UNMAPPED), 1))
        memory.map(addr(UNMAPPED), PAGE_SIZE, { write: false, execute: true, user });
      memory.write(addr(UNMAPPED), parseHexBytes("ff e2")); // jmp *%rdx
    },
    arm: ({ machine: { memory } }) => {
      if (memory.isMapped(addr(UNMAPPED), 1)) memory.unmap(addr(UNMAPPED), PAGE_SIZE);
    },
  },
  "an external interrupt": {
    vector: 50,
    ...STORE,
    interrupt: true,
    before: ({ vcpu }) => vcpu.interrupt(50),
  },
  "int n": { vector: 50, ...INT, trap: true },
};
