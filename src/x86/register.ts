// General-purpose registers and RFLAGS, by the names and numbers of Intel's manual (SDM vol. 1, 3.4).

/** The sixteen registers; the index is the number that instructions encode. */
export const GPR = [
  "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
  "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
] as const; // biome-ignore format: eight to a row, as the encoding has them

export type RegisterName = (typeof GPR)[number];

/** A register's number, 0 to 15. */
export type Gpr = number;

export const RAX = 0;
export const RCX = 1;
export const RDX = 2;
export const RBX = 3;
export const RSP = 4;
export const RBP = 5;
export const RSI = 6;
export const RDI = 7;

export function gprOf(name: RegisterName): Gpr {
  return GPR.indexOf(name);
}

/** RFLAGS bits. */
export const FLAG = {
  CF: 1n << 0n,
  PF: 1n << 2n,
  AF: 1n << 4n,
  ZF: 1n << 6n,
  SF: 1n << 7n,
  TF: 1n << 8n,
  IF: 1n << 9n,
  DF: 1n << 10n,
  OF: 1n << 11n,
  IOPL: 3n << 12n,
  NT: 1n << 14n,
  RF: 1n << 16n,
  AC: 1n << 18n,
  ID: 1n << 21n,
} as const;

/** The six flags that arithmetic sets. */
export const STATUS_FLAGS = FLAG.CF | FLAG.PF | FLAG.AF | FLAG.ZF | FLAG.SF | FLAG.OF;
/** Bit 1 of RFLAGS always reads as one. */
export const FLAGS_ALWAYS_ONE = 2n;
/** Flags beside the status flags that POPF at privilege level 0 changes (SDM vol. 2, POPF); RF is cleared. */
export const POPF_SYSTEM_FLAGS = FLAG.TF | FLAG.IF | FLAG.DF | FLAG.IOPL | FLAG.NT | FLAG.AC | FLAG.ID;
/** RFLAGS of a task in the kernel with interrupts on and nothing computed. */
export const RFLAGS_AT_REST = FLAGS_ALWAYS_ONE | FLAG.IF;

/** Bits of CR0 and CR4 that are looked at (SDM vol. 3, 2.5). */
export const CR0 = { PE: 1n << 0n, TS: 1n << 3n, WP: 1n << 16n, PG: 1n << 31n } as const;
export const CR4 = {
  TSD: 1n << 2n,
  DE: 1n << 3n,
  FSGSBASE: 1n << 16n,
  OSXSAVE: 1n << 18n,
  SMEP: 1n << 20n,
  SMAP: 1n << 21n,
} as const;

/** EFER: system-call enable, long mode enable and active, no-execute enable. */
export const EFER = { SCE: 1n << 0n, LME: 1n << 8n, LMA: 1n << 10n, NXE: 1n << 11n } as const;
