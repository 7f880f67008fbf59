// A walk's questions, passed on: which words it read, and how often, and by which rules it found frames.

import type { Addr } from "../../src/base/addr.ts";
import type { OrcRule } from "../../src/unwind/orc/entry.ts";
import type { OrcLookup, StackInfo, UnwindContext } from "../../src/unwind/walk.ts";

export class WatchedContext implements UnwindContext {
  reads = 0;
  readonly words = new Set<Addr>();
  readonly rules = new Set<OrcRule>();
  readonly orc: OrcLookup = { find: (at) => this.found(this.inner.orc.find(at)) };
  private readonly inner: UnwindContext;

  constructor(inner: UnwindContext) {
    this.inner = inner;
  }

  read(at: Addr): number | undefined {
    this.reads++;
    this.words.add(at);
    return this.inner.read(at);
  }

  stackAt(at: Addr): StackInfo | undefined {
    return this.inner.stackAt(at);
  }

  isText(at: Addr): boolean {
    return this.inner.isText(at);
  }

  isTrampoline(at: Addr): boolean {
    return this.inner.isTrampoline(at);
  }

  isFunctionStart(at: Addr): boolean {
    return this.inner.isFunctionStart(at);
  }

  recover(address: Addr, slot: Addr): Addr | undefined {
    return this.inner.recover(address, slot);
  }

  private found(rule: OrcRule | undefined): OrcRule | undefined {
    if (rule !== undefined) this.rules.add(rule);
    return rule;
  }
}
