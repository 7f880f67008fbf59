// A watchdog that knows no clock: what spends no budget must not go on for ever.

import type { Machine } from "../../src/machine/machine.ts";
import type { Trunk } from "../../src/machine/trunk.ts";

/** Calls of the trunk for each unit of budget, with room for what costs none: TLB misses, decoding. */
const CALLS_PER_UNIT = 64;
const CALLS = 10_000;

/** Does `act`, which may execute `budget` instructions and deliveries. Throws if it goes on without spending any. */
export function watched<T>(machine: Machine, budget: number, act: () => T): T {
  const { trunk } = machine;
  let left = CALLS_PER_UNIT * budget + CALLS;
  const counted =
    <R>(call: (cpu: number) => R) =>
    (cpu: number): R => {
      if (--left < 0) throw new Error("hang: it goes on, and spends no budget");
      return call(cpu);
    };
  const { run, one, step, table } = trunk;
  const counting: Trunk = { table, run: counted(run), one: counted(one), step: counted(step) };
  Object.assign(machine, { trunk: counting });
  try {
    return act();
  } finally {
    Object.assign(machine, { trunk });
  }
}
