// How live patching goes about it: times, rules that can be chosen, and what can be left out to see what comes of it.

import { refuse } from "../base/refuse.ts";
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

/**
 * What else holds a transition together, and can be left out.
 *
 * - grace-period: a handler that has begun ends with the states that it began with.
 * - pending-ip: an address counts as on the stack that a preempted trampoline is going to return to. Upstream does without.
 * - interrupted-frame: the stack check looks at where a task was interrupted, and not only at what it returns to.
 * - newest-entry: of the replacements of a function it looks for the newest, which tasks are in, and not only for those below.
 */
export const PRECAUTIONS = ["grace-period", "pending-ip", "interrupted-frame", "newest-entry"] as const;

/** One of all that. */
export const WEAKENINGS = [...ORDERS, ...PRECAUTIONS] as const;
export type Weakening = (typeof WEAKENINGS)[number];

/** Of messages, the weightiest first: a level is logged with all before it. `trace` is why a task was not switched, at each look. */
export const LOG_LEVELS = ["err", "warn", "notice", "debug", "trace"] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

export interface LivepatchOptions {
  /** Between two looks at tasks that could not be switched, in nanoseconds of guest time; default a second. */
  readonly retryEvery?: number;
  /** After so many of them tasks get a signal that is none; default 15. */
  readonly signalsTimeout?: number;
  /** What walks the stacks of tasks that do not run; default ORC. */
  readonly unwinder?: Unwinder;
  /** Only the latest patch may be disabled, as it was before atomic replace; default false. */
  readonly onlyOnTop?: boolean;
  /** Orders that are turned round and precautions that are left out, to see what comes of it. */
  readonly weakened?: readonly Weakening[];
  /** How much is logged; default `debug`. */
  readonly logLevel?: LogLevel;
}

/** Refuses times that are none, and names that are not known. */
export function refuseOptions({
  retryEvery,
  signalsTimeout,
  weakened = [],
  logLevel = "debug",
}: LivepatchOptions): void {
  for (const [option, value] of Object.entries({ retryEvery, signalsTimeout }))
    if (value !== undefined && !(value >= 1))
      refuse("klp-option", { option, value, advice: "give a number from 1 up" });
  const unknown = weakened.find((what) => !WEAKENINGS.includes(what));
  if (unknown !== undefined)
    refuse("klp-option", {
      option: "weakened",
      value: unknown,
      advice: `there are: ${WEAKENINGS.join(", ")}`,
    });
  if (!LOG_LEVELS.includes(logLevel))
    refuse("klp-option", {
      option: "logLevel",
      value: logLevel,
      advice: `there are: ${LOG_LEVELS.join(", ")}`,
    });
}
