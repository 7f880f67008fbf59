// How live patching goes about it: times, rules that can be chosen, and what can be left out to see what comes of it.

import { refuse } from "../base/refuse.ts";
import type { Unwinder } from "../unwind/walk.ts";

/** What a transition begins with, one phase after the other; callbacks (of disabling) and stack (of enabling) are of one alone. */
export const PHASES = ["target", "states", "transition", "callbacks", "stack", "pending"] as const;
export type Phase = (typeof PHASES)[number];

interface Turn {
  /** The phase that is made to come right behind the other one, which pairs with it. */
  readonly move: Phase;
  readonly behind: Phase;
  readonly when: "enabling" | "disabling" | "both";
}

/**
 * The orders of writes that matter, each with whom it pairs with. To see why, each can be turned round, as it says.
 *
 * - target-before-pending: klp_target_state before TIF_PATCH_PENDING; klp_update_patch_state() clears the one, then reads the other.
 * - states-before-transition: every patch_state before func->transition; the handler reads the one, then the other.
 * - transition-before-stack: on enable, func->transition before the function is on its stack; the handler reads the stack first.
 * - transition-before-pending: on disable, func->transition before TIF_PATCH_PENDING; a task that has been switched must
 *   not find the function out of transition.
 */
export const ORDERS = {
  "target-before-pending": { move: "target", behind: "pending", when: "both" },
  "states-before-transition": { move: "states", behind: "transition", when: "both" },
  "transition-before-stack": { move: "transition", behind: "stack", when: "enabling" },
  "transition-before-pending": { move: "transition", behind: "pending", when: "disabling" },
} as const satisfies Record<string, Turn>;
export type Order = keyof typeof ORDERS;

/** The phases in the order that they should have, or with the weakened orders turned round. */
export function phasesOf(when: "enabling" | "disabling", weakened: readonly Weakening[]): readonly Phase[] {
  const not: Phase = when === "enabling" ? "callbacks" : "stack";
  const phases = PHASES.filter((phase) => phase !== not);
  for (const what of weakened) {
    const turn: Turn | undefined = Object.hasOwn(ORDERS, what) ? ORDERS[what as Order] : undefined;
    if (turn === undefined || (turn.when !== "both" && turn.when !== when)) continue;
    phases.splice(phases.indexOf(turn.move), 1);
    phases.splice(phases.indexOf(turn.behind) + 1, 0, turn.move);
  }
  return phases;
}

/**
 * What else holds a transition together, and can be left out.
 *
 * - grace-period: a handler that has begun ends with the states that it began with.
 * - pending-ip: an address counts as on the stack that a preempted trampoline is going to return to. Upstream does without.
 * - interrupted-frame: the stack check looks at where a task was interrupted, and not only at what it returns to.
 * - newest-entry: of the replacements of a function it looks for the newest, which tasks are in, and not only for those below.
 * - fork: a new task is in the universe that its parent is in.
 */
export const PRECAUTIONS = [
  "grace-period",
  "pending-ip",
  "interrupted-frame",
  "newest-entry",
  "fork",
] as const;

/** One of all that. */
export type Weakening = Order | (typeof PRECAUTIONS)[number];
export const WEAKENINGS: readonly Weakening[] = [...(Object.keys(ORDERS) as Order[]), ...PRECAUTIONS];

/** Of messages, the weightiest first: a level is logged with all before it. `trace` is why a task was not switched, at each look. */
export const LOG_LEVELS = ["err", "warn", "notice", "debug", "trace"] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];
export const DEFAULT_LOG_LEVEL: LogLevel = "debug";

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

/** What there is, so that a slip of the pen is not taken for the default. */
const OPTIONS: Readonly<Record<keyof LivepatchOptions, true>> = {
  retryEvery: true,
  signalsTimeout: true,
  unwinder: true,
  onlyOnTop: true,
  weakened: true,
  logLevel: true,
};

/** Refuses options that there are not, times that are none, and names that are not known. */
export function refuseOptions(options: LivepatchOptions): void {
  const refused = (option: string, value: unknown, advice: string) =>
    refuse("klp-option", { option, value: String(value), advice });
  const known = (names: readonly string[]) => `there are: ${names.join(", ")}`;
  for (const [option, value] of Object.entries(options))
    if (!Object.hasOwn(OPTIONS, option)) refused(option, value, known(Object.keys(OPTIONS)));
  const { retryEvery = 1, signalsTimeout = 1, weakened = [], logLevel = DEFAULT_LOG_LEVEL } = options;
  for (const [option, value] of Object.entries({ retryEvery, signalsTimeout }))
    if (!(value >= 1)) refused(option, value, "give a number from 1 up");
  if (!Array.isArray(weakened)) refused("weakened", weakened, "give a list of what is left out");
  for (const what of weakened) if (!WEAKENINGS.includes(what)) refused("weakened", what, known(WEAKENINGS));
  if (!LOG_LEVELS.includes(logLevel)) refused("logLevel", logLevel, known(LOG_LEVELS));
}
