// What is asked of a trampoline, clause by clause, and what each kind of it promises.
//
// The kinds are those of the kernel's own templates (asm/ftrace.S). Clauses are in the order in which they are told: the first
// that fails is the one to look at, as others may fail in its wake.

import type { TemplateKind } from "../../ftrace/trampoline.ts";
import type { PT_REGS } from "../../machine/ptRegs.ts";
import { FLAG, GPR, type RegisterName, STATUS_FLAGS } from "../../x86/register.ts";

export const CLAUSES = {
  registers: "the traced function finds its registers as they were at the site",
  flags:
    "the handler finds DF clear; the traced function finds the flags that are promised to it as they were",
  arguments: "the handler gets the site, the return address into the caller, the ops, and a pt_regs",
  pt_regs: "the handler finds in pt_regs the registers as they were at the site",
  ip: "the call goes on where regs->ip says",
  changes: "what the handler changes in pt_regs is what the traced function finds",
  stack: "the stack is balanced, and only the trampoline's own frame is written, and its return address",
  alignment: "the stack is aligned to 16 bytes where the handler is called, if it was at the traced call",
  unwind:
    "ORC walks are reliable and right at every boundary, frame pointers lead through it from the handler",
  interrupted: "an interrupt, an NMI or a preemption at any boundary changes nothing, and can be unwound",
  reentered: "an interrupt's handler at any boundary may call the traced function, too",
  recursion: "the handler may call the traced function",
  poked: "the site can be rewritten at any boundary; whoever is coming back to the trampoline can be found",
  position: "a copy of it works elsewhere, if the call of the handler and the ops are put right",
  ends: "every call ends, by returning",
} as const;

export type Clause = keyof typeof CLAUSES;
export const CLAUSE_NAMES = Object.keys(CLAUSES) as readonly Clause[];

export type Field = keyof typeof PT_REGS.fields;

/** The register that each field of pt_regs is of. */
export const FIELD_OF: Readonly<Record<Exclude<RegisterName, "rsp">, Field>> = {
  rax: "ax",
  rcx: "cx",
  rdx: "dx",
  rbx: "bx",
  rbp: "bp",
  rsi: "si",
  rdi: "di",
  r8: "r8",
  r9: "r9",
  r10: "r10",
  r11: "r11",
  r12: "r12",
  r13: "r13",
  r14: "r14",
  r15: "r15",
};

export type SavedRegister = keyof typeof FIELD_OF;
export const SAVED_REGISTERS = GPR.filter((name): name is SavedRegister => name !== "rsp");

/** What may be in flags; a trap flag would be another subject. */
export const FLAGS = STATUS_FLAGS | FLAG.DF | FLAG.IF | FLAG.IOPL | FLAG.NT | FLAG.AC | FLAG.ID;

export interface Contract {
  /** How the traced function finds them. */
  readonly kept: readonly SavedRegister[];
  readonly keptFlags: bigint;
  /** Flags that may be set at the site. */
  readonly flagsAtSite: bigint;
  /** Registers whose fields of pt_regs are filled in, and may be changed. */
  readonly saved: readonly SavedRegister[];
  /** Whether pt_regs has the rest, too: flags, cs, ss; of them the flags may be changed. */
  readonly whole: boolean;
  /** Whether the handler may change regs->ip. */
  readonly redirects: boolean;
}

/** Of these a called function takes care (System V ABI, 3.2.1). */
export const CALLEE_SAVED: readonly SavedRegister[] = ["rbx", "rbp", "r12", "r13", "r14", "r15"];

/** Anybody's at a function's beginning (System V ABI, 3.2.1 and 3.2.3), as the status flags are. */
const SCRATCH: readonly SavedRegister[] = ["r10", "r11"];

/** The function's arguments, how many vector registers it gets, and its caller's frame pointer. */
const ARGUMENTS: readonly SavedRegister[] = ["rdi", "rsi", "rdx", "rcx", "r8", "r9", "rax", "rbp"];

const PLAIN: Contract = {
  kept: SAVED_REGISTERS.filter((name) => !SCRATCH.includes(name)),
  keptFlags: FLAGS & ~STATUS_FLAGS,
  // DF is clear at a function's beginning (System V ABI, 3.2.1).
  flagsAtSite: FLAGS & ~FLAG.DF,
  saved: ARGUMENTS,
  whole: false,
  redirects: false,
};

export const CONTRACTS: Readonly<Record<TemplateKind, Contract>> = {
  plain: PLAIN,
  ipmodify: { ...PLAIN, redirects: true },
  regs: {
    kept: SAVED_REGISTERS,
    keptFlags: FLAGS,
    flagsAtSite: FLAGS,
    saved: SAVED_REGISTERS,
    whole: true,
    redirects: true,
  },
};
