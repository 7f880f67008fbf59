// Symbols that live patching resolves when their object is there, and the relocations against them
// (Linux Documentation/livepatch/module-elf-format.rst): `.klp.sym.object.name,position`.
//
// Tools that make patches put such relocations into sections of their own, `.klp.rela.object.section`. A source can
// just name the symbol: its object then says when the relocation is applied, and without a position there is only one of that name.

import type { Addr } from "../base/addr.ts";
import { refuse } from "../base/refuse.ts";
import type { Relocation } from "../x86/object.ts";
import { type Image, VMLINUX } from "./image.ts";
import { FIELD_WIDTH, relocate } from "./relocate.ts";
import type { ImageSymbol } from "./symbolTable.ts";

export interface LivepatchSymbol {
  readonly object: string;
  readonly name: string;
  /** Which of several symbols of that name, by address from 1 up; 0: there is only one. */
  readonly sympos: number;
}

export interface LivepatchRelocation {
  /** By whose coming it is applied. */
  readonly object: string;
  readonly symbol: LivepatchSymbol;
  /** Of the field. */
  readonly at: Addr;
  readonly relocation: Relocation;
  /** Object file and section of the field, for messages. */
  readonly place: string;
}

const PREFIX = ".klp.sym.";
const LIST = "`lab.ftrace.records` lists what can be patched";

/** What a relocation that `place` asks for, against the symbol called `symbol`, has to wait for; undefined for an ordinary one. */
export function livepatchRelocation(
  relocation: Relocation,
  symbol: string,
  at: Addr,
  place: string,
): LivepatchRelocation | undefined {
  const { livepatch } = relocation;
  if (livepatch === undefined && !symbol.startsWith(PREFIX)) return undefined;
  const [, object, name, position] = /^\.klp\.sym\.([^.,]+)\.([^,]+)(?:,(\d+))?$/.exec(symbol) ?? [];
  if (object === undefined || name === undefined) return refuse("klp-symbol-name", { place, symbol });
  // Or it would be applied at whatever time that object comes, to code that the kernel may be executing.
  if (livepatch !== undefined && livepatch !== VMLINUX && object === VMLINUX)
    refuse("klp-symbol-object", { place, symbol: name, object: livepatch });
  if (livepatch === VMLINUX && object !== VMLINUX)
    refuse("klp-symbol-early", { place, symbol: name, object });
  return {
    object: livepatch ?? object,
    symbol: { object, name, sympos: Number(position ?? 0) },
    ...{ at, relocation, place },
  };
}

/** What comes of looking for a symbol: the one of that name, or the one at that position of several. */
export type Located =
  | { readonly kind: "found"; readonly symbol: ImageSymbol }
  /** `hint` is what to do next. */
  | { readonly kind: "none"; readonly hint: string }
  | { readonly kind: "ambiguous"; readonly count: number }
  | { readonly kind: "no-position"; readonly count: number };

/** Finds a symbol as live patching does, by name and position among those in `image` that `fits`. */
export function locate(
  image: Image,
  { name, sympos }: Pick<LivepatchSymbol, "name" | "sympos">,
  fits: (symbol: ImageSymbol) => boolean = () => true,
): Located {
  const found = image.named(name).filter(fits);
  if (found.length === 0) return { kind: "none", hint: image.hint(name) ?? LIST };
  if (sympos === 0 && found.length > 1) return { kind: "ambiguous", count: found.length };
  const symbol = found[Math.max(0, sympos - 1)];
  return symbol === undefined ? { kind: "no-position", count: found.length } : { kind: "found", symbol };
}

/** Refuses what is not found, or not the only one, with the kernel's error; `patch` is whose search it was. */
export function theOne(
  patch: string,
  { object, name: func, sympos }: LivepatchSymbol,
  found: Located,
): ImageSymbol {
  const names = { patch, func, object };
  switch (found.kind) {
    case "found":
      return found.symbol;
    case "none":
      return refuse("klp-no-symbol", { ...names, hint: found.hint });
    case "ambiguous":
      return refuse("klp-ambiguous", { ...names, count: found.count });
    case "no-position":
      return refuse("klp-no-position", { ...names, sympos, count: found.count });
  }
}

/** The bytes of the field once its symbol is at `target`. Refuses a field that cannot hold them. */
export function fieldBytes({ relocation, at, symbol, place }: LivepatchRelocation, target: Addr): Uint8Array {
  const bytes = new Uint8Array(FIELD_WIDTH[relocation.type]);
  relocate({ ...relocation, offset: 0 }, { bytes, at, target, symbol: symbol.name, place });
  return bytes;
}
