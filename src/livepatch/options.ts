// How live patching goes about it: times, rules that can be chosen, and what can be left out to see what comes of it.

import type { Unwinder } from "../unwind/walk.ts";

/**
 * The orders of writes that matter, each with whom it pairs with. To see why, each can be turned round.
 *
 * - target-before-pending: klp_target_state before TIF_PATCH_PENDING; klp_update_patch_state() clears the one, then reads the other.
 * - states-before-transition: every patch_state before func->transition; the handler reads the one, then the other.
 * - transition-before-stack: on enable, func->transition before the function is on its stack; the handler reads the stack first.
 * - transition-before-pending: on disable, func->transition before TIF_PATCH_PENDING; a task that has been switched must
 *   not find the function out of transition.
 */
export const ORDERS = [
  "target-before-pending",
  "states-before-transition",
  "transition-before-stack",
  "transition-before-pending",
] as const;
export type Order = (typeof ORDERS)[number];

export interface LivepatchOptions {
  /** Between two looks at tasks that could not be switched, in nanoseconds of guest time; default a second. */
  readonly retryEvery?: number;
  /** After so many of them tasks get a signal that is none; default 15. */
  readonly signalsTimeout?: number;
  /** Whether an address that is pending in a trampoline counts as on the stack; upstream's rule is false. Default true. */
  readonly pending?: boolean;
  /** What walks the stacks of tasks that do not run; default ORC. */
  readonly unwinder?: Unwinder;
  /** Only the latest patch may be disabled, as it was before atomic replace; default false. */
  readonly onlyOnTop?: boolean;
  /** Orders of writes that are turned round, to see what comes of it. */
  readonly weakened?: readonly Order[];
  /** No grace periods, to see what comes of it. */
  readonly noGrace?: boolean;
  /** Messages of level debug are logged, but for those below; default true. */
  readonly debug?: boolean;
  /** Why a task was not switched is logged at each look at it, as klp_try_switch_task() does; default false. */
  readonly trace?: boolean;
}
