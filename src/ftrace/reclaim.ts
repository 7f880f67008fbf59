// Giving back what calls may still be on the way to: each thing waits, on a strand of its own, for who may be in it.
//
// What handlers read waits for a grace period. Trampolines can be preempted: they wait until no stack and no register leads
// there; what a trampoline leads to comes after it.

import { type Addr, offset } from "../base/addr.ts";
import { type Agenda, act } from "../machine/agenda.ts";
import type { Pool } from "../machine/pool.ts";
import { type FtraceHash, freeHash } from "./hash.ts";
import type { FtraceOps } from "./ops.ts";
import { freeTrampoline, type TrampolineParts } from "./trampoline.ts";

export interface ReclaimerParts {
  readonly agenda: Agenda;
  readonly trampolines: TrampolineParts;
  /** What sets are taken from. */
  readonly data: Pool;
  /** Who may still be in code from `low` up to `high`, or come back to it, in words; undefined if nobody. */
  readonly holder: (low: Addr, high: Addr) => string | undefined;
  /** Answers from when on every CPU has been where no handler is at work. */
  readonly grace: () => () => boolean;
}

export class Reclaimer {
  private readonly parts: ReclaimerParts;

  constructor(parts: ReclaimerParts) {
    this.parts = parts;
  }

  /** The trampoline and the set of an ops that no text and no list leads to. */
  retire(ops: FtraceOps): void {
    const { trampoline, hash, lingering } = ops.state.value;
    ops.change({ trampoline: undefined, hash: undefined });
    if (trampoline === undefined) {
      if (hash !== undefined) this.set(ops, hash);
      return;
    }
    const { address, size, name } = trampoline;
    ops.change({ lingering: lingering + 1 });
    this.when(
      name,
      `nobody is in ${name}`,
      () => this.parts.holder(address, offset(address, size)) === undefined,
      () => {
        freeTrampoline(this.parts.trampolines, trampoline);
        ops.change({ lingering: ops.state.value.lingering - 1 });
        if (hash !== undefined) this.set(ops, hash);
      },
    );
  }

  /** A set that an ops has no more. */
  set(ops: FtraceOps, hash: FtraceHash): void {
    this.afterGrace(`a set of ${ops.name}`, () => freeHash(this.parts.data, hash));
  }

  /** Runs `run` once `isOver` says so. */
  when(what: string, until: string, isOver: () => boolean, run: () => void): void {
    this.parts.agenda.add(`free ${what}`, [{ ...act(`wait until ${until}`, run), ready: isOver }]);
  }

  /** Runs `run` after a grace period. */
  afterGrace(what: string, run: () => void): void {
    this.when(what, `no handler of before is at work, for ${what}`, this.parts.grace(), run);
  }
}
