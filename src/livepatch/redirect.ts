// One redirected function: its site calls a trampoline, whose handler picks the old or the new body; or it jumps to the
// new one, once nobody gets another.

import type { Addr } from "../base/addr.ts";
import type { Ftrace, FtraceOps, FtraceRecord } from "../ftrace/ftrace.ts";
import type { Heap } from "../machine/heap.ts";
import type { Memory } from "../machine/memory.ts";
import { type KlpFunc, makeFunc, makeHandlerOps, makeOriginal } from "./klpFunc.ts";
import { KLP_FUNC } from "./layout.ts";

export interface RedirectParts {
  readonly ftrace: Ftrace;
  readonly memory: Memory;
  readonly heap: Heap;
  /** The handler in guest code. */
  readonly handler: Addr;
}

export class Redirect {
  readonly site: FtraceRecord;
  readonly ops: FtraceOps;
  private readonly ftrace: Ftrace;
  private readonly func: KlpFunc;

  /** Prepares `site` to be redirected to `replacement`; nothing changes for running code yet. */
  constructor({ ftrace, memory, heap, handler }: RedirectParts, site: FtraceRecord, replacement: Addr) {
    this.ftrace = ftrace;
    this.site = site;
    const original = makeOriginal(memory, heap.allocate(KLP_FUNC.size), site);
    this.func = makeFunc(memory, heap.allocate(KLP_FUNC.size), replacement, original.at);
    this.ops = makeHandlerOps(ftrace, site, handler, this.func.at);
  }

  /** While it is set, each task's patch state decides; otherwise everybody gets the replacement. */
  get transition(): boolean {
    return this.func.get("transition") !== 0n;
  }

  set transition(on: boolean) {
    this.func.set("transition", on ? 1 : 0);
  }

  enable(): void {
    this.ftrace.register(this.ops);
  }

  disable(): void {
    this.ftrace.unregister(this.ops);
  }

  /**
   * Says that nothing is left to decide: the site jumps to the replacement, without a handler. Before the transition flag
   * is set again this has to be taken back, and to be done with: `settled` is false once no CPU can execute the jump.
   */
  get settled(): boolean {
    return this.ops.state.value.settled !== undefined || this.site.target.kind === "jump";
  }

  set settled(on: boolean) {
    this.ftrace.settle(this.ops, on ? (this.func.getNumber("new_func") as Addr) : undefined);
  }
}
