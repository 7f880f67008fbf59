// The way from one universe to the other: how it begins, is turned round, forced, and ends (Linux kernel/livepatch/transition.c and
// core.c). What is done task by task is taskPasses.ts's.

import { type Refusal, refuse } from "../base/refuse.ts";
import type { PatchState } from "../kernel/layout.ts";
import { act, each, type Step, until } from "../machine/agenda.ts";
import type { Core, Target } from "./core.ts";
import type { Objects } from "./objects.ts";
import { type Phase, phasesOf } from "./options.ts";
import type { Patch } from "./patch.ts";
import { refusal, refusalOf } from "./refusal.ts";
import type { Settling } from "./settling.ts";
import { TaskPasses } from "./taskPasses.ts";
import type { TaskSwitch } from "./taskSwitch.ts";

/** Tells whoever asked why it cannot be. */
export type Refused = (why: Refusal) => void;

export class Transitions {
  readonly passes: TaskPasses;
  private readonly core: Core;
  private readonly objects: Objects;
  private readonly settling: Settling;

  constructor(core: Core, objects: Objects, settling: Settling, tasks: TaskSwitch) {
    this.core = core;
    this.objects = objects;
    this.settling = settling;
    this.passes = new TaskPasses(core, tasks, () => this.completing());
  }

  // ---- How it begins.

  enabling(patch: Patch, refused: Refused): readonly Step[] {
    const { core } = this;
    const unfit = refusalOf(() => this.refuseToEnable(patch));
    if (unfit !== undefined) return this.failToEnable(patch, unfit, refused);
    core.set({
      patches: [...core.patches, patch],
      transition: { patch, target: "KLP_PATCHED", tries: 0 },
    });
    core.log("notice", `enabling patch '${patch}'`);
    const fail = (why: Refusal) => {
      refused(why);
      return this.cancelling(patch, why);
    };
    const phases: Readonly<Partial<Record<Phase, Step>>> = {
      target: this.setTarget(),
      states: this.passes.setStates("KLP_UNPATCHED"),
      transition: setTransition(patch, true),
      stack: { what: "patch objects", run: () => this.patchObjects(patch, fail) },
      pending: { what: "start", run: () => this.starting() },
    };
    const begin = () => [
      act("begin", () => core.log("debug", `'${patch}': initializing patching transition`)),
      ...[...this.inOrder("enabling", phases), this.trying(patch, true)].map((step) =>
        unlessFailed(patch, step),
      ),
    ];
    return this.settling.unsettle(patch, begin, ({ symbol: func }) => {
      core.set({ patches: core.patches.filter((other) => other !== patch), transition: undefined });
      return this.failToEnable(patch, refusal("klp-stuck", { patch: patch.name, func }), refused);
    });
  }

  disabling(patch: Patch, refused: Refused): readonly Step[] {
    const { core } = this;
    const unfit = refusalOf(() => this.refuseToDisable(patch));
    if (unfit !== undefined) return refusing(unfit, refused);
    core.set({ transition: { patch, target: "KLP_UNPATCHED", tries: 0 } });
    const phases: Readonly<Partial<Record<Phase, Step>>> = {
      target: this.setTarget(),
      states: this.passes.setStates("KLP_PATCHED"),
      transition: setTransition(patch, true),
      callbacks: act("pre-unpatch callbacks", () => {
        for (const object of patch.objects) if (object.isPatched) this.objects.callback("preUnpatch", object);
      }),
      pending: { what: "start", run: () => this.starting() },
    };
    const begin = () => [
      act("begin", () => core.log("debug", `'${patch}': initializing unpatching transition`)),
      ...this.inOrder("disabling", phases),
      this.trying(patch, false),
    ];
    return this.settling.unsettle(patch, begin, ({ symbol: func }) => {
      core.set({ transition: undefined });
      return refusing(refusal("klp-stuck", { patch: patch.name, func }), refused);
    });
  }

