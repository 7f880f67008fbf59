// Where things live in the guest's address space, after Linux on x86-64 with four-level paging
// (Documentation/x86/x86_64/mm.rst of a kernel). Constants only: link.ts places what is loaded.

import { addr } from "../base/addr.ts";

/** Start of the kernel's own text. */
export const KERNEL_TEXT = addr(0xffffffff81000000n);

/** Start of module space: within 2 GiB of the kernel, so that 32-bit displacements reach it. */
export const MODULE_TEXT = addr(0xffffffffa0000000n);

/** Start of a user program, as `ld` places one that is not position-independent. */
export const USER_TEXT = addr(0x400000n);

/** Start of the direct map of physical memory. */
export const DIRECT_MAP = addr(0xffff888000000000n);

/** Start of the area that task stacks are cut from. */
export const STACKS = addr(0xffffc90000000000n);

/** Start of the area that the stacks of CPUs are cut from: for interrupts, double faults, NMIs. */
export const CPU_STACKS = addr(0xfffffe0000000000n);

/** Where text is shown a second time while it is written to: two pages, which nothing else uses. */
export const TEXT_ALIAS = addr(0xfffffe8000000000n);
