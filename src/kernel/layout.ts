// The kernel's structures as guest code knows them, and the constants that go with them.

import { layout } from "../machine/struct.ts";

/** A task. Its stack's lowest address is `stack`; `sp` is its stack pointer while it is not running. */
export const TASK = layout("task", { pid: 4, patch_state: 4, stack: 8, sp: 8 });

/** A task's `patch_state` (Linux include/linux/livepatch.h): undefined outside transitions. */
export const PATCH_STATE = { KLP_UNDEFINED: -1, KLP_UNPATCHED: 0, KLP_PATCHED: 1 } as const;
export type PatchState = keyof typeof PATCH_STATE;

/** What gs points at on each vCPU. */
export const CPU = layout("cpu", { current: 8, number: 4 });

export const FILE = layout("file", { ops: 8, pos: 8, size_bytes: 8, data: 8 });
export const FILE_OPERATIONS = layout("file_operations", { read: 8 });

/** Selectors (Linux arch/x86/include/asm/segment.h), table sizes, error numbers. */
export const CONSTANTS = {
  KERNEL_CS: 0x10,
  KERNEL_DS: 0x18,
  NR_FILES: 4,
  EBADF: 9,
} as const;
