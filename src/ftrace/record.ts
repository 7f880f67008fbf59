// Call sites as ftrace knows them: who wants to be called there, and what text has.

import type { Addr } from "../base/addr.ts";
import type { Kept } from "../machine/kept.ts";
import { FTRACE_FL } from "./layout.ts";
import type { FtraceOps } from "./ops.ts";
import { callBytes, jumpBytes, NOP5 } from "./site.ts";

/** What a site's five bytes are. */
export type Target =
  | { readonly kind: "nop" }
  /** A trampoline of one ops, one that several share, or a direct ops' own code. */
  | {
      readonly kind: "call";
      readonly to: Addr;
      readonly by: FtraceOps | undefined;
      /** What is called has all registers. */
      readonly regs: boolean;
    }
  | { readonly kind: "jump"; readonly to: Addr; readonly by: FtraceOps };

export const NOP: Target = { kind: "nop" };

/** One call site: `ip` is the first of its five bytes. */
export class FtraceRecord {
  readonly ip: Addr;
  readonly symbol: string;
  /** The image that it is in. */
  readonly module: string;
  private readonly registry: Kept<Registry>;

  constructor(ip: Addr, symbol: string, module: string, registry: Kept<Registry>) {
    this.ip = ip;
    this.symbol = symbol;
    this.module = module;
    this.registry = registry;
  }

  /** Who wants to be called here, the last one registered first. */
  get callers(): readonly FtraceOps[] {
    const { ops } = this.registry.value;
    return ops.filter(({ state }) => state.value.sites.has(this.ip)).reverse();
  }

  /** The only one of those; undefined if there is none, or more. */
  get ops(): FtraceOps | undefined {
    const { callers } = this;
    return callers.length === 1 ? callers[0] : undefined;
  }

  /** What text has. */
  get target(): Target {
    return this.registry.value.text.get(this.ip) ?? NOP;
  }

  /** How many want to be called here. */
  get count(): number {
    return this.callers.length;
  }

  /** As the kernel has them: `FTRACE_FL`, and the count. Those with `_EN` say what text has, the others what is wanted. */
  get flags(): number {
    const { callers, target } = this;
    const by = target.kind === "nop" ? undefined : target.by;
    const flags: Readonly<Record<keyof typeof FTRACE_FL, boolean>> = {
      FTRACE_FL_ENABLED: target.kind !== "nop",
      FTRACE_FL_REGS: this.has("FTRACE_OPS_FL_SAVE_REGS"),
      FTRACE_FL_REGS_EN: target.kind === "call" && target.regs,
      FTRACE_FL_TRAMP: callers.length === 1 && callers[0]?.direct === undefined,
      FTRACE_FL_TRAMP_EN: target.kind === "call" && by !== undefined && by.direct === undefined,
      FTRACE_FL_IPMODIFY: this.has("FTRACE_OPS_FL_IPMODIFY"),
      FTRACE_FL_DISABLED: this.isBroken,
      FTRACE_FL_DIRECT: this.has("FTRACE_OPS_FL_DIRECT"),
      FTRACE_FL_DIRECT_EN: by?.direct !== undefined,
    };
    const names = Object.keys(flags) as (keyof typeof FTRACE_FL)[];
    return names.reduce((sum, name) => sum + (flags[name] ? FTRACE_FL[name] : 0), this.count);
  }

  has(flag: "FTRACE_OPS_FL_SAVE_REGS" | "FTRACE_OPS_FL_IPMODIFY" | "FTRACE_OPS_FL_DIRECT"): boolean {
    return this.callers.some((ops) => ops.has(flag));
  }

  /** Something else than expected was found there once: it is left alone. */
  get isBroken(): boolean {
    return this.registry.value.broken.has(this.ip);
  }
}

/** `target` as it is encoded at the site `ip`. */
export function bytesOf(ip: Addr, target: Target): Uint8Array {
  switch (target.kind) {
    case "nop":
      return NOP5;
    case "call":
      return callBytes(ip, target.to);
    case "jump":
      return jumpBytes(ip, target.to);
  }
}

/** All that ftrace knows. */
export interface Registry {
  readonly records: ReadonlyMap<Addr, FtraceRecord>;
  /** Those that are registered, the first first. */
  readonly ops: readonly FtraceOps[];
  /** What the guest's list has, its first first. */
  readonly linked: readonly FtraceOps[];
  /** Of sites that are no NOPs. */
  readonly text: ReadonlyMap<Addr, Target>;
  readonly broken: ReadonlySet<Addr>;
  /** Sites that are being rewritten: their text is neither what it was nor what it is going to be. */
  readonly poked: ReadonlySet<Addr>;
  /** Whether anybody is called at all. */
  readonly enabled: boolean;
  /** All ops that calls may still be on the way to, by their structures. */
  readonly known: ReadonlyMap<Addr, FtraceOps>;
}
