// Who is called at sites: an ops, with the functions that it wants and the trampoline that its sites call.

import type { Addr } from "../base/addr.ts";
import type { CodeRange } from "../image/codeMap.ts";
import { type Keeper, Kept } from "../machine/kept.ts";
import type { PT_REGS } from "../machine/ptRegs.ts";
import type { StructView } from "../machine/struct.ts";
import { matches, type Named, type Pattern } from "./filter.ts";
import type { FtraceHash } from "./hash.ts";
import { type FTRACE_OPS, FTRACE_OPS_FLAG } from "./layout.ts";

/** A traced call as a handler in TypeScript sees it. It may set `regs`' ip, of an ops with IPMODIFY, and the registers that are there. */
export interface TracedCall {
  /** The site. */
  readonly ip: Addr;
  /** Where the traced function returns to. */
  readonly parentIp: Addr;
  readonly ops: FtraceOps;
  readonly regs: StructView<keyof typeof PT_REGS.fields>;
}

/** Who handles a traced call: guest code, or TypeScript. */
export type Handler = Addr | ((call: TracedCall) => void);

export interface OpsOptions {
  /** For people. */
  readonly name: string;
  readonly handler: Handler;
  /** The handler's to interpret. */
  readonly own?: Addr | number;
  /** It wants all registers and the flags. */
  readonly saveRegs?: boolean;
  /** It is guarded against being called for what it calls itself. */
  readonly recursion?: boolean;
  /** It may change where the traced function goes on. */
  readonly ipmodify?: boolean;
  /** It must not be switched off with all others. */
  readonly permanent?: boolean;
}

/** Of a direct call: what sites call in place of a trampoline. */
export interface DirectOptions {
  readonly name: string;
  readonly target: Addr;
  /** It copes with an ops at the same site that changes where the traced function goes on. */
  readonly sharesIpmodify?: boolean;
}

/** What changes of an ops. */
export interface OpsState {
  readonly filter: readonly Pattern[];
  readonly notrace: readonly Pattern[];
  /** Sites of those functions that there are. */
  readonly sites: ReadonlySet<Addr>;
  readonly registered: boolean;
  readonly trampoline: CodeRange | undefined;
  /** How many earlier ones are not freed yet, as somebody may be in them. */
  readonly lingering: number;
  /** It is given back, or is going to be. */
  readonly released: boolean;
  /** Whether nobody is at it any more who goes through the guest's list, since it was taken out. */
  readonly unlinked: (() => boolean) | undefined;
  /** What the guest's ops has. */
  readonly hash: FtraceHash | undefined;
  /** Where its sites jump while it is alone there: what its handler would do is settled. */
  readonly settled: Addr | undefined;
}

/** What of an ops never changes. */
export type OpsParts = Pick<
  FtraceOps,
  "name" | "struct" | "func" | "flags" | "call" | "direct" | "sharesIpmodify"
>;

export class FtraceOps {
  readonly name: string;
  /** In guest memory. */
  readonly struct: StructView<keyof typeof FTRACE_OPS.fields>;
  /** The guest's function that handles its calls. */
  readonly func: Addr;
  readonly flags: number;
  readonly call: ((call: TracedCall) => void) | undefined;
  /** What its sites call directly. */
  readonly direct: Addr | undefined;
  readonly sharesIpmodify: boolean;
  readonly state: Kept<OpsState>;

  constructor(keeper: Keeper, parts: OpsParts) {
    this.name = parts.name;
    this.struct = parts.struct;
    this.func = parts.func;
    this.flags = parts.flags;
    this.call = parts.call;
    this.direct = parts.direct;
    this.sharesIpmodify = parts.sharesIpmodify;
    this.state = new Kept<OpsState>(keeper, {
      filter: [],
      notrace: [],
      sites: new Set(),
      registered: false,
      trampoline: undefined,
      lingering: 0,
      released: false,
      unlinked: undefined,
      hash: undefined,
      settled: undefined,
    });
  }

  /** Its own copy of a template, while it is registered. */
  get trampoline(): CodeRange | undefined {
    return this.state.value.trampoline;
  }

  get isRegistered(): boolean {
    return this.state.value.registered;
  }

  has(flag: keyof typeof FTRACE_OPS_FLAG): boolean {
    return (this.flags & FTRACE_OPS_FLAG[flag]) !== 0;
  }

  /** Whether its filter has the function of a site. */
  wants(site: Named): boolean {
    const { filter, notrace } = this.state.value;
    const isIn = filter.length === 0 || filter.some((pattern) => matches(pattern, site));
    return isIn && !notrace.some((pattern) => matches(pattern, site));
  }

  change(to: Partial<OpsState>): void {
    this.state.value = { ...this.state.value, ...to };
  }

  toString(): string {
    return this.name;
  }
}

/** `flags` of an ops with these options. */
export function flagsOf({ saveRegs, recursion, ipmodify, permanent }: OpsOptions): number {
  const flag = (on: boolean | undefined, name: keyof typeof FTRACE_OPS_FLAG) =>
    on === true ? FTRACE_OPS_FLAG[name] : 0;
  return (
    flag(saveRegs, "FTRACE_OPS_FL_SAVE_REGS") |
    flag(recursion, "FTRACE_OPS_FL_RECURSION") |
    flag(ipmodify, "FTRACE_OPS_FL_IPMODIFY") |
    flag(permanent, "FTRACE_OPS_FL_PERMANENT")
  );
}