  /** What it was checked against may have changed since it was asked for. */
  private refuseToEnable(patch: Patch): void {
    const { transition, patches, checks } = this.core;
    if (transition !== undefined) refuse("klp-busy", { patch: patch.name });
    if (patches.some(({ name }) => name === patch.name)) refuse("klp-known", { patch: patch.name });
    checks.refuseIncompatible(patch, patches);
    if (patch.replace) this.objects.addNops(patch);
  }

  private refuseToDisable(patch: Patch): void {
    const { transition, patches, options } = this.core;
    if (!patches.includes(patch) || !patch.enabled) refuse("klp-disabled", { patch: patch.name });
    if (transition !== undefined) refuse("klp-busy", { patch: patch.name });
    const top = patches.at(-1)!;
    if (options.onlyOnTop === true && patch !== top)
      refuse("klp-not-on-top", { patch: patch.name, top: top.name });
  }

  private inOrder(when: "enabling" | "disabling", phases: Readonly<Partial<Record<Phase, Step>>>): Step[] {
    return phasesOf(when, this.core.options.weakened ?? []).flatMap((phase) => phases[phase] ?? []);
  }

  private setTarget(): Step {
    return act("the target state", () => this.writeTarget(this.core.transition?.target ?? "KLP_UNDEFINED"));
  }

  private writeTarget(state: PatchState): void {
    this.core.parts.kernel.setTargetState(state);
  }

  private patchObjects(patch: Patch, fail: (why: Refusal) => readonly Step[]): readonly Step[] {
    const { core, objects } = this;
    return patch.objects.map((object) =>
      unlessFailed(patch, {
        what: `patch ${object.name}`,
        run: () => {
          const image = core.imageOf(object.name);
          if (image === undefined) {
            objects.forget(object);
            return undefined;
          }
          const unfit = object.isResolvedIn(image)
            ? undefined
            : refusalOf(() => core.checks.resolve(patch, object, image));
          const unwilling = unfit ?? objects.prePatch(object);
          if (unwilling !== undefined) return fail(unwilling);
          return objects.patchObject(object, (why) => {
            core.log("warn", `failed to patch object '${object.name}'`);
            return fail(why);
          });
        },
      }),
    );
  }

  private starting(): readonly Step[] {
    const { patch, target } = this.core.transition!;
    this.core.log("notice", `'${patch}': starting ${doing(target)} transition`);
    this.core.set({ transition: { ...this.core.transition!, tries: 0 } });
    return [this.passes.setPending(target)];
  }

  private trying(patch: Patch, enabled: boolean): Step {
    return {
      what: "try",
      run: () => {
        patch.change({ enabled });
        return this.passes.trySwitchAll();
      },
    };
  }

  /** Before it has begun for any task. */
  private cancelling(patch: Patch, why: Refusal): readonly Step[] {
    this.core.log("warn", `failed to enable patch '${patch}'`);
    this.core.log("debug", `'${patch}': canceling patching transition, going to unpatch`);
    patch.change({ refusal: why, enabled: false });
    this.core.set({ transition: { ...this.core.transition!, target: "KLP_UNPATCHED" } });
    this.writeTarget("KLP_UNPATCHED");
    return this.completing();
  }

  /** The patch has never been known to anybody, and is given back. */
  private failToEnable(patch: Patch, why: Refusal, refused: Refused): readonly Step[] {
    patch.change({ refusal: why });
    this.objects.release(patch);
    return refusing(why, refused);
  }

  // ---- Turning round, forcing, and the end.

  settingEnabled(patch: Patch, on: boolean, refused: Refused): readonly Step[] {
    const { transition } = this.core;
    if (patch.enabled === on)
      return refusing(
        refusal("klp-already", { patch: patch.name, state: on ? "enabled" : "disabled" }),
        refused,
      );
    if (transition?.patch === patch) return this.reversing(patch, refused);
    return on
      ? refusing(refusal("klp-disabled", { patch: patch.name }), refused)
      : this.disabling(patch, refused);
  }

