// A table of ORC entries in the order of their addresses, and the search in it.
//
// One per image. Refuses entries out of order, and two rules for one address.

import type { Addr } from "../../base/addr.ts";
import { hex } from "../../base/addr.ts";
import { refuse } from "../../base/refuse.ts";
import { type OrcEntry, sameRule } from "./entry.ts";

export class OrcTable {
  readonly entries: readonly OrcEntry[];

  /** `name` is whose table it is, for messages. */
  constructor(name: string, entries: readonly OrcEntry[]) {
    for (const [n, entry] of entries.entries()) {
      const before = entries[n - 1];
      if (before === undefined || before.address < entry.address) continue;
      if (before.address > entry.address) {
        const what = `ORC entry ${n} is for ${hex(entry.address)}, and the one before it for ${hex(before.address)}`;
        refuse("orc-malformed", { name, what });
      }
      if (before.type === "UNDEFINED" || sameRule(before, entry)) continue;
      refuse("orc-malformed", { name, what: `it has two ORC rules for ${hex(entry.address)}` });
    }
    this.entries = entries;
  }

  /** The entry whose range holds `address`: the last that begins there or before. None before the first. */
  find(address: Addr): OrcEntry | undefined {
    const { entries } = this;
    let low = 0;
    let high = entries.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (entries[middle]!.address <= address) low = middle + 1;
      else high = middle;
    }
    return entries[low - 1];
  }
}

/**
 * `entries` by address. Where one section's table ends at the first address of the next section's, the end comes first,
 * so that it does not hide the other.
 */
export function sorted(entries: readonly OrcEntry[]): OrcEntry[] {
  const isEnd = ({ type }: OrcEntry) => Number(type === "UNDEFINED");
  return entries.toSorted((a, b) => a.address - b.address || isEnd(b) - isEnd(a));
}
