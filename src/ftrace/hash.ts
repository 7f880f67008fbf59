// Sets of addresses in guest memory, as the list function reads them (kernel/ftrace.c). Never changed once they are there.

import { type Addr, offset, toWord } from "../base/addr.ts";
import type { Memory } from "../machine/memory.ts";
import type { Pool } from "../machine/pool.ts";
import { FTRACE_HASH } from "./layout.ts";

export interface FtraceHash {
  readonly at: Addr;
  /** In bytes. */
  readonly size: number;
  readonly addresses: readonly Addr[];
}

/** At most every second place is taken, so that searches end soon. */
const SPARSE = 2;
/** Sites are some 16 bytes apart. */
const SHIFT = 16;

export function makeHash(memory: Memory, pool: Pool, addresses: readonly Addr[]): FtraceHash {
  let slots = SPARSE;
  while (slots < SPARSE * addresses.length) slots *= 2;
  const words = new BigUint64Array(1 + slots);
  words[0] = BigInt(slots - 1);
  for (const address of addresses) {
    let n = Number((toWord(address) / BigInt(SHIFT)) % BigInt(slots));
    while (words[1 + n] !== 0n) n = (n + 1) % slots;
    words[1 + n] = toWord(address);
  }
  const size = FTRACE_HASH.size + 8 * slots;
  const at = pool.take(size);
  memory.write(offset(at, 0), new Uint8Array(words.buffer));
  return { at, size, addresses };
}

export function freeHash(pool: Pool, { at, size }: FtraceHash): void {
  pool.give(at, size);
}
