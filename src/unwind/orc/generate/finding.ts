// What is wrong with code whose stack is followed: values, with a sentence each.

import type { Addr } from "../../../base/addr.ts";
import { describeRule, type OrcRule } from "../entry.ts";

/** By kind: what holds at the finding's address. Entries are UNDEFINED wherever the stack's state is lost or in doubt. */
export const FINDINGS = {
  contradiction: "paths with different stacks meet here",
  "frame-lost": "behind this instruction nothing says where the frame is; a hint can",
  "rbp-lost": "this instruction overwrites the caller's rbp, and it is saved nowhere",
  "frame-too-large": "behind this instruction the frame is too large for ORC's 16-bit offsets",
  "return-unbalanced": "a return with the stack or rbp not as at the function's entry",
  "tail-unbalanced": "a jump to another function with the stack or rbp not as at this one's entry",
  "return-with-registers": "a return from where saved registers are on top of the stack",
  "tail-with-registers": "a jump to a function that expects a call, with saved registers on top of the stack",
  "iret-unbalanced": "an iret with rsp not at an iret frame",
  "falls-through": "execution runs on into the next function",
  "runs-out": "execution runs into what is no instruction",
  "call-inside": "a call into the middle of a function, where no hint says what the stack is",
} as const;

export type FindingKind = keyof typeof FINDINGS;

export interface OrcFinding {
  readonly kind: FindingKind;
  readonly at: Addr;
  /** The states in question: those that meet, or that of the instruction; each with the instruction it comes from. */
  readonly states: readonly { readonly from: Addr; readonly rule: OrcRule }[];
}

/** One line; `describe` says what is at an address. */
export function describeFinding({ kind, at, states }: OrcFinding, describe: (at: Addr) => string): string {
  const rules = states.map(({ from, rule }) =>
    from === at ? describeRule(rule) : `${describeRule(rule)} from ${describe(from)}`,
  );
  return `${describe(at)}: ${FINDINGS[kind]} (${rules.join("; ")})`;
}
