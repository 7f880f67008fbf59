// ORC's rules: from an instruction's address and registers, where the frame and the caller's rbp are.
//
// Names are those of the kernel's tables. The anchor of a frame is `cfa`: for CALL the caller's rsp before its
// call, so that the return address lies 8 below; for REGS the address of a pt_regs, for REGS_PARTIAL that of an iret frame.

import type { Addr } from "../../base/addr.ts";

/**
 * UNDEFINED: nothing is known. END_OF_STACK: no caller, by design. END_6_1: what Linux 6.1 calls `end`, which says either of
 * the two, and not which.
 */
export type OrcType = "UNDEFINED" | "END_OF_STACK" | "END_6_1" | "CALL" | "REGS" | "REGS_PARTIAL";

/**
 * What the cfa is found from: a register plus offset, but for `bp-indirect` the word at rbp + offset, and for `sp-indirect` the
 * word at rsp, plus offset.
 */
export type CfaRegister =
  | "undefined"
  | "dx"
  | "di"
  | "bp"
  | "sp"
  | "r10"
  | "r13"
  | "bp-indirect"
  | "sp-indirect";

/** Where the caller's rbp is: unchanged in rbp (`undefined`), or in memory at cfa + offset (`prevsp`) or at rbp + offset. */
export type BpRegister = "undefined" | "prevsp" | "bp";

export interface OrcRule {
  readonly type: OrcType;
  /** `undefined` for the types without a frame, and for no other. */
  readonly cfa: { readonly register: CfaRegister; readonly offset: number };
  readonly bp: { readonly register: BpRegister; readonly offset: number };
  /** The frame is of an interrupted instruction, so that its address is none of a return. */
  readonly signal: boolean;
}

/** The rule from `address` up to the next entry's. */
export interface OrcEntry extends OrcRule {
  readonly address: Addr;
}

const NOWHERE = { register: "undefined", offset: 0 } as const;

/** The rule of a type that has no frame. */
export function frameless(type: "UNDEFINED" | "END_OF_STACK" | "END_6_1"): OrcRule {
  return { type, cfa: NOWHERE, bp: NOWHERE, signal: false };
}

export const UNDEFINED = frameless("UNDEFINED");

export function sameRule(a: OrcRule, b: OrcRule): boolean {
  return (
    a.type === b.type &&
    a.signal === b.signal &&
    a.cfa.register === b.cfa.register &&
    a.cfa.offset === b.cfa.offset &&
    a.bp.register === b.bp.register &&
    a.bp.offset === b.bp.offset
  );
}

/** `entries`, which are by address, without those that repeat the rule before them or end where they begin. */
export function mergeEqual(entries: readonly OrcEntry[]): OrcEntry[] {
  const merged: OrcEntry[] = [];
  for (const [n, entry] of entries.entries()) {
    if (entry.address === entries[n + 1]?.address) continue;
    const last = merged.at(-1);
    if (last === undefined || !sameRule(entry, last)) merged.push(entry);
  }
  return merged;
}

/** A rule in the kernel's notation: `CALL cfa:sp+16 bp:prevsp-16`. */
export function describeRule({ type, cfa, bp, signal }: OrcRule): string {
  if (cfa.register === "undefined") return type;
  const text = `${type} cfa:${describeCfa(cfa)} bp:${describeBp(bp)}`;
  return signal ? `${text} signal` : text;
}

export function describeCfa({ register, offset }: OrcRule["cfa"]): string {
  if (register === "undefined") return "(und)";
  if (register === "bp-indirect") return `(bp${signed(offset)})`;
  if (register === "sp-indirect") return `(sp)${signed(offset)}`;
  return `${register}${signed(offset)}`;
}

export function describeBp({ register, offset }: OrcRule["bp"]): string {
  return register === "undefined" ? "(und)" : `${register}${signed(offset)}`;
}

function signed(value: number): string {
  return value < 0 ? `${value}` : `+${value}`;
}
