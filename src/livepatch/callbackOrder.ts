// Whether callbacks are called when they are to be (Linux Documentation/livepatch/callbacks.rst), object by object.

import { VMLINUX } from "../image/image.ts";
import type { Kernel } from "../kernel/kernel.ts";
import type { Livepatch } from "./livepatch.ts";
import type { CallbackObject, Callbacks } from "./patch.ts";

/** What an object's callbacks have been told: nothing, or not any more; it will be patched; it is; it will not be any longer. */
type Phase = "out" | "coming" | "in" | "going";

/** For each callback from which phases it may be called, to which it leads, and whether the object is patched then. */
const CALLBACKS: Readonly<
  Record<keyof Callbacks, { readonly from: readonly Phase[]; readonly to: Phase; readonly patched: boolean }>
> = {
  prePatch: { from: ["out"], to: "coming", patched: false },
  // A disabling that was turned round ends with it as well.
  postPatch: { from: ["coming", "going"], to: "in", patched: true },
  preUnpatch: { from: ["in"], to: "going", patched: true },
  // Without preUnpatch where the patch was never in: its transition was turned round, or its module went in the middle of it.
  postUnpatch: { from: ["coming", "going"], to: "out", patched: false },
};

export class CallbackOrder {
  /** The first call that was out of turn. */
  finding: string | undefined;
  private readonly kernel: Kernel;
  private readonly livepatch: Livepatch;
  private readonly phases = new Map<CallbackObject, Phase>();

  constructor(kernel: Kernel, livepatch: Livepatch) {
    this.kernel = kernel;
    this.livepatch = livepatch;
  }

  /** Callbacks that look at when they are called; prePatch answers with `error`. */
  callbacks(error: number): Callbacks {
    return {
      prePatch: (object) => {
        this.call("prePatch", object);
        if (error !== 0) this.phases.set(object, "out");
        return error;
      },
      postPatch: (object) => this.call("postPatch", object),
      preUnpatch: (object) => this.call("preUnpatch", object),
      postUnpatch: (object) => this.call("postUnpatch", object),
    };
  }

  /** Once all patches are gone: an object that was told of something and not of its end. Those of replaced patches are not told. */
  get leftover(): string | undefined {
    for (const [object, phase] of this.phases)
      if (phase === "coming" || phase === "going")
        return `${titleOf(object)} is ${phase}, and its patch is gone`;
    return undefined;
  }

  private call(name: keyof Callbacks, object: CallbackObject): void {
    const { from, to, patched } = CALLBACKS[name];
    const phase = this.phases.get(object) ?? "out";
    this.phases.set(object, to);
    const isInTurn = from.some((one) => one === phase);
    const wrong = !isInTurn
      ? `is ${phase}`
      : object.isPatched !== patched
        ? `is ${patched ? "not " : ""}patched`
        : this.isEarly(name, object)
          ? "has tasks in transition"
          : undefined;
    if (wrong !== undefined) this.finding ??= `${titleOf(object)} ${wrong} when ${name} is called`;
  }

  /** What ends a transition is called when no task is in it. But a module may come or go in the middle, with callbacks of its own. */
  private isEarly(name: keyof Callbacks, { name: of }: CallbackObject): boolean {
    const { kernel, livepatch } = this;
    if (of !== VMLINUX || (name !== "postPatch" && name !== "postUnpatch")) return false;
    return livepatch.tasks.all.some((task) => kernel.patchState(task) !== "KLP_UNDEFINED");
  }
}

function titleOf({ name, patch }: CallbackObject): string {
  return `${name} in ${patch}`;
}
