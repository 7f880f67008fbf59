// One redirected function: its site calls a trampoline, whose handler picks the old or the new body.

import type { Addr } from "../base/addr.ts";
import type { Ftrace, FtraceOps, FtraceRecord } from "../ftrace/ftrace.ts";
import type { Heap } from "../machine/heap.ts";
import type { Memory } from "../machine/memory.ts";
import { StructView } from "../machine/struct.ts";
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
  private readonly func: StructView<keyof typeof KLP_FUNC.fields>;

  /** Prepares `site` to be redirected to `replacement`; nothing changes for running code yet. */
  constructor({ ftrace, memory, heap, handler }: RedirectParts, site: FtraceRecord, replacement: Addr) {
    this.ftrace = ftrace;
    this.site = site;
    this.func = new StructView(memory, KLP_FUNC, heap.allocate(KLP_FUNC.size));
    this.func.set("new_func", replacement);
    this.ops = ftrace.makeOps(handler, this.func.at);
  }

  /** While it is set, each task's patch state decides; otherwise everybody gets the replacement. */
  get transition(): boolean {
    return this.func.get("transition") !== 0n;
  }

  set transition(on: boolean) {
    this.func.set("transition", on ? 1 : 0);
  }

  enable(): void {
    this.ftrace.enable(this.site, this.ops);
  }

  disable(): void {
    this.ftrace.disable(this.site);
  }
}
