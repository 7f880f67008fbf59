// Objects into an image at fixed addresses, as `ld` without a script's liberties.
//
// Symbols resolve as in ELF: a global definition beats weak ones, the first weak one beats later
// ones, what no object defines is asked of `externals`, and a weak reference that nothing
// answers is 0. Local symbols stay per object. Refuses two global definitions of a name, undefined
// symbols, and relocations whose field cannot hold the value. What live patching relocates later is left zero.

import type { Addr } from "../base/addr.ts";
import { addr } from "../base/addr.ts";
import { refuse } from "../base/refuse.ts";
import type { ObjectFile, ObjectSymbol } from "../x86/object.ts";
import type { Segment } from "./image.ts";
import { Image, VMLINUX } from "./image.ts";
import { type LivepatchRelocation, livepatchRelocation } from "./livepatchSymbol.ts";
import type { OutputSection } from "./placement.ts";
import { KINDS, place } from "./placement.ts";
import { relocate } from "./relocate.ts";
import type { ImageSymbol } from "./symbolTable.ts";

export interface Layout {
  /** Where the text goes; the other kinds follow it. */
  readonly text: Addr;
  /** The image's name: `vmlinux` when not given, else a module's. */
  readonly name?: string;
  /** Addresses of symbols that no object here defines: for a module, the kernel's exports. */
  readonly externals?: (name: string) => Addr | undefined;
}

/** What lies between functions: a jump there traps. */
const TEXT_FILL = 0xcc;

/** Links `objects`, in this order, at `layout.text`. Throws a Refusal when they do not fit together. */
export function link(objects: readonly ObjectFile[], layout: Layout): Image {
  const outputs = place(objects, layout.text);
  const segments = buildSegments(objects, outputs);
  const symbols = new Resolver(objects, outputs, layout);
  const livepatch: LivepatchRelocation[] = [];
  for (const output of outputs) {
    const segment = segments.find(({ name }) => name === output.kind)!;
    for (const { object, section, address } of output.parts) {
      const file = objects[object]!;
      const { name, size, relocations } = file.sections[section]!;
      const start = address - segment.address;
      const bytes = segment.bytes.subarray(start, start + size);
      for (const relocation of relocations) {
        const place = `${file.name} ${name}+0x${relocation.offset.toString(16)}`;
        const symbol = file.symbols[relocation.symbol]!.name;
        const at = addr(address + relocation.offset);
        const later = livepatchRelocation(relocation, symbol, at, place);
        if (later !== undefined) {
          livepatch.push(later);
          continue;
        }
        const target = symbols.resolve(object, relocation.symbol, place);
        relocate(relocation, { bytes, at, target, symbol, place });
      }
    }
  }
  return new Image({
    name: layout.name ?? VMLINUX,
    segments,
    sections: outputs.map(({ name, address, size }) => ({ name, address, size })),
    symbols: symbols.defined(),
    livepatch,
  });
}

/** The segments with the objects' bytes copied in, not yet relocated; kinds without sections have none. */
function buildSegments(objects: readonly ObjectFile[], outputs: readonly OutputSection[]): Segment[] {
  return KINDS.flatMap((kind) => {
    const own = outputs.filter((output) => output.kind === kind);
    const [first, last] = [own[0], own.at(-1)];
    if (first === undefined || last === undefined) return [];
    const size = last.address + last.size - first.address;
    const write = kind === "data" || kind === "bss";
    const segment = { name: kind, address: first.address, size, write, execute: kind === "text" };
    if (kind === "bss") return [{ ...segment, bytes: new Uint8Array(0) }];
    const bytes = new Uint8Array(size);
    if (kind === "text") bytes.fill(TEXT_FILL);
    for (const { object, section, address } of own.flatMap(({ parts }) => parts)) {
      bytes.set(objects[object]!.sections[section]!.bytes, address - first.address);
    }
    return [{ ...segment, bytes }];
  });
}

/** Which symbol a name means, seen from each object, and where it is. */
class Resolver {
  readonly #objects: readonly ObjectFile[];
  readonly #layout: Layout;
  /** By object and section; absent for sections that are not loaded. */
  readonly #sections: Map<number, Addr>[];
  /** The winning definition of each global or weak name. */
  readonly #winners = new Map<string, { object: number; symbol: ObjectSymbol }>();

  constructor(objects: readonly ObjectFile[], outputs: readonly OutputSection[], layout: Layout) {
    this.#objects = objects;
    this.#layout = layout;
    this.#sections = objects.map(() => new Map());
    for (const { parts } of outputs) {
      for (const { object, section, address } of parts) this.#sections[object]!.set(section, address);
    }
    objects.forEach((file, object) => {
      for (const symbol of file.symbols) this.#define(object, symbol);
    });
  }

  /** The address that symbol `index` of object `object` stands for at `place`. */
  resolve(object: number, index: number, place: string): Addr {
    const symbol = this.#objects[object]!.symbols[index]!;
    const winner = symbol.binding === "local" ? { object, symbol } : this.#winners.get(symbol.name);
    const address = winner && this.#addressOf(winner.object, winner.symbol);
    if (address !== undefined) return address;
    const external = this.#layout.externals?.(symbol.name);
    if (external !== undefined) return external;
    if (symbol.binding === "weak" && symbol.section === null) return addr(0);
    refuse("undefined-symbol", { place, symbol: symbol.name });
  }

  /** What the image knows by name: locals, and the winners of the rest. */
  defined(): ImageSymbol[] {
    return this.#objects.flatMap((file, object) =>
      file.symbols.flatMap((symbol) => {
        const { name, kind, binding, size } = symbol;
        const address = this.#addressOf(object, symbol);
        if (address === undefined || kind === "section" || name === "") return [];
        if (binding !== "local" && this.#winners.get(name)?.symbol !== symbol) return [];
        return [{ name, address, size, kind, binding, object: file.name }];
      }),
    );
  }

  #define(object: number, symbol: ObjectSymbol): void {
    const { name, binding, section } = symbol;
    if (section === null || binding === "local") return;
    const earlier = this.#winners.get(name);
    if (earlier?.symbol.binding === "global" && binding === "global") {
      const [first, second] = [this.#objects[earlier.object]!.name, this.#objects[object]!.name];
      refuse("duplicate-symbol", { symbol: name, first, second });
    }
    if (earlier === undefined || (earlier.symbol.binding === "weak" && binding === "global")) {
      this.#winners.set(name, { object, symbol });
    }
  }

  #addressOf(object: number, symbol: ObjectSymbol): Addr | undefined {
    const section = symbol.section === null ? undefined : this.#sections[object]!.get(symbol.section);
    return section === undefined ? undefined : addr(section + symbol.value);
  }
}
