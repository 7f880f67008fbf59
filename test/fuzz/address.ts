// Where the generated accesses go: data window, its edges, places that fault. Addresses are pairs of 32-bit halves, signed.
//
// What must never be touched is what only the native harness has mapped: its text at 4 MiB, its work area from
// WORK on, its stack, the case records and the vdso below 2^47, and the vsyscall page.

import { CODE, CODE_PAGE, DATA, DATA_SIZE } from "../x86/cases-model.ts";
import type { Halves } from "./halves.ts";
import type { Random } from "./random.ts";

const DATA_END = DATA + DATA_SIZE;
/** How far an access may miss the window and still be one that is meant. */
const EDGE = 0x200;
/** The case's own bytes begin at CODE and are fewer than these; what is stored near them could be executed. */
export const OWN_SIZE = 0x400;
const OWN_BEFORE = 0x100;
const PAGE_LAST = 0xfc0;

export interface Choice {
  /** Below 4 GiB. */
  readonly narrow: boolean;
  /** The code page, too. */
  readonly code: boolean;
  /** Only where nothing faults. */
  readonly tame: boolean;
}

/** Chooses where an access of `size` bytes goes. */
export function chooseAddress(random: Random, at: Halves, size: number, choice: Choice): void {
  const { narrow, code, tame } = choice;
  const kind = random.below(tame ? 74 : 100);
  at.high = 0;
  if (kind < 62) at.low = DATA + random.below(DATA_SIZE - size + 1);
  else if (kind < 74) at.low = DATA + DATA_SIZE / 2 - random.below(size + 1);
  else if (kind < 80) at.low = DATA_END - random.below(2 * size + 1);
  else if (kind < 83) at.low = DATA - 1 - random.below(2 * size);
  else if (kind < 84) at.low = random.below(0x1000);
  else if (kind < 87) at.low = 0x4000_0000 + random.below(0xb000_0000);
  else if (kind < 88 && code) at.low = CODE_PAGE + random.below(PAGE_LAST);
  else if (kind < 90 || narrow) at.low = DATA + random.below(DATA_SIZE / 16 - 1) * 16;
  else {
    at.low = random.word();
    if (kind < 92) at.high = 1 + random.below(0x5fff);
    else if (kind < 97) at.high = 0x8000 + random.below(0xffff_0000);
    else at.high = 0xffff_8000 + random.below(0x7fff);
  }
  at.low |= 0;
  at.high |= 0;
}

/** True if the `size` bytes from there on may be accessed natively: they are the case's, or certainly not mapped. */
export function isSafe({ low, high }: Halves, size: number, write: boolean): boolean {
  const at = low >>> 0;
  const top = high >>> 0;
  if (top === 0) {
    if (at >= DATA - EDGE && at + size <= DATA_END + EDGE) return true;
    if (at < 0x8000 || at >= 0x4000_0000) return true;
    if (at < CODE_PAGE || at + size > CODE_PAGE + PAGE_LAST) return false;
    return !write || at + size <= CODE - OWN_BEFORE || at >= CODE + OWN_SIZE;
  }
  if (top < 0x6000) return true;
  if (top < 0x8000) return false;
  return top !== 0xffff_ffff || at < 0xff5f_0000 || at >= 0xff61_0000;
}

/** True if any byte is of the code page. */
export function touchesCode({ low, high }: Halves, size: number): boolean {
  const at = low >>> 0;
  return high === 0 && at + size > CODE_PAGE && at < CODE_PAGE + 0x1000;
}

/**
 * Where a computed branch goes: int3s of the code page, or where nothing can be executed. Never the case's own bytes.
 * `canonical`: for calls, since whether one that faults for its target has pushed already differs between processors.
 */
export function chooseTarget(random: Random, to: Halves, canonical: boolean): void {
  const kind = random.below(100);
  to.high = 0;
  if (kind < 55) to.low = CODE + OWN_SIZE + random.below(0x3e0);
  else if (kind < 80) to.low = CODE_PAGE + random.below(0x7f0);
  else if (kind < 84) to.low = DATA + random.below(DATA_SIZE);
  else if (kind < 87) to.low = random.below(0x1000);
  else {
    to.low = random.word();
    if (kind < 90) to.high = 1 + random.below(0x5fff);
    else if (kind < 97 && !canonical) to.high = 0x8000 + random.below(0xffff_0000);
    else to.high = 0xffff_8000 + random.below(0x7000);
  }
  to.low |= 0;
  to.high |= 0;
}
