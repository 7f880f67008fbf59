// What the handler reads of a function: its structures in guest memory, and the ops that has it called.

import { type Addr, offset } from "../base/addr.ts";
import type { Ftrace, FtraceOps, FtraceRecord } from "../ftrace/ftrace.ts";
import { SITE_SIZE } from "../ftrace/site.ts";
import type { Memory } from "../machine/memory.ts";
import { StructView } from "../machine/struct.ts";
import { KLP_FUNC } from "./layout.ts";

export type KlpFunc = StructView<keyof typeof KLP_FUNC.fields>;

/** A replacement in the memory at `at`, in no transition, above `next`; 0 for nothing. */
export function makeFunc(memory: Memory, at: Addr, newFunc: Addr | 0, next: Addr | 0 = 0): KlpFunc {
  const func = new StructView(memory, KLP_FUNC, at);
  func.set("new_func", newFunc);
  func.set("next", next);
  func.set("transition", 0);
  return func;
}

/** What is at the bottom: going on behind the site. */
export function makeOriginal(memory: Memory, at: Addr, site: FtraceRecord): KlpFunc {
  return makeFunc(memory, at, behind(site));
}

/** Where a function goes on that is left as it is. */
export function behind({ ip }: FtraceRecord): Addr {
  return offset(ip, SITE_SIZE);
}

/** An ops for the site alone, whose `handler` in guest code begins with the function at `top`. */
export function makeHandlerOps(ftrace: Ftrace, site: FtraceRecord, handler: Addr, top: Addr): FtraceOps {
  const ops = ftrace.makeOps({
    name: `livepatch ${site.symbol}`,
    handler,
    own: top,
    ipmodify: true,
    permanent: true,
  });
  ftrace.setFilter(ops, [site.ip]);
  return ops;
}
