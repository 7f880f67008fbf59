// The kernel's structures as guest code knows them, and the constants that go with them.

import { STACK_SIZE } from "../machine/callRecord.ts";
import { layout } from "../machine/struct.ts";

/**
 * A task. Its stack's lowest address is `stack`; `sp` is its stack pointer while it is not running. `ret_stack` has
 * `ret_depth` entries for return addresses that were replaced on the stack, the innermost last.
 */
export const TASK = layout("task", {
  pid: 4,
  patch_state: 4,
  stack: 8,
  sp: 8,
  ret_stack: 8,
  ret_depth: 4,
});

/** One return address that was replaced: what it was, and the slot it was in (Linux include/linux/ftrace.h). */
export const RET_STACK = layout("ret_stack", { ret: 8, slot: 8 });

/** A task's `patch_state` (Linux include/linux/livepatch.h): undefined outside transitions. */
export const PATCH_STATE = { KLP_UNDEFINED: -1, KLP_UNPATCHED: 0, KLP_PATCHED: 1 } as const;
export type PatchState = keyof typeof PATCH_STATE;

/**
 * What gs points at on each vCPU. `next` is the task to switch to at the next chance, zero for none; `irq_stack` the
 * topmost word of the stack that interrupts are handled on; `ticks` and `nmis` count.
 */
export const CPU = layout("cpu", {
  current: 8,
  next: 8,
  irq_stack: 8,
  ticks: 8,
  nmis: 8,
  number: 4,
  preempt_count: 4,
  need_resched: 4,
});

/** What switch_to leaves at the `sp` of a task that does not run (Linux arch/x86/include/asm/switch_to.h). */
export const INACTIVE_TASK_FRAME = layout("inactive_task_frame", {
  r15: 8,
  r14: 8,
  r13: 8,
  r12: 8,
  bx: 8,
  bp: 8,
  ret_addr: 8,
});

export const FILE = layout("file", { ops: 8, pos: 8, size_bytes: 8, data: 8 });
export const FILE_OPERATIONS = layout("file_operations", { read: 8 });

/** Segment selectors (Linux arch/x86/include/asm/segment.h). */
export const SELECTOR = {
  KERNEL_CS: 0x10,
  KERNEL_DS: 0x18,
  USER_DS: 0x2b,
  USER_CS: 0x33,
  TSS: 0x40,
} as const;

/** Interrupt vectors (Linux arch/x86/include/asm/irq_vectors.h), and NMI's. */
export const VECTORS = { NMI_VECTOR: 2, TIMER_VECTOR: 0xec } as const;

/** Table sizes, flags, error numbers. */
export const CONSTANTS = {
  ...SELECTOR,
  ...VECTORS,
  X86_EFLAGS_IF: 0x200,
  STACK_SIZE,
  /** Entries of a task's ret_stack. */
  MAX_RET_DEPTH: 50,
  NR_FILES: 4,
  EBADF: 9,
} as const;
