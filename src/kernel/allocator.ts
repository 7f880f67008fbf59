// Memory that guest code asks for, as kmalloc() and kfree_rcu() give it. What is out follows the machine's snapshots.

import { type Addr, hex } from "../base/addr.ts";
import { type Agenda, act, until } from "../machine/agenda.ts";
import { type Keeper, Kept } from "../machine/kept.ts";
import type { Pool } from "../machine/pool.ts";

/** In bytes. */
const MOST_ALLOCATED = 2 ** 24;

export interface AllocatorParts {
  readonly pool: Pool;
  readonly keeper: Keeper;
  readonly agenda: Agenda;
  /** Answers from when on every CPU has been where it might be preempted. */
  readonly grace: () => () => boolean;
}

/** Memory that is out; `freed`, it is given out again when nobody reads it any more. */
interface Allocation {
  readonly bytes: number;
  readonly freed: boolean;
}

export class Allocator {
  private readonly parts: AllocatorParts;
  private readonly out: Kept<ReadonlyMap<Addr, Allocation>>;

  constructor(parts: AllocatorParts) {
    this.parts = parts;
    this.out = new Kept<ReadonlyMap<Addr, Allocation>>(parts.keeper, new Map());
  }

  /** undefined if that is too much. */
  kmalloc(bytes: number): Addr | undefined {
    const { value: out } = this.out;
    const used = [...out.values()].reduce((sum, { bytes: size }) => sum + size, 0);
    if (bytes <= 0 || used + bytes > MOST_ALLOCATED) return undefined;
    const at = this.parts.pool.take(bytes);
    this.out.value = new Map([...out, [at, { bytes, freed: false }]]);
    return at;
  }

  /** Takes back what `kmalloc` gave, once all are done who may be reading it with preemption off. False if it did not give that. */
  kfreeRcu(at: Addr, bytes: number): boolean {
    const { pool, agenda, grace } = this.parts;
    const known = this.out.value.get(at);
    if (known === undefined || known.freed || known.bytes !== bytes) return false;
    this.out.value = new Map([...this.out.value, [at, { bytes, freed: true }]]);
    const give = () => {
      this.out.value = new Map([...this.out.value].filter(([other]) => other !== at));
      pool.give(at, bytes);
    };
    agenda.add(`free ${hex(at)}`, [until("nobody reads it", grace()), act("give it back", give)]);
    return true;
  }
}
