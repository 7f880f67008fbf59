// What became of a batch's cases, in the records that the native harness writes (test/native/records.ts has the layout),
// whoever was asked.

import type { Batch } from "./batch.ts";

/** 32-bit words of an outcome's head: 23 registers, the signal, the number of changed bytes. */
export const OUTCOME_WORDS = 2 * 23 + 2;
/** Where the head has them, in words; the registers before are in the order of a batch's frames. */
export const OUTCOME = {
  /** Instructions that retired, where stepping is the oracle. */
  retired: 2 * 18,
  error: 2 * 19,
  vector: 2 * 20,
  cr2: 2 * 22,
  signal: OUTCOME_WORDS - 2,
  changes: OUTCOME_WORDS - 1,
} as const;

/** Of a case that was cut off. */
export const SIGVTALRM = 26;

export const VECTORS: Readonly<Record<string, number>> = {
  "#DE": 0,
  "#DB": 1,
  "#BP": 3,
  "#UD": 6,
  "#SS": 12,
  "#GP": 13,
  "#PF": 14,
};
export const BREAKPOINT = 3;
/** What an oracle says that does not tell these from each other: no processor's vector. */
export const SOME_EXCEPTION = 256;
export const EXCEPTIONS: readonly string[] = ["#DE", "#DB", "#BP", "#GP", "#SS"];
/** In the error code of a page fault, where an oracle does not say at which address. */
export const ADDRESS_UNKNOWN = 1 << 30;
export const PAGE_FAULT_VECTOR = 14;

export interface Outcomes {
  readonly words: Int32Array;
  /** For each case of the batch, the first word of its outcome. */
  readonly starts: Int32Array;
  /** Fewer than the batch has if whoever was asked broke down in between. */
  readonly count: number;
}

/** Somebody who says what the cases do. */
export interface Oracle {
  /** The batch's records are free to be written again when this returns. */
  run(batch: Batch): Promise<Outcomes>;
  close(): void;
}
