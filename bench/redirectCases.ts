// The states of a call site that `fentrylab bench redirect` counts a call in, and what a real kernel executes in them.

import type { Addr } from "../src/base/addr.ts";
import type { FtraceOps, FtraceRecord, OpsOptions } from "../src/ftrace/ftrace.ts";
import type { PatchState } from "../src/kernel/layout.ts";
import type { Lab } from "../src/lab.ts";
import type { Redirect } from "../src/livepatch/redirect.ts";

/** Nobody is called; somebody who traces; code in place of a trampoline; whoever wants the return; a new body. */
export type Kind = "off" | "trace" | "direct" | "return" | "redirect";

export interface Case {
  readonly kind: Kind;
  readonly state: string;
  /** Whom to call; `leaf` if not given. */
  readonly target?: "leaf_new";
  /** Instructions per iteration of the real kernel's loop, where that was measured. */
  readonly linux?: number | undefined;
  readonly arrange: (scene: Scene) => void;
}

/** Of one CPU under instruction counting, in a loop that calls a function of two instructions; the loop included. */
export const LINUX = {
  kernel: "Debian's Linux 6.1.192",
  noSite: 10,
  nop: 11,
  plain: 46,
  regs: 72,
  guarded: 99,
  twoOps: 229,
  threeOps: 295,
  fourOps: 361,
  twoOpsRegs: 251,
  /** There is no cheaper state once a patch is in. */
  patched: 90,
  patchedAndTraced: 783,
} as const;

/** A laboratory in which nobody is called yet. */
export class Scene {
  private readonly lab: Lab;
  private readonly site: FtraceRecord;

  constructor(lab: Lab) {
    this.lab = lab;
    this.site = lab.ftrace.siteOf(lab.symbol("leaf").address, "leaf");
  }

  /** Registers so many ops for the function, whose handler does nothing unless it says otherwise. */
  trace(count: number, options: Partial<OpsOptions> = {}): void {
    for (let n = 0; n < count; n++)
      this.register(
        this.lab.ftrace.makeOps({ name: `ops ${n}`, handler: this.address("ftrace_stub"), ...options }),
      );
  }

  direct(): void {
    this.register(this.lab.ftrace.makeDirect({ name: "direct", target: this.address("direct_stub") }));
  }

  /** Has the function return to `trampoline` (asm/return.S). */
  hookReturn(trampoline: "return_to_handler" | "rethook_trampoline"): void {
    this.trace(1, { handler: this.address("return_hook_handler"), own: this.address(trampoline) });
  }

  /** Patches the function; in a transition, with `state` that of every task. */
  redirect(state?: PatchState): Redirect {
    const { kernel } = this.lab;
    const redirect = this.lab.redirectSite(this.site, this.address("leaf_new"));
    for (const task of kernel.tasks) kernel.setPatchState(task, state ?? "KLP_UNDEFINED");
    redirect.transition = state !== undefined;
    redirect.enable();
    return redirect;
  }

  /** The same, when nothing is left to decide. */
  settle(): void {
    this.redirect().settled = true;
  }

  private register(ops: FtraceOps): void {
    this.lab.ftrace.setFilter(ops, [this.site.ip]);
    this.lab.ftrace.register(ops);
  }

  private address(name: string): Addr {
    return this.lab.symbol(name).address;
  }
}

export const CASES: readonly Case[] = [
  // The new body is as long as the old one, and has no site.
  { kind: "off", state: "no site", linux: LINUX.noSite, target: "leaf_new", arrange: () => {} },
  { kind: "off", state: "NOP", linux: LINUX.nop, arrange: () => {} },
  trace("plain", LINUX.plain, 1),
  trace("registers", LINUX.regs, 1, { saveRegs: true }),
  trace("guarded", LINUX.guarded, 1, { recursion: true }),
  trace("two ops", LINUX.twoOps, 2),
  trace("three ops", LINUX.threeOps, 3),
  trace("four ops", LINUX.fourOps, 4),
  trace("two ops, registers", LINUX.twoOpsRegs, 2, { saveRegs: true }),
  trace("TypeScript handler", undefined, 1, { handler: () => {} }),
  { kind: "direct", state: "alone", arrange: (scene) => scene.direct() },
  {
    kind: "direct",
    state: "and one ops",
    arrange: (scene) => {
      scene.direct();
      scene.trace(1);
    },
  },
  { kind: "return", state: "graph", arrange: (scene) => scene.hookReturn("return_to_handler") },
  { kind: "return", state: "rethook", arrange: (scene) => scene.hookReturn("rethook_trampoline") },
  redirect("in transition, to old", undefined, (scene) => scene.redirect("KLP_UNPATCHED")),
  redirect("in transition, to new", undefined, (scene) => scene.redirect("KLP_PATCHED")),
  redirect("idle", LINUX.patched, (scene) => scene.redirect()),
  redirect("idle, and one ops", LINUX.patchedAndTraced, (scene) => {
    scene.redirect();
    scene.trace(1);
  }),
  redirect("fully patched", LINUX.patched, (scene) => scene.settle()),
  redirect("fully patched, and one ops", LINUX.patchedAndTraced, (scene) => {
    scene.settle();
    scene.trace(1);
  }),
];

function trace(
  state: string,
  linux: number | undefined,
  count: number,
  options: Partial<OpsOptions> = {},
): Case {
  return { kind: "trace", state, linux, arrange: (scene) => scene.trace(count, options) };
}

function redirect(state: string, linux: number | undefined, arrange: Case["arrange"]): Case {
  return { kind: "redirect", state, linux, arrange };
}
