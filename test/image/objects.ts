// Small object files written by hand, for what no compiler can be made to say.

import type { ObjectFile, ObjectSymbol, Relocation, Section } from "../../src/x86/object.ts";

export function section(name: string, size: number, more: Partial<Section> = {}): Section {
  const flags = {
    write: name === ".data" || name === ".bss",
    execute: name.startsWith(".text"),
    alloc: true,
  };
  const bytes = new Uint8Array(name === ".bss" ? 0 : size).fill(0x90);
  return { name, ...flags, align: 1, size, bytes, relocations: [], ...more };
}

/** A global function in section 0. */
export function symbol(name: string, value: number, more: Partial<ObjectSymbol> = {}): ObjectSymbol {
  return { name, kind: "func", binding: "global", section: 0, value, size: 0, ...more };
}

/** A reference to what another object defines. */
export function reference(name: string, binding: "global" | "weak" = "global"): ObjectSymbol {
  return { name, kind: "none", binding, section: null, value: 0, size: 0 };
}

export function object(name: string, sections: Section[], symbols: ObjectSymbol[]): ObjectFile {
  return { name, sections, symbols };
}

/** An object whose only section is `.text` of 16 bytes, with an 8-byte field at 0 for each relocation asked for. */
export function referring(name: string, type: Relocation["type"], to: ObjectSymbol, addend = 0): ObjectFile {
  const relocations = [{ offset: 0, type, symbol: 0, addend }];
  return object(name, [section(".text", 16, { relocations })], [to]);
}
