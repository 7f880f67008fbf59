// What saved registers on a stack are of: kernel code that was interrupted, or user mode, where the walk ends.
//
// A pt_regs ends in the frame that the hardware pushed: ip, cs, flags, sp, ss. It pushes that where rsp was, aligned
// down, or at the beginning of a stack of its own. An NMI's entry code copies it, and a breakpoint's moves it (asm/entry.S). A
// frame anywhere else is none (SDM vol. 3, 6.14.2 and 6.14.5).

import type { Addr } from "../base/addr.ts";
import { INT3_GAP, NMI_COPY, PT_REGS } from "../machine/ptRegs.ts";
import type { Doubt, StackInfo, UnwindContext } from "./walk.ts";

/** Where the hardware's frame begins in a pt_regs, and how large it is. */
export const HARDWARE_FRAME = PT_REGS.fields.ip.offset;
export const HARDWARE_FRAME_SIZE = PT_REGS.size - HARDWARE_FRAME;

/** What the hardware makes rsp a multiple of before it pushes. */
const ALIGNMENT = 16;
const USER_LEVEL = 3;

/** What was interrupted, of the hardware's frame at `frame` on `stack`; or why it is no such frame. */
export function interrupted(
  context: UnwindContext,
  frame: Addr,
  stack: StackInfo,
): "kernel" | "user" | Doubt {
  const saved = (field: "ip" | "cs" | "sp" | "ss") =>
    context.read((frame + PT_REGS.fields[field].offset - HARDWARE_FRAME) as Addr)!;
  const end = (frame + HARDWARE_FRAME_SIZE) as Addr;
  const isFirst = isFirstOn(stack, end, saved("sp"));
  if (saved("cs") % 4 !== 0) {
    // A selector's low bits are its privilege level; user mode has the lower half of all addresses.
    const user = (["cs", "ss"] as const).every((segment) => saved(segment) % 4 === USER_LEVEL);
    const inLowerHalf = saved("ip") >= 0 && saved("sp") >= 0;
    return user && inLowerHalf && (isBeginning(context, end) || isFirst) ? "user" : "early-end";
  }
  const isThere = alignedDown(saved("sp")) === end || isMoved(context, end, saved("sp"));
  return isThere || isFirst ? "kernel" : "saved-sp";
}

/**
 * Whether the frame up to `end` is a breakpoint's, moved down from where the hardware pushed it; that is still there, but for
 * a word at its end. The handler may have made rsp, now `sp`, one word less than it was.
 */
function isMoved(context: UnwindContext, end: Addr, sp: number): boolean {
  const original = (end + INT3_GAP) as Addr;
  const before = context.read(
    (original - HARDWARE_FRAME_SIZE + PT_REGS.fields.sp.offset - HARDWARE_FRAME) as Addr,
  );
  if (before === undefined || alignedDown(before) !== original) return false;
  return sp === before || sp === before - 8;
}

function alignedDown(sp: number): number {
  return Math.floor(sp / ALIGNMENT) * ALIGNMENT;
}

/**
 * Whether what the hardware pushed, up to `end`, is the first on a stack that it has switched to: at the stack's beginning, or an
 * NMI's copy. Above a copy nothing runs, so the code that was interrupted, with its rsp `sp`, was on another stack.
 */
function isFirstOn({ kind, low, high }: StackInfo, end: Addr, sp: number): boolean {
  if (kind !== "exception") return false;
  return end === high || (end === high - NMI_COPY && (sp < low || sp > high));
}

/** Whether a task's stack begins at `sp`: nothing is above it. */
export function isBeginning(context: UnwindContext, sp: Addr): boolean {
  const stack = context.stackAt((sp - 8) as Addr);
  return stack?.kind === "task" && stack.high === sp;
}
