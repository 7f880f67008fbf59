// The symbols of an image: by name, and by the address that lies within them.
//
// A function without `.size` gets one: up to the next symbol, or the end of its section. So does
// a label, unless it lies inside a function that has a size; then it names a place, not a range.
// Refuses names that are unknown, and local names that several objects use.

import type { Addr } from "../base/addr.ts";
import { refuse } from "../base/refuse.ts";
import { closestName } from "./closest.ts";

export interface ImageSymbol {
  readonly name: string;
  readonly address: Addr;
  /** In bytes; 0 for a label inside a function and for one at the end of its section. */
  readonly size: number;
  readonly kind: "func" | "object" | "none";
  readonly binding: "local" | "global" | "weak";
  /** Name of the object file that defines it. */
  readonly object: string;
}

/** A symbol and the distance of an address from its start, in bytes. */
export interface SymbolAt {
  readonly symbol: ImageSymbol;
  readonly offset: number;
}

/** A stretch of the image no symbol reaches out of. */
export interface Extent {
  readonly address: Addr;
  readonly size: number;
}

export class SymbolTable {
  /** By address; of those at one address the best name first. */
  readonly symbols: readonly ImageSymbol[];
  readonly #byName = new Map<string, ImageSymbol[]>();
  /** Symbols with a size, by address; of those at one address the best name last. */
  readonly #ranges: readonly ImageSymbol[];
  /** For each range, the highest end of it and all before it: how far back a search must look. */
  readonly #reach: readonly number[];

  constructor(symbols: readonly ImageSymbol[], sections: readonly Extent[]) {
    this.symbols = withSizes(symbols.toSorted(byAddress), sections);
    for (const symbol of this.symbols) {
      const named = this.#byName.get(symbol.name);
      if (named === undefined) this.#byName.set(symbol.name, [symbol]);
      else named.push(symbol);
    }
    this.#ranges = this.symbols
      .filter((symbol) => symbol.size > 0)
      .reverse()
      .sort((a, b) => a.address - b.address);
    let reach = Number.NEGATIVE_INFINITY;
    this.#reach = this.#ranges.map(({ address, size }) => {
      reach = Math.max(reach, address + size);
      return reach;
    });
  }

  /** Every symbol of that name, by address. */
  named(name: string): readonly ImageSymbol[] {
    return this.#byName.get(name) ?? [];
  }

  /** The symbol of that name: the global one, else the only local one. Refuses several locals; undefined for none. */
  find(name: string): ImageSymbol | undefined {
    const named = this.named(name);
    const global = named.find((symbol) => symbol.binding !== "local");
    if (global !== undefined || named.length < 2) return global ?? named[0];
    const objects = named.map((symbol) => symbol.object).join(", ");
    refuse("ambiguous-symbol", { symbol: name, count: named.length, objects });
  }

  /** As `find`, but an unknown name is refused; `image` is whose symbols these are, for the message. */
  get(name: string, image: string): ImageSymbol {
    const symbol = this.find(name);
    if (symbol !== undefined) return symbol;
    const hint = this.hint(name) ?? "list its symbols, with nm or `fentrylab disasm`, to see what it has";
    refuse("unknown-symbol", { symbol: name, image, hint });
  }

  /** For a message: what somebody probably meant who wrote a name that is not here, if any is near. */
  hint(name: string): string | undefined {
    const near = closestName(name, this.#byName.keys());
    return near === undefined ? undefined : `did you mean '${near}'?`;
  }

  /** The innermost symbol whose range holds `address`. */
  at(address: Addr): SymbolAt | undefined {
    let low = 0;
    let high = this.#ranges.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#ranges[middle]!.address <= address) low = middle + 1;
      else high = middle;
    }
    for (let i = low - 1; i >= 0 && this.#reach[i]! > address; i--) {
      const symbol = this.#ranges[i]!;
      if (address < symbol.address + symbol.size) return { symbol, offset: address - symbol.address };
    }
    return undefined;
  }
}

const KIND_RANK = { func: 0, object: 1, none: 2 } as const;
const BINDING_RANK = { global: 0, weak: 1, local: 2 } as const;

/** By address, then the better name first: functions before labels, sized before unsized, globals before locals. */
function byAddress(a: ImageSymbol, b: ImageSymbol): number {
  return (
    a.address - b.address ||
    KIND_RANK[a.kind] - KIND_RANK[b.kind] ||
    Number(b.size > 0) - Number(a.size > 0) ||
    BINDING_RANK[a.binding] - BINDING_RANK[b.binding] ||
    compare(a.name, b.name) ||
    compare(a.object, b.object)
  );
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

/** `sorted`, each symbol without a size reaching to the next symbol or the end of its section. */
function withSizes(sorted: readonly ImageSymbol[], sections: readonly Extent[]): ImageSymbol[] {
  const ends = sections.toSorted((a, b) => a.address - b.address);
  let covered = Number.NEGATIVE_INFINITY; // how far the sized functions before this symbol reach
  return sorted.map((symbol, i) => {
    if (symbol.size > 0) {
      covered = Math.max(covered, symbol.address + symbol.size);
      return symbol;
    }
    if (symbol.address < covered) return symbol;
    const section = ends.findLast(
      ({ address, size }) => address <= symbol.address && symbol.address < address + size,
    );
    if (section === undefined) return symbol;
    let next = i + 1;
    while (sorted[next]?.address === symbol.address) next++;
    const end = Math.min(section.address + section.size, sorted[next]?.address ?? Number.POSITIVE_INFINITY);
    return { ...symbol, size: end - symbol.address };
  });
}
