// Cases by the ten thousand, in the records that the native harness reads (test/native/records.ts has the layout).
//
// A case's number names it: code `number / states`, state `number % states` of it, whatever the batch.
// Code and patches are padded, by int3 and by saying the last patch again, so that records are whole 64-bit words.

import { FLAGS, RFLAGS_BASE } from "../x86/cases-model.ts";
import { OWN_SIZE } from "./address.ts";
import type { FuzzCode } from "./code.ts";

/** 32-bit words of a record's head: two counts, then sixteen registers, rip and rflags of 64 bits each. */
export const HEAD_WORDS = 2 + 2 * 18;
/** Bytes of the data window that a case may name. */
export const MAX_PATCHES = 128;
const MAX_WORDS = HEAD_WORDS + OWN_SIZE / 4 + MAX_PATCHES;
/** More than cases have on average. */
const TYPICAL_WORDS = 100;

/** Where a frame has the registers rax, rcx, rdx, rbx, rsp, ... by number: in 64-bit words (struct sigcontext). */
export const FRAME_INDEX = [13, 14, 12, 11, 15, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7] as const;
export const FRAME_RIP = 16;
export const FRAME_RFLAGS = 17;

/** What a case starts from. */
export interface CaseState {
  /** Sixteen registers by number, low half then high half. */
  readonly registers: Int32Array;
  /** Bits of rflags. */
  readonly flags: number;
  /** Bytes of the data window: offset * 256 + byte. */
  readonly patches: Int32Array;
  readonly patchCount: number;
  /** Whether it may write to the code page. */
  readonly writesCode: boolean;
}

export class Batch {
  /** The records. */
  readonly words: Int32Array;
  /** For each case: its number, its first word, its code. */
  readonly numbers: Float64Array;
  readonly starts: Int32Array;
  /** 1 for each case that may write to the code page. */
  readonly writesCode: Uint8Array;
  readonly codes: FuzzCode[] = [];
  count = 0;
  used = 0;

  constructor(cases: number) {
    this.words = new Int32Array(cases * TYPICAL_WORDS + MAX_WORDS);
    this.numbers = new Float64Array(cases);
    this.starts = new Int32Array(cases);
    this.writesCode = new Uint8Array(cases);
  }

  /** Whether there is room for so many cases, however long. */
  hasRoom(cases: number): boolean {
    return this.count + cases <= this.numbers.length && this.used + cases * MAX_WORDS <= this.words.length;
  }

  clear(): void {
    this.count = 0;
    this.used = 0;
    this.codes.length = 0;
  }

  /** The records as bytes. */
  get bytes(): Uint8Array {
    return new Uint8Array(this.words.buffer, 0, 4 * this.used);
  }

  /** Appends a case. */
  add(number: number, code: FuzzCode, state: CaseState): void {
    const { registers, flags, patches, patchCount, writesCode } = state;
    const { words } = this;
    const start = this.used;
    this.numbers[this.count] = number;
    this.starts[this.count] = start;
    this.writesCode[this.count] = writesCode ? 1 : 0;
    this.codes[this.count] = code;
    this.count++;
    const { bytes } = code;
    const codeWords = 2 * Math.ceil(bytes.length / 8);
    const padded = patchCount + (patchCount & 1);
    words[start] = 4 * codeWords;
    words[start + 1] = padded;
    const frame = start + 2;
    for (let n = 0; n < 16; n++) {
      const at = frame + 2 * FRAME_INDEX[n]!;
      words[at] = registers[2 * n]!;
      words[at + 1] = registers[2 * n + 1]!;
    }
    words[frame + 2 * FRAME_RIP] = ENTRY;
    words[frame + 2 * FRAME_RIP + 1] = 0;
    words[frame + 2 * FRAME_RFLAGS] = RFLAGS_BASE | flags;
    words[frame + 2 * FRAME_RFLAGS + 1] = 0;
    let at = start + HEAD_WORDS;
    for (let n = 0; n < codeWords; n++) {
      const i = 4 * n;
      words[at++] =
        (bytes[i] ?? INT3) |
        ((bytes[i + 1] ?? INT3) << 8) |
        ((bytes[i + 2] ?? INT3) << 16) |
        ((bytes[i + 3] ?? INT3) << 24);
    }
    for (let n = 0; n < padded; n++) words[at++] = patches[Math.min(n, patchCount - 1)]!;
    this.used = at;
  }

  /** Appends case `n` of another batch. */
  copy(other: Batch, n: number): void {
    const start = other.starts[n]!;
    const end = n + 1 < other.count ? other.starts[n + 1]! : other.used;
    this.words.set(other.words.subarray(start, end), this.used);
    this.numbers[this.count] = other.numbers[n]!;
    this.starts[this.count] = this.used;
    this.writesCode[this.count] = other.writesCode[n]!;
    this.codes[this.count] = other.codes[n]!;
    this.count++;
    this.used += end - start;
  }

  /** How many bytes of patches case `n` has, and where they begin. */
  patchCount(n: number): number {
    return this.words[this.starts[n]! + 1]!;
  }

  patchStart(n: number): number {
    const start = this.starts[n]!;
    return start + HEAD_WORDS + (this.words[start]! >> 2);
  }
}

const ENTRY = 0x2000_0800;
const INT3 = 0xcc;

const FLAG_BITS = Object.values(FLAGS);

/** The seven flags from seven bits. */
export function spreadFlags(bits: number): number {
  let flags = 0;
  for (const [n, flag] of FLAG_BITS.entries()) if (bits & (1 << n)) flags |= flag;
  return flags;
}

/** A number below 128 for each combination of the seven flags. */
export function gatherFlags(flags: number): number {
  let bits = 0;
  for (let n = 0; n < FLAG_BITS.length; n++) if (flags & FLAG_BITS[n]!) bits |= 1 << n;
  return bits;
}
