// Saved registers, as entry code and trampolines leave them on a stack.

import { layout } from "./struct.ts";

/** In the kernel's order (Linux arch/x86/include/asm/ptrace.h). */
export const PT_REGS = layout("pt_regs", {
  r15: 8,
  r14: 8,
  r13: 8,
  r12: 8,
  bp: 8,
  bx: 8,
  r11: 8,
  r10: 8,
  r9: 8,
  r8: 8,
  ax: 8,
  cx: 8,
  dx: 8,
  si: 8,
  di: 8,
  orig_ax: 8,
  ip: 8,
  cs: 8,
  flags: 8,
  sp: 8,
  ss: 8,
});

/**
 * How far below the end of an NMI's stack the frame ends that its entry code has copied from the end, where the next NMI
 * would overwrite it (asm/entry.S).
 */
export const NMI_COPY = 64;

/**
 * How far down a breakpoint's entry code moves the hardware's frame where the kernel was interrupted, so that a handler can push
 * there what the instruction in the breakpoint's place would (asm/entry.S).
 */
export const INT3_GAP = 48;
