// Several vCPUs in turns of chosen length: the same seed, the same run.

import type { Lab } from "../../src/lab.ts";
import type { Vcpu } from "../../src/machine/vcpu.ts";

/** Whole numbers below `limit`, one after the other, from a seed (Numerical Recipes' generator). */
export function chooser(seed: number): (limit: number) => number {
  let state = seed | 0;
  return (limit) => {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    return Math.floor(((state >>> 0) / 2 ** 32) * limit);
  };
}

/** Runs calls that were begun until all have returned, for a chosen number of instructions in turn; rax of each. */
export function interleave(
  lab: Lab,
  vcpus: readonly Vcpu[],
  choose: (limit: number) => number,
  between: (vcpu: Vcpu) => void = () => {},
): bigint[] {
  const running = new Set(vcpus);
  while (running.size > 0) {
    const vcpu = [...running][choose(running.size)]!;
    const exit = vcpu.run({ budget: 1 + choose(20) });
    if (lab.kernel.returned(exit)) running.delete(vcpu);
    else if (exit.kind !== "budget") throw new Error(`a call stopped: ${lab.describe(exit)}`);
    between(vcpu);
  }
  return vcpus.map((vcpu) => vcpu.get("rax"));
}
