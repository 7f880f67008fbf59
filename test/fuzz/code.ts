// What a case executes, one instruction or a sequence of them, and what has to be known to run it with many states.

import type { Code, Mnemonic } from "iced-x86";
import type { Halves } from "./halves.ts";

/** One access to memory: `segment + base + index * scale + displacement`, cut to 32 bits before the segment if `narrow`. */
export interface Access {
  /** Numbers of registers, with what the case starts with in them; -1 for none. */
  readonly base: number;
  readonly index: number;
  /** The index is a low byte: xlat's al. */
  readonly byteIndex: boolean;
  /** log2. */
  readonly shift: number;
  readonly displacement: Halves;
  readonly segment: number;
  readonly narrow: boolean;
  readonly size: number;
  readonly read: boolean;
  readonly write: boolean;
  /** Of bt and kin: the register whose bits above the operand's width move the access; -1 for none. */
  readonly bits: number;
  readonly locked: boolean;
  /** By a repeated string instruction: the first of many. */
  readonly repeated: boolean;
}

/** What the word that a branch goes to comes from. */
export type TargetSource = { readonly register: number } | "memory" | "stack" | "none";

export interface FuzzCode {
  readonly bytes: Uint8Array;
  /** How many instructions: 1 but for sequences. What follows says nothing of the single ones of a sequence. */
  readonly count: number;
  /** Of a sequence, INVALID. */
  readonly code: Code;
  readonly mnemonic: Mnemonic;
  /** `jcc`, `cmovcc` and `setcc` for the conditional ones, `sequence`, otherwise the mnemonic. */
  readonly family: string;
  readonly accesses: readonly Access[];
  readonly target: TargetSource;
  /** Through a register or memory. */
  readonly calls: boolean;
  /** It may go elsewhere than behind its last byte. */
  readonly branches: boolean;
  readonly repeated: boolean;
  /** Operand size in bytes, of the first operand; 0 without. */
  readonly size: number;
  /** True if the count of a shift is in cl. */
  readonly countInCl: boolean;
  /**
   * The flags that the manual leaves undefined when it stopped, with what cl was before. `fault`: where the
   * instruction that faulted is, from the first byte; undefined if none did.
   */
  readonly undefinedFlags: (cl: number, fault: number | undefined) => number;
  /** bsf and bsr of 32 bits: processors differ in the destination's upper half if the source is zero; else -1. */
  readonly scanDestination: number;
}
