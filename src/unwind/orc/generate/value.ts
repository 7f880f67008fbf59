// What may be known of a 64-bit word while code is followed: nothing (undefined), a place, or a word of a jump table.

import type { Addr } from "../../../base/addr.ts";

/**
 * What an offset counts from: `cfa`, the frame's anchor; `rbp`, the caller's rbp; `absolute`, zero; `link`, the stack that
 * a hint says was switched to; else a stack pointer that an instruction aligned, named by that instruction's address.
 */
export type Base = string;

export interface Place {
  readonly kind: "place";
  readonly base: Base;
  readonly offset: number;
}

export type Value =
  | Place
  /** The address of some element of what begins at `table`: a known address with something unknown added. */
  | { readonly kind: "element"; readonly table: Addr }
  /** An address out of the jump table at `table`; if `relative`, its distance from the table with the table added. */
  | { readonly kind: "target"; readonly table: Addr; readonly relative: boolean }
  /** A word of a table of distances, not yet added to the table. */
  | { readonly kind: "distance"; readonly table: Addr };

export function place(base: Base, offset: number): Place {
  return { kind: "place", base, offset };
}

/** The caller's rbp. */
export const CALLERS_RBP = place("rbp", 0);

export function sameValue(a: Value | undefined, b: Value | undefined): boolean {
  if (a === b) return true;
  if (a?.kind === "place") return b?.kind === "place" && a.base === b.base && a.offset === b.offset;
  if (a === undefined || b === undefined || b.kind === "place" || a.table !== b.table) return false;
  return a.kind === "target" ? b.kind === "target" && a.relative === b.relative : a.kind === b.kind;
}

/** `value` moved by `bytes`, where that is a place again. */
export function moved(value: Value | undefined, bytes: number): Place | undefined {
  return value?.kind === "place" ? place(value.base, value.offset + bytes) : undefined;
}

/** `value` as an address that is known. */
export function absolute(value: Value | undefined): Addr | undefined {
  return value?.kind === "place" && value.base === "absolute" ? (value.offset as Addr) : undefined;
}

/** `value`'s distance from the frame's anchor. */
export function fromCfa(value: Value | undefined): number | undefined {
  return value?.kind === "place" && value.base === "cfa" ? value.offset : undefined;
}
