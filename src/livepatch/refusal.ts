// Refusals as values, where a step of the agenda has to go on with what was refused.

import { Refusal, type RefusalCode, type RefusalParams, refuse } from "../base/refuse.ts";
import { ERROR } from "../kernel/layout.ts";

/** A refusal's number in the kernel: EINVAL's if it has none. */
export function errnoOf({ errno }: Refusal): number {
  return ERROR[errno as keyof typeof ERROR] ?? ERROR.EINVAL;
}

/** The refusal `code`, not thrown. */
export function refusal<C extends RefusalCode>(code: C, params: RefusalParams<C>): Refusal {
  return refusalOf(() => refuse(code, params))!;
}

/** What `run` refuses; undefined if it does not. */
export function refusalOf(run: () => void): Refusal | undefined {
  try {
    run();
  } catch (error) {
    if (error instanceof Refusal) return error;
    throw error;
  }
  return undefined;
}
