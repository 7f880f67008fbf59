// The guest's list of who is registered, which the list function goes through (kernel/ftrace.c).

import { type Addr, addr } from "../base/addr.ts";
import type { Memory } from "../machine/memory.ts";
import type { Pool } from "../machine/pool.ts";
import { type FtraceHash, makeHash } from "./hash.ts";
import type { FtraceOps } from "./ops.ts";

export interface OpsListParts {
  readonly memory: Memory;
  readonly pool: Pool;
  /** Where the guest's pointer to the first lies. */
  readonly head: Addr;
  /** Answers from when on nobody goes through the list who does now. */
  readonly grace: () => () => boolean;
  /** Takes back a set that an ops had, once nobody reads it any more. */
  readonly retire: (ops: FtraceOps, hash: FtraceHash) => void;
}

export class OpsList {
  private readonly parts: OpsListParts;

  constructor(parts: OpsListParts) {
    this.parts = parts;
  }

  /**
   * Whether `ops` can be linked: whoever was at it when it was unlinked has gone on. He would come to the list's beginning
   * by it, and call everybody again.
   */
  isFree({ state }: FtraceOps): boolean {
    return state.value.unlinked?.() ?? true;
  }

  /** The list with those of `registered` that are not in it, the last one first; all have their sites in their set. */
  link(linked: readonly FtraceOps[], registered: readonly FtraceOps[]): readonly FtraceOps[] {
    let list = linked;
    for (const ops of registered) {
      const { hash, sites } = ops.state.value;
      if (hash === undefined || !isSame(hash.addresses, sites)) this.replaceHash(ops, [...sites]);
      if (list.includes(ops)) continue;
      // The ops is whole before the list leads to it.
      ops.struct.set("next", list[0]?.struct.at ?? 0);
      this.write(undefined, ops);
      list = [ops, ...list];
    }
    return list;
  }

  /** The list without `ops`, which still leads on whoever is at it. */
  unlink(linked: readonly FtraceOps[], ops: FtraceOps): readonly FtraceOps[] {
    const n = linked.indexOf(ops);
    this.write(linked[n - 1], linked[n + 1]);
    ops.change({ unlinked: this.parts.grace() });
    return linked.filter((other) => other !== ops);
  }

  /** Makes `next` follow `ops`, or begin the list. */
  private write(ops: FtraceOps | undefined, next: FtraceOps | undefined): void {
    const to = next?.struct.at ?? addr(0);
    if (ops !== undefined) ops.struct.set("next", to);
    else this.parts.memory.writeWord(this.parts.head, BigInt(to));
  }

  private replaceHash(ops: FtraceOps, addresses: readonly Addr[]): void {
    const { memory, pool, retire } = this.parts;
    const { hash } = ops.state.value;
    const made = makeHash(memory, pool, addresses);
    ops.struct.set("hash", made.at);
    ops.change({ hash: made });
    if (hash !== undefined) retire(ops, hash);
  }
}

function isSame(addresses: readonly Addr[], sites: ReadonlySet<Addr>): boolean {
  return addresses.length === sites.size && addresses.every((at) => sites.has(at));
}
