// Whether whoever comes back to a trampoline is found by those that want to free it.

import type { Addr } from "../../base/addr.ts";
import { holder } from "../../kernel/quiescence.ts";
import type { Bench, Trampoline } from "./bench.ts";
import type { Trouble } from "./passage.ts";

/** Looks at every boundary of one call, in turn. */
export class Finder {
  private readonly bench: Bench;
  private readonly low: Addr;
  private readonly high: Addr;
  private entered = false;
  /** Where nobody was found. */
  private free: Addr | undefined;

  constructor(bench: Bench, { low, high }: Trampoline) {
    this.bench = bench;
    this.low = low;
    this.high = high;
  }

  /** Whether the trampoline is executed again, after nobody was found who might. */
  look(): Trouble | undefined {
    const { kernel, vcpu } = this.bench;
    const inside = vcpu.rip >= this.low && vcpu.rip < this.high;
    this.entered ||= inside;
    if (inside && this.free !== undefined)
      return {
        why: `nothing led back here at ${this.bench.describe(this.free)}: it could have been freed there`,
        differences: [],
      };
    if (this.entered && holder(kernel, this.low, this.high) === undefined) this.free ??= vcpu.rip;
    return undefined;
  }
}
