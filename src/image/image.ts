// A linked image: bytes at addresses with their permissions, symbols, and the recorded call sites.
//
// Immutable, and not in any machine's memory: whoever loads it copies the segments there.
// Refuses unknown and ambiguous names (see symbolTable.ts), and recorded call sites that are no addresses.

import type { Addr } from "../base/addr.ts";
import { addr, isCanonical, PAGE_SIZE } from "../base/addr.ts";
import { refuse } from "../base/refuse.ts";
import type { LivepatchRelocation } from "./livepatchSymbol.ts";
import type { ImageSymbol, SymbolAt } from "./symbolTable.ts";
import { SymbolTable } from "./symbolTable.ts";

/** Pages of one permission; bytes past `bytes` up to `size` are zero. */
export interface Segment {
  /** `text`, `rodata`, `data` or `bss`. */
  readonly name: string;
  /** Start, on a page boundary if the image's text is. */
  readonly address: Addr;
  readonly bytes: Uint8Array;
  /** In bytes. */
  readonly size: number;
  readonly write: boolean;
  readonly execute: boolean;
}

/** All linked sections of one name, in one piece. */
export interface ImageSection {
  readonly name: string;
  readonly address: Addr;
  /** In bytes. */
  readonly size: number;
}

export interface ImageParts {
  readonly name: string;
  readonly segments: readonly Segment[];
  readonly sections: readonly ImageSection[];
  readonly symbols: readonly ImageSymbol[];
  readonly livepatch?: readonly LivepatchRelocation[];
}

/** The kernel's own image, as its messages call it. */
export const VMLINUX = "vmlinux";

export class Image {
  /** `vmlinux`, or the module's name. */
  readonly name: string;
  readonly segments: readonly Segment[];
  readonly sections: readonly ImageSection[];
  /** Call sites of `__fentry__` that the compiler recorded, sorted. */
  readonly mcountLocations: readonly Addr[];
  /** What is relocated when the objects that it is about are there. */
  readonly livepatch: readonly LivepatchRelocation[];
  readonly #symbols: SymbolTable;

  constructor(parts: ImageParts) {
    this.name = parts.name;
    this.segments = parts.segments;
    this.sections = parts.sections;
    this.livepatch = parts.livepatch ?? [];
    this.#symbols = new SymbolTable(parts.symbols, parts.sections);
    this.mcountLocations = this.#readMcountLocations();
  }

  /** Sorted by address, sizes filled in. */
  get symbols(): readonly ImageSymbol[] {
    return this.#symbols.symbols;
  }

  /** The first page boundary after the image: where the next module may go. */
  get end(): Addr {
    const last = this.segments.at(-1);
    return last === undefined ? addr(0) : addr(Math.ceil((last.address + last.size) / PAGE_SIZE) * PAGE_SIZE);
  }

  /** The symbol of that name: the global one, else the only local one. Refuses unknown and ambiguous names. */
  symbol(name: string): ImageSymbol {
    return this.#symbols.get(name, this.name);
  }

  /** As `symbol`, but undefined for an unknown name. Still refuses an ambiguous one. */
  find(name: string): ImageSymbol | undefined {
    return this.#symbols.find(name);
  }

  /** Every symbol of that name, by address: the n-th is the one that livepatch's `sympos` n means. */
  named(name: string): readonly ImageSymbol[] {
    return this.#symbols.named(name);
  }

  /** For a message: what somebody probably meant who wrote a name that is not here, if any is near. */
  hint(name: string): string | undefined {
    return this.#symbols.hint(name);
  }

  /** The address of a global or weak symbol, for another link's `externals`; undefined for locals and unknown names. */
  exported(name: string): Addr | undefined {
    return this.named(name).find((symbol) => symbol.binding !== "local")?.address;
  }

  /** The symbol whose range holds `address`. For a return address ask for the byte before it. */
  symbolAt(address: Addr): SymbolAt | undefined {
    return this.#symbols.at(address);
  }

  /** The segment that holds `address`. */
  segmentAt(address: Addr): Segment | undefined {
    return this.segments.find(
      (segment) => address >= segment.address && address < segment.address + segment.size,
    );
  }

  /** The linked bytes from `address` on: a view, shorter than `size` where the segment's contents end. */
  bytes(address: Addr, size: number): Uint8Array {
    const segment = this.segmentAt(address);
    if (segment === undefined) return new Uint8Array(0);
    return segment.bytes.subarray(address - segment.address, address - segment.address + size);
  }

  /** The linked bytes of a symbol, before anything was loaded or rewritten: a view. */
  functionBytes(symbol: ImageSymbol): Uint8Array {
    return this.bytes(symbol.address, symbol.size);
  }

  /** The linked sections of that name; more than one only where their kinds differ. */
  sectionsNamed(name: string): readonly ImageSection[] {
    return this.sections.filter((section) => section.name === name);
  }

  #readMcountLocations(): Addr[] {
    return this.sectionsNamed("__mcount_loc")
      .flatMap(({ address, size }) => words(this.bytes(address, size)))
      .map((word, index) => {
        if (isCanonical(word)) return addr(word);
        return refuse("call-site", { image: this.name, index, value: `0x${word.toString(16)}` });
      })
      .sort((a, b) => a - b);
  }
}

/** The 64-bit words in `bytes`, unsigned. */
function words(bytes: Uint8Array): bigint[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  return Array.from({ length: Math.floor(bytes.length / 8) }, (_, i) => view.getBigUint64(8 * i, true));
}
