// Refusals as values, where a step of the agenda has to go on with what was refused.

import { Refusal } from "../base/refuse.ts";
import { ERROR } from "../kernel/layout.ts";

/** The error number that is in a refusal's text: EINVAL if none is. */
export function errnoOf(refusal: Refusal | undefined): number {
  const name = /\((E[A-Z]+)\)/.exec(refusal?.message ?? "")?.[1];
  return ERROR[name as keyof typeof ERROR] ?? ERROR.EINVAL;
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
