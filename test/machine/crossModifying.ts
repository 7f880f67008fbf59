// Machines whose vCPUs see stores to code late, and a chooser that tries everything.

import { parseHexBytes } from "../../src/base/bytes.ts";
import type { Machine } from "../../src/machine/machine.ts";
import {
  type FetchChooser,
  type MixedFetch,
  newest,
  type StaleUntilSerialised,
} from "../../src/machine/staleCode.ts";
import { type Guest, makeGuest } from "./guest.ts";

/** Chooses with a function that can be changed, executes what is mixed, and notes it. */
export class Staleness implements StaleUntilSerialised {
  readonly kind = "stale-until-serialised";
  by: FetchChooser = newest;
  answer: "stop" | "execute" = "execute";
  readonly reports: MixedFetch[] = [];
  readonly choose: FetchChooser = (byte) => this.by(byte);
  readonly mixed = (fetch: MixedFetch): "stop" | "execute" => {
    this.reports.push(fetch);
    return this.answer;
  };
}

export interface StaleGuest extends Guest {
  readonly code: Staleness;
}

/** `makeGuest`, with two vCPUs that have seen everything so far. */
export function staleGuest(text: string | Uint8Array, vcpus = 2): StaleGuest {
  const code = new Staleness();
  const guest = makeGuest(text, { vcpus, code });
  serialiseAll(guest.machine);
  return { ...guest, code };
}

export function serialiseAll({ vcpus }: Machine): void {
  for (const vcpu of vcpus) vcpu.serialise();
}

export const bytes = (hex: string): Uint8Array => parseHexBytes(hex);

/** Answers with numbers below `count`. */
export type Choose = (count: number) => number;

/** Calls `run`, which must do the same for the same answers, once for every series of answers that there is. */
export function everyChoice(run: (choose: Choose) => void): number {
  const taken: { index: number; readonly count: number }[] = [];
  for (let runs = 1; ; runs++) {
    let n = 0;
    run((count) => {
      if (n === taken.length) taken.push({ index: 0, count });
      return taken[n++]!.index;
    });
    while (taken.length > 0 && taken.at(-1)!.index + 1 === taken.at(-1)!.count) taken.pop();
    if (taken.length === 0) return runs;
    taken.at(-1)!.index++;
  }
}
