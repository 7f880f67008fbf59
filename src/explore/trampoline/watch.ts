// Calls through a trampoline inside one another: each is judged as it crosses, by what was at its own site.

import type { Bench, Trampoline } from "./bench.ts";
import { type Clause, CONTRACTS } from "./contract.ts";
import { type Discrepancy, type Entry, judgeCall, judgeReturn, readEntry } from "./judge.ts";
import type { Trouble } from "./passage.ts";

/** More calls inside one another than a guard lets through. */
const DEEPEST = 8;

export class Watch {
  private readonly bench: Bench;
  private readonly trampoline: Trampoline;
  private readonly known: ReadonlySet<Clause>;
  private readonly entries: Entry[] = [];
  /** Calls that were begun, and those of them that have come to the traced function's body. */
  begun = 0;
  ended = 0;
  /** How often the handler was called. */
  handled = 0;

  /** What clauses in `known` say is left out: they have failed before. */
  constructor(bench: Bench, trampoline: Trampoline, known: ReadonlySet<Clause>) {
    this.bench = bench;
    this.trampoline = trampoline;
    this.known = known;
  }

  /** Looks at the boundary that the CPU is at: what is wrong there. */
  look(): Trouble | undefined {
    const { bench, trampoline, entries } = this;
    const { vcpu, site, body } = bench;
    const { rip } = vcpu;
    if (rip === site.ip) {
      entries.push(readEntry(bench));
      this.begun++;
      if (entries.length <= DEEPEST) return undefined;
      return {
        why: `it is entered ${entries.length} times within one another, and nothing stops it`,
        differences: [],
      };
    }
    const entry = entries.at(-1);
    if (entry === undefined) return undefined;
    if (trampoline.handlers.includes(rip)) {
      this.handled++;
      return this.first(judgeCall(bench, trampoline, entry).found);
    }
    if (rip !== body || vcpu.rsp !== entry.rsp) return undefined;
    entries.pop();
    this.ended++;
    const { registers, rflags } = entry;
    const expected = { rip: body, registers, rflags, clause: "kept" } as const;
    return this.first(judgeReturn(vcpu, CONTRACTS[trampoline.kind], entry, expected));
  }

  private first(found: readonly Discrepancy[]): Trouble | undefined {
    const one = found.find(({ clause }) => !this.known.has(clause));
    return one && { why: `of a call inside or around another, ${one.why}`, differences: one.differences };
  }
}
