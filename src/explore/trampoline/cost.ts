// What one call through a trampoline costs, over a site that is a NOP, with a handler that does nothing but return.

import type { Bench, Trampoline } from "./bench.ts";
import { CALL_LIMIT } from "./crossing.ts";

export interface Cost {
  /** The site's call and the handler's return included, less the NOP. */
  readonly instructions: number;
  /** Of the code that is copied for each ops. */
  readonly bytes: number;
  /** Accesses to memory, those of calls and returns included. */
  readonly reads: number;
  readonly writes: number;
  /** Calls, returns and jumps, conditional ones that were not taken included. */
  readonly branches: number;
}

/** Executes from the site, where the CPU is, to the traced function's body. Undefined if it does not come there. */
export function measure(bench: Bench, trampoline: Trampoline): Cost | undefined {
  const { machine, vcpu, body } = bench;
  const { rsp } = vcpu;
  const before = machine.snapshot();
  let [reads, writes, branches, instructions] = [0, 0, 0, 0];
  const trace = machine.trace({ accesses: true, branches: true, calls: true }, ({ kind }) => {
    if (kind === "read") reads++;
    else if (kind === "write") writes++;
    else branches++;
  });
  try {
    for (; vcpu.rip !== body || vcpu.rsp !== rsp; instructions++) {
      if (trampoline.handlers.includes(vcpu.rip)) vcpu.rip = bench.ret;
      if (instructions === CALL_LIMIT || vcpu.step() !== undefined) return undefined;
    }
  } finally {
    trace.stop();
    machine.restore(before);
    before.dispose();
  }
  return { instructions: instructions - 1, bytes: trampoline.size, reads, writes, branches };
}