  reversing(patch: Patch, refused: Refused): readonly Step[] {
    const { transition } = this.core;
    if (transition?.patch !== patch)
      return refusing(refusal("klp-no-transition", { patch: patch.name }), refused);
    const target = transition.target === "KLP_PATCHED" ? "KLP_UNPATCHED" : "KLP_PATCHED";
    const way = target === "KLP_UNPATCHED" ? "patching to unpatching" : "unpatching to patching";
    this.core.log("debug", `'${patch}': reversing transition from ${way}`);
    patch.change({ enabled: !patch.enabled });
    this.core.set({ transition: { ...transition, target, tries: 0 } });
    return [
      this.setTarget(),
      this.passes.clearPending(),
      this.grace(),
      { what: "start", run: () => this.starting() },
      { what: "try", run: () => this.passes.trySwitchAll() },
    ];
  }

  forcing(patch: Patch, refused: Refused): readonly Step[] {
    const { transition, patches } = this.core;
    if (transition?.patch !== patch)
      return refusing(refusal("klp-no-transition", { patch: patch.name }), refused);
    const { target } = transition;
    this.core.log("warn", "forcing remaining tasks to the patched state");
    this.core.set({ forces: this.core.state.forces + 1 });
    const replaced = patch.replace ? patches.filter((one) => one !== patch) : [];
    for (const one of target === "KLP_UNPATCHED" ? [patch] : replaced) one.change({ forced: true });
    return [this.passes.force(target), { what: "try", run: () => this.passes.trySwitchAll() }];
  }

  private completing(): readonly Step[] {
    const { patch, target } = this.core.transition!;
    this.core.log("debug", `'${patch}': completing ${doing(target)} transition`);
    const isPatching = target === "KLP_PATCHED";
    const replaced =
      patch.replace && isPatching ? this.core.patches.slice(0, this.core.patches.indexOf(patch)) : [];
    return [
      ...replaced.flatMap((old) => [
        act(`${old} is replaced`, () => old.change({ enabled: false })),
        ...old.objects
          .filter(({ isPatched }) => isPatched)
          .flatMap((object) => this.objects.unpatchObject(object)),
      ]),
      ...(patch.replace && isPatching ? this.objects.discardNops(patch) : []),
      ...(isPatching
        ? []
        : patch.objects
            .filter(({ isPatched }) => isPatched)
            .flatMap((object) => this.objects.unpatchObject(object))),
      ...(isPatching ? [] : [this.grace()]),
      setTransition(patch, false),
      ...(isPatching ? [this.grace()] : []),
      this.passes.setStates("KLP_UNDEFINED"),
      act("post callbacks", () => {
        for (const object of patch.objects) {
          if (!object.isLoaded) continue;
          if (isPatching) this.objects.callback("postPatch", object);
          else this.objects.postUnpatch(object);
        }
      }),
      act("complete", () => {
        this.core.log("notice", `'${patch}': ${doing(target)} complete`);
        this.writeTarget("KLP_UNDEFINED");
        this.core.set({ transition: undefined });
        for (const old of replaced) this.objects.free(old);
        if (!patch.enabled) this.objects.free(patch);
        this.settling.settle();
      }),
    ];
  }

  private grace(): Step {
    return {
      what: "grace period",
      run: () =>
        this.core.isWeakened("grace-period")
          ? undefined
          : [until("every CPU has been preemptible", this.core.parts.grace())],
    };
  }
}

function setTransition(patch: Patch, on: boolean): Step {
  return each(
    on ? "in transition" : "out of transition",
    () => patch.functions,
    ({ name, struct }) =>
      act(`${on ? "in" : "out of"} transition: ${name}`, () => struct.set("transition", on ? 1 : 0)),
  );
}

/** What comes of a patch that cannot be enabled is under way already. */
function unlessFailed(patch: Patch, step: Step): Step {
  return { ...step, run: () => (patch.refusal === undefined ? step.run() : undefined) };
}

function refusing(why: Refusal, refused: Refused): readonly Step[] {
  refused(why);
  return [];
}

function doing(target: Target): "patching" | "unpatching" {
  return target === "KLP_PATCHED" ? "patching" : "unpatching";
}
