// Structures that trampolines, handlers and the breakpoint's handler share with TypeScript.

import { layout } from "../machine/struct.ts";

/**
 * Who is called at sites. `next` chains all that are registered; `hash` has the sites that it is to be called for, for
 * the list function; `private` is the handler's to interpret.
 */
export const FTRACE_OPS = layout("ftrace_ops", {
  func: 8,
  private: 8,
  next: "struct ftrace_ops *",
  hash: "struct ftrace_hash *",
  flags: 4,
});

/** `flags` of an ops (Linux include/linux/ftrace.h, 6.1). */
export const FTRACE_OPS_FLAG = {
  FTRACE_OPS_FL_ENABLED: 1 << 0,
  FTRACE_OPS_FL_DYNAMIC: 1 << 1,
  /** It wants a whole pt_regs. */
  FTRACE_OPS_FL_SAVE_REGS: 1 << 2,
  /** It does not guard itself against being called for what it calls. */
  FTRACE_OPS_FL_RECURSION: 1 << 4,
  /** It may change where the traced function goes on: at most one of those at a site. */
  FTRACE_OPS_FL_IPMODIFY: 1 << 12,
  /** It must not be switched off for all. */
  FTRACE_OPS_FL_PERMANENT: 1 << 16,
  /** Its sites call code that takes the trampoline's place. */
  FTRACE_OPS_FL_DIRECT: 1 << 17,
} as const;

/** `flags` of a site's record, above the count of those who want to be called there (Linux include/linux/ftrace.h, 6.1). */
export const FTRACE_FL = {
  FTRACE_FL_ENABLED: 2 ** 31,
  FTRACE_FL_REGS: 2 ** 30,
  FTRACE_FL_REGS_EN: 2 ** 29,
  FTRACE_FL_TRAMP: 2 ** 28,
  FTRACE_FL_TRAMP_EN: 2 ** 27,
  FTRACE_FL_IPMODIFY: 2 ** 26,
  FTRACE_FL_DISABLED: 2 ** 25,
  FTRACE_FL_DIRECT: 2 ** 24,
  FTRACE_FL_DIRECT_EN: 2 ** 23,
} as const;

/** What a handler is called with, for one that is not in guest code. */
export const TRACED_CALL = layout("traced_call", {
  ip: 8,
  parent_ip: 8,
  ops: "struct ftrace_ops *",
  regs: "struct pt_regs *",
});

/** A set of addresses: `mask` + 1 words behind it, of which each address has the first free one from its own place on. */
export const FTRACE_HASH = layout("ftrace_hash", { mask: 8 });

/** An instruction that is being written over another: what a CPU does that meets the breakpoint on it. */
export const TEXT_POKE_LOC = layout("text_poke_loc", { ip: 8, target: 8, opcode: 4 });

/** What is being written: `nr_entries` of them from `vec` on, by address. Nobody frees them before `refs` is zero. */
export const BP_PATCHING_DESC = layout("bp_patching_desc", {
  vec: "struct text_poke_loc *",
  nr_entries: 4,
  refs: 4,
});

/** First bytes of what a call site can be (SDM vol. 2). */
export const OPCODE = {
  CALL_INSN_OPCODE: 0xe8,
  JMP32_INSN_OPCODE: 0xe9,
  NOP_INSN_OPCODE: 0x0f,
  INT3_INSN_OPCODE: 0xcc,
} as const;
