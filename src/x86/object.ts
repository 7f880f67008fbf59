// What an assembler makes and a linker takes: sections, symbols, relocations.
//
// The same shape comes from assembled sources (x86/assemble.ts) and from ELF64 relocatable
// objects (image/elf.ts), so that one linker serves both. Names and meanings are ELF's.

/** x86-64 relocations that gcc and the assembler emit for kernel code (System V psABI, table 4.9). */
export const RELOCATION = {
  R_X86_64_64: 1,
  R_X86_64_PC32: 2,
  R_X86_64_PLT32: 4,
  R_X86_64_32: 10,
  R_X86_64_32S: 11,
  R_X86_64_PC64: 24,
} as const;

export type RelocationType = keyof typeof RELOCATION;

/** The field at `offset` takes `symbol + addend` (less the field's own address for the PC kinds). */
export interface Relocation {
  readonly offset: number;
  readonly type: RelocationType;
  /** Index into `ObjectFile.symbols`. */
  readonly symbol: number;
  readonly addend: number;
  /** The object of a live patch by whose `.klp.rela` section it is asked for. */
  readonly livepatch?: string;
}

export interface Section {
  readonly name: string;
  readonly write: boolean;
  readonly execute: boolean;
  /** False for notes, comments and debug information: not loaded. */
  readonly alloc: boolean;
  /** In bytes, a power of two. */
  readonly align: number;
  /** In bytes; `bytes` is shorter (empty) for SHT_NOBITS sections such as .bss. */
  readonly size: number;
  readonly bytes: Uint8Array;
  readonly relocations: readonly Relocation[];
}

export interface ObjectSymbol {
  readonly name: string;
  readonly kind: "func" | "object" | "section" | "none";
  readonly binding: "local" | "global" | "weak";
  /** Index into `ObjectFile.sections`, or null when another object defines it. */
  readonly section: number | null;
  /** Offset in its section, in bytes. */
  readonly value: number;
  /** In bytes, from `.size`; 0 when not given. */
  readonly size: number;
}

export interface ObjectFile {
  /** Where it came from, for messages: a path. */
  readonly name: string;
  readonly sections: readonly Section[];
  readonly symbols: readonly ObjectSymbol[];
}
