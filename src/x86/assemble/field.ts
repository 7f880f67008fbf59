// Filling one field at layout: the value itself, or zero and a relocation for the linker.
//
// Which relocation, and when the assembler decides alone, is GNU as's choice, but for calls to a global
// function of the same section: those are resolved here as jumps are.

import type { Relocation, RelocationType } from "../object.ts";
import { type Distance, evaluate } from "./expression.ts";
import { fail } from "./fault.ts";
import type { Fixup, SectionBuilder } from "./section.ts";
import type { SourceSymbol } from "./symbol.ts";

/** What filling a field needs to know of the finished layout. */
export interface Surroundings {
  readonly section: SectionBuilder;
  readonly distance: Distance;
  /** A label's offset in its section. */
  offsetOf(symbol: SourceSymbol): number;
  /** The index in `ObjectFile.symbols` to relocate against, and what to add for it. */
  reference(symbol: SourceSymbol): { readonly symbol: number; readonly offset: number };
}

/** Writes the field of `fixup`, which starts at `at`, into the section's `bytes`; returns the relocation it needs, if any. */
export function fillField(
  bytes: Uint8Array,
  at: number,
  fixup: Fixup,
  around: Surroundings,
): Relocation | null {
  const { number, plus, minus } = evaluate(fixup.expression, around.distance);
  const [symbol] = plus;
  const [origin] = minus;
  const relocate = (type: RelocationType, to: SourceSymbol, addend: number): Relocation => {
    const { symbol: index, offset } = around.reference(to);
    return { offset: at, type, symbol: index, addend: addend + offset };
  };
  const unknown = [...plus, ...minus].find(
    ({ label, value, binding }) => !label && !value && binding === "local",
  );
  if (plus.length > 1 || minus.length > 1 || (!symbol && origin))
    return fail(
      `no relocation can express this: ${unknown ? `'${unknown.name}' is not defined here` : "too many labels"}`,
    );

  if (fixup.toEnd !== null) {
    if (!symbol || origin) return fail("this wants a label, not a number");
    const branch = fixup.type === "R_X86_64_PLT32";
    const here = symbol.label?.section === around.section;
    if (here && (symbol.binding === "local" || (branch && symbol.binding === "global"))) {
      store(bytes, at, fixup.size, BigInt(around.offsetOf(symbol)) + number - BigInt(at + fixup.toEnd), true);
      return null;
    }
    if (fixup.size !== 4)
      return fail(`'${symbol.name}' is not in this section; this branch has no long form`);
    const section = symbol.label && symbol.binding === "local";
    return relocate(
      branch && !section ? "R_X86_64_PLT32" : "R_X86_64_PC32",
      symbol,
      Number(number) - fixup.toEnd,
    );
  }

  if (!symbol) {
    store(bytes, at, fixup.size, number, fixup.type === "R_X86_64_32S");
    return null;
  }
  if (!origin) {
    if (!fixup.type) return fail(`'${symbol.name}' is an address; no relocation fits ${fixup.size} byte(s)`);
    return relocate(fixup.type, symbol, Number(number));
  }
  if (origin.label?.section !== around.section)
    return fail(`'${origin.name}' is not in this section: their distance is not known`);
  const addend = Number(number) + at - around.offsetOf(origin);
  if (fixup.size === 4) return relocate("R_X86_64_PC32", symbol, addend);
  if (fixup.size === 8) return relocate("R_X86_64_PC64", symbol, addend);
  return fail(`no relocation for a distance fits ${fixup.size} byte(s)`);
}

/** Writes `value`, little-endian; refuses what the field cannot hold (signed or, unless `signed`, unsigned). */
export function store(
  bytes: Uint8Array | number[],
  at: number,
  size: number,
  value: bigint,
  signed = false,
): void {
  const bits = BigInt(size * 8);
  const high = 1n << (signed ? bits - 1n : bits);
  if (size < 8 && (value < -(1n << (bits - 1n)) || value >= high))
    fail(`${value} does not fit ${size} byte(s)`);
  for (let i = 0; i < size; i++) bytes[at + i] = Number((value >> BigInt(8 * i)) & 0xffn);
}
