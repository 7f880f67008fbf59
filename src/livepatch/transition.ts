// The way from one universe to the other, task by task: how it begins, goes on, is turned round, forced, and ends.

import { type Refusal, refuse } from "../base/refuse.ts";
import type { Task } from "../kernel/kernel.ts";
import { nameOfError, type PatchState, THREAD_FLAG, VECTORS } from "../kernel/layout.ts";
import { act, each, type Step, until } from "../machine/agenda.ts";
import { orcUnwinder } from "../unwind/orcWalker.ts";
import { TaskSwitch } from "./blocker.ts";
import { type Core, STRAND, type Target } from "./core.ts";
import type { FunctionStack } from "./functionStack.ts";
import type { Objects } from "./objects.ts";
import type { Patch } from "./patch.ts";
import { errnoOf, refusalOf } from "./refusal.ts";

const RETRY = "livepatch retry";
const SECOND = 1e9;
const SIGNALS_TIMEOUT = 15;

export class Transitions {
  readonly tasks: TaskSwitch;
  /** Why the last thing that was asked for cannot be. */
  refusal: Refusal | undefined;
  private readonly core: Core;
  private readonly objects: Objects;

  constructor(core: Core, objects: Objects) {
    this.core = core;
    this.objects = objects;
    const { kernel, code, contextOf, walkOfCurrent } = core.parts;
    const { memory } = kernel.machine;
    this.tasks = new TaskSwitch({
      ...{ kernel, memory, code, contextOf, walkOfCurrent },
      leaving: () => this.leaving(),
      weakened: (what) => core.isWeakened(what),
      unwinder: () => core.options.unwinder ?? orcUnwinder,
    });
  }

  // ---- Enabling and disabling.

  enabling(patch: Patch): readonly Step[] {
    if (this.core.transition !== undefined)
      return this.failToEnable(
        patch,
        refusalOf(() => refuse("klp-busy", { patch: patch.name })),
      );
    if (this.core.patches.some(({ name }) => name === patch.name))
      return this.failToEnable(
        patch,
        refusalOf(() => refuse("klp-known", { patch: patch.name })),
      );
    // What it was checked against may have changed since it was asked for.
    const unfit = refusalOf(() => {
      this.core.checks.refuseIncompatible(patch, this.core.patches);
      if (patch.replace) this.objects.addNops(patch);
    });
    if (unfit !== undefined) return this.failToEnable(patch, unfit);
    this.core.set({
      patches: [...this.core.patches, patch],
      transition: { patch, target: "KLP_PATCHED", tries: 0 },
    });
    this.core.log("notice", `enabling patch '${patch}'`);
    const phases = {
      target: this.setTarget(),
      states: this.setStates("KLP_UNPATCHED"),
      transition: this.setTransition(patch, true),
      stack: { what: "patch objects", run: () => this.patchObjects(patch) },
      pending: { what: "start", run: () => this.starting() },
    };
    const order = this.ordered(["target", "states", "transition", "stack", "pending"]);
    const steps = () => [
      act("begin", () => this.core.log("debug", `'${patch}': initializing patching transition`)),
      ...order.map((name) => this.unlessFailed(patch, phases[name as keyof typeof phases])),
      this.unlessFailed(patch, {
        what: "try",
        run: () => {
          patch.change({ enabled: true });
          return this.tryComplete();
        },
      }),
    ];
    return this.unsettle(patch, steps, (stuck) => {
      this.core.set({
        patches: this.core.patches.filter((other) => other !== patch),
        transition: undefined,
      });
      return this.failToEnable(patch, stuck);
    });
  }

  disabling(patch: Patch): readonly Step[] {
    if (!this.core.patches.includes(patch) || !patch.enabled)
      return this.fail(refusalOf(() => refuse("klp-disabled", { patch: patch.name })));
    if (this.core.transition !== undefined)
      return this.fail(refusalOf(() => refuse("klp-busy", { patch: patch.name })));
    const top = this.core.patches.at(-1)!;
    if (this.core.options.onlyOnTop === true && patch !== top)
      return this.fail(refusalOf(() => refuse("klp-not-on-top", { patch: patch.name, top: top.name })));
    this.core.set({ transition: { patch, target: "KLP_UNPATCHED", tries: 0 } });
    const phases = {
      target: this.setTarget(),
      states: this.setStates("KLP_PATCHED"),
      transition: this.setTransition(patch, true),
      callbacks: act("pre-unpatch callbacks", () => {
        for (const object of patch.objects) if (object.isPatched) object.callbacks.preUnpatch?.(object);
      }),
      pending: { what: "start", run: () => this.starting() },
    };
    const order = this.ordered(["target", "states", "transition", "callbacks", "pending"]);
    const steps = () => [
      act("begin", () => this.core.log("debug", `'${patch}': initializing unpatching transition`)),
      ...order.map((name) => phases[name as keyof typeof phases]),
      {
        what: "try",
        run: () => {
          patch.change({ enabled: false });
          return this.tryComplete();
        },
      },
    ];
    return this.unsettle(patch, steps, (stuck) => {
      this.core.set({ transition: undefined });
      return this.fail(stuck);
    });
  }

  /** The phases, in the order that they should have or, where it is weakened, in another. */
  private ordered(phases: readonly string[]): readonly string[] {
    const turned = [...phases];
    const move = (name: string, behind: string) => {
      if (!turned.includes(name) || !turned.includes(behind)) return;
      turned.splice(turned.indexOf(name), 1);
      turned.splice(turned.indexOf(behind) + 1, 0, name);
    };
    const isEnabling = phases.includes("stack");
    for (const order of this.core.options.weakened ?? []) {
      if (order === "target-before-pending") move("target", "pending");
      if (order === "states-before-transition") move("states", "transition");
      if (order === "transition-before-stack") move("transition", "stack");
      if (order === "transition-before-pending" && !isEnabling) move("transition", "pending");
    }
    return turned;
  }

  private setTarget(): Step {
    return act("the target state", () => this.writeTarget(this.core.transition?.target ?? "KLP_UNDEFINED"));
  }

  private writeTarget(state: PatchState): void {
    const { kernel } = this.core.parts;
    kernel.setTargetState(state);
  }

  private setStates(state: PatchState): Step {
    const { kernel } = this.core.parts;
    return this.eachTask(
      `${state} for`,
      (task) => kernel.patchState(task) !== state,
      (task) => kernel.setPatchState(task, state),
    );
  }

  /**
   * A step for each task that needs it, until none does: those as well that begin meanwhile. Each is made while nobody holds
   * tasklist_lock, which upstream holds all the time.
   */
  private eachTask(what: string, needs: (task: Task) => boolean, run: (task: Task) => void): Step {
    const { kernel } = this.core.parts;
    const ready = () => kernel.tasklistIsFree;
    const from = (tasks: readonly Task[], n: number): readonly Step[] => {
      const task = tasks[n];
      if (task === undefined) {
        const more = this.tasks.all.filter(needs);
        return more.length === 0 ? [] : from(more, 0);
      }
      return [
        {
          // For whoever asks: there may be many, and a task's name is in guest memory.
          get what() {
            return `${what} ${task}`;
          },
          ready,
          run: () => {
            if (needs(task)) run(task);
            return from(tasks, n + 1);
          },
        },
      ];
    };
    return { what, ready, run: () => from(this.tasks.all.filter(needs), 0) };
  }

  private setTransition(patch: Patch, on: boolean): Step {
    return each(
      on ? "in transition:" : "out of transition:",
      () => patch.functions.map((func) => new Named(func.name, func)),
      ({ of }) => of.struct.set("transition", on ? 1 : 0),
    );
  }

  private patchObjects(patch: Patch): readonly Step[] {
    return patch.objects.map((object) =>
      this.unlessFailed(patch, {
        what: `patch ${object.name}`,
        run: () => {
          const image = this.core.imageOf(object.name);
          if (image === undefined) {
            this.objects.forget(object);
            return undefined;
          }
          const unfit = object.isLoaded
            ? undefined
            : refusalOf(() => this.core.checks.resolve(patch, object, image));
          if (unfit !== undefined) return this.cancelling(patch, errnoOf(unfit), unfit);
          const error = this.objects.prePatch(object);
          if (error !== 0) {
            this.core.log("warn", `pre-patch callback failed for object '${object.name}'`);
            const names = { patch: patch.name, object: object.name, error: nameOfError(error) };
            return this.cancelling(
              patch,
              error,
              refusalOf(() => refuse("klp-callback", names)),
            );
          }
          return this.objects.patchObject(object, (refusal) => {
            this.core.log("warn", `failed to patch object '${object.name}'`);
            const names = { patch: patch.name, object: object.name };
            const why = refusal ?? refusalOf(() => refuse("klp-not-patched", names));
            return this.cancelling(patch, errnoOf(why), why);
          });
        },
      }),
    );
  }

  private starting(): readonly Step[] {
    const { patch, target } = this.core.transition!;
    this.core.log("notice", `'${patch}': starting ${doing(target)} transition`);
    this.core.set({ transition: { ...this.core.transition!, tries: 0 } });
    return [
      this.eachTask(
        "pending for",
        (task) => this.core.parts.kernel.patchState(task) !== target && !this.tasks.isPending(task),
        (task) => this.tasks.setFlag(task, THREAD_FLAG.TIF_PATCH_PENDING, true),
      ),
    ];
  }

  /** Before it has begun for any task. */
  private cancelling(patch: Patch, error: number, refusal: Refusal | undefined): readonly Step[] {
    this.core.log("warn", `failed to enable patch '${patch}'`);
    this.core.log("debug", `'${patch}': canceling patching transition, going to unpatch`);
    patch.change({ error, enabled: false });
    const { transition } = this.core;
    this.core.set({ transition: { ...transition!, target: "KLP_UNPATCHED" } });
    this.writeTarget("KLP_UNPATCHED");
    this.refusal = refusal;
    return this.completing();
  }

  private unlessFailed(patch: Patch, step: Step): Step {
    return { ...step, run: () => (patch.error === undefined ? step.run() : undefined) };
  }

  /** What was asked for cannot be: whoever asked is told if he waits. */
  private fail(refusal: Refusal | undefined): readonly Step[] {
    this.refusal = refusal;
    return [];
  }

  /** The patch has never been known to anybody, and is given back. */
  private failToEnable(patch: Patch, refusal: Refusal | undefined): readonly Step[] {
    this.refusal = refusal;
    patch.change({ error: errnoOf(this.refusal) });
    this.objects.release(patch);
    return [];
  }

  // ---- Task by task.

  tryComplete(): readonly Step[] {
    const { transition } = this.core;
    if (transition === undefined) return [];
    const { target } = transition;
    const { kernel } = this.core.parts;
    const ready = () => kernel.tasklistIsFree;
    const left = () => this.tasks.all.filter((task) => kernel.patchState(task) !== target);
    const from = (tasks: readonly Task[], n: number, complete: boolean): readonly Step[] => {
      const task = tasks[n];
      if (task === undefined) {
        if (!complete) return this.incomplete();
        // Those who began meanwhile, with a parent that had not been switched.
        const more = left();
        return more.length === 0 ? this.completing() : from(more, 0, true);
      }
      return [
        {
          get what() {
            return `try to switch ${task}`;
          },
          ready,
          run: () => from(tasks, n + 1, this.trySwitch(task, target) && complete),
        },
      ];
    };
    return [{ what: "look at all tasks", ready, run: () => from(left(), 0, true) }];
  }

  private trySwitch(task: Task, target: Target): boolean {
    const blocker = this.tasks.trySwitch(task, target);
    if (blocker === undefined) return true;
    this.core.log("trace", `klp_try_switch_task: ${task} ${blocker.text}`);
    if (task.has("PF_IDLE")) this.tasks.kickIdle(task);
    return false;
  }

  private incomplete(): readonly Step[] {
    const { transition, parts } = this.core;
    const { agenda } = parts.kernel;
    const { retryEvery = SECOND, signalsTimeout = SIGNALS_TIMEOUT } = this.core.options;
    const { tries } = transition!;
    this.core.set({ transition: { ...transition!, tries: tries + 1 } });
    const due = parts.kernel.clock + retryEvery;
    const again: Step = {
      what: "try again",
      due,
      ready: () => parts.kernel.clock >= due && !agenda.isPending(STRAND),
      run: () => {
        if (this.core.transition !== undefined)
          agenda.add(STRAND, [{ what: "try", run: () => this.tryComplete() }]);
        return undefined;
      },
    };
    // One at a time, however often somebody asks for another look in between.
    if (!agenda.isPending(RETRY)) agenda.add(RETRY, [again]);
    if (tries === 0 || tries % signalsTimeout !== 0) return [];
    if (tries === signalsTimeout) this.core.log("notice", "signaling remaining tasks");
    return this.signalling();
  }

  signalling(): readonly Step[] {
    const { kernel } = this.core.parts;
    if (!kernel.agenda.live) return [];
    const kick = (task: Task): readonly Step[] => {
      const cpu = kernel.cpus[task.struct.getNumber("cpu")] ?? kernel.cpus[0]!;
      const free = () => cpu.struct.getNumber("kick") === 0;
      return [
        until(`${task} can be kicked`, free),
        act(`kick ${task}`, () => {
          cpu.struct.set("kick", task.struct.at);
          kernel.interrupt(cpu.struct.getNumber("number"), VECTORS.CALL_FUNCTION_VECTOR);
        }),
        until(`${task} is kicked`, free),
      ];
    };
    const pending = this.tasks.all.filter((task) => !task.has("PF_IDLE") && this.tasks.isPending(task));
    return pending.flatMap(kick);
  }

  /** What the transition would have tasks leave: of each function in it, its name and range. */
  private leaving() {
    const { transition } = this.core;
    if (transition === undefined) return [];
    const objects = transition.patch.objects.filter(({ isPatched }) => isPatched);
    return objects.flatMap(({ functions }) =>
      functions.flatMap((func) => {
        const { place } = func;
        if (place === undefined) return [];
        if (transition.target === "KLP_UNPATCHED")
          return this.core.isWeakened("newest-entry")
            ? []
            : [{ name: func.name, low: place.new, size: place.newSize }];
        const below = this.core.stacks.below(func).flatMap((other) => other.place ?? []);
        const bodies = [
          ...below.map((other) => ({ name: func.name, low: other.new, size: other.newSize })),
          { name: func.name, low: place.old, size: place.oldSize },
        ];
        // Where a transition was forced, tasks may have stayed in any of them.
        return this.core.state.forces > 0 ? bodies : bodies.slice(0, 1);
      }),
    );
  }

  // ---- Turning round, forcing, and the end.

  reversing(patch: Patch): readonly Step[] {
    const { transition } = this.core;
    if (transition?.patch !== patch)
      return this.fail(refusalOf(() => refuse("klp-no-transition", { patch: patch.name })));
    const target = transition.target === "KLP_PATCHED" ? "KLP_UNPATCHED" : "KLP_PATCHED";
    const way = target === "KLP_UNPATCHED" ? "patching to unpatching" : "unpatching to patching";
    this.core.log("debug", `'${patch}': reversing transition from ${way}`);
    patch.change({ enabled: !patch.enabled });
    this.core.set({ transition: { ...transition, target, tries: 0 } });
    return [
      this.setTarget(),
      this.eachTask(
        "pending no more:",
        (task) => this.tasks.isPending(task),
        (task) => this.tasks.setFlag(task, THREAD_FLAG.TIF_PATCH_PENDING, false),
      ),
      this.grace(),
      { what: "start", run: () => this.starting() },
      { what: "try", run: () => this.tryComplete() },
    ];
  }

  forcing(patch: Patch): readonly Step[] {
    const { transition } = this.core;
    if (transition?.patch !== patch)
      return this.fail(refusalOf(() => refuse("klp-no-transition", { patch: patch.name })));
    const { target } = transition;
    this.core.log("warn", "forcing remaining tasks to the patched state");
    this.core.set({ forces: this.core.state.forces + 1 });
    const left =
      target === "KLP_UNPATCHED"
        ? [patch]
        : patch.replace
          ? this.core.patches.filter((one) => one !== patch)
          : [];
    for (const one of left) one.change({ forced: true });
    return [
      this.eachTask(
        "force",
        (task) => this.tasks.isPending(task),
        (task) => this.tasks.force(task, target),
      ),
      { what: "try", run: () => this.tryComplete() },
    ];
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
      this.setTransition(patch, false),
      ...(isPatching ? [this.grace()] : []),
      this.setStates("KLP_UNDEFINED"),
      act("post callbacks", () => {
        for (const object of patch.objects) {
          if (!object.isLoaded) continue;
          if (isPatching) object.callbacks.postPatch?.(object);
          else this.objects.postUnpatch(object);
        }
      }),
      act("complete", () => {
        this.core.log("notice", `'${patch}': ${doing(target)} complete`);
        this.writeTarget("KLP_UNDEFINED");
        this.core.set({ transition: undefined });
        for (const old of replaced) this.objects.free(old);
        if (!patch.enabled) this.objects.free(patch);
        this.settle();
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

  // ---- Fully patched.

  /** Where only one thing is left to do at a site, it jumps there. */
  settle(): void {
    for (const { ops, functions } of this.core.stacks.all.values()) {
      const [top] = functions;
      if (top !== undefined && !top.isNop) this.core.parts.ftrace.settle(ops, top.place!.new);
    }
  }

  /**
   * The sites that the patch is going to have a say at have a handler again, and no CPU can execute a jump there: `then`. Or one of
   * them cannot be rewritten: `failed`, and all is as it was.
   */
  private unsettle(
    patch: Patch,
    then: () => readonly Step[],
    failed: (stuck: Refusal | undefined) => readonly Step[],
  ): readonly Step[] {
    const { ftrace } = this.core.parts;
    const stacks = () => patch.functions.flatMap((func) => this.core.stacks.of(func) ?? []);
    const isStuck = ({ ops }: FunctionStack) => ops.state.value.settled !== undefined;
    return [
      act("handlers decide again", () => {
        for (const { ops } of stacks()) ftrace.settle(ops, undefined);
      }),
      until("no site jumps", () =>
        stacks().every(
          (stack) => ftrace.isDone(stack.ops) && (stack.site.target.kind !== "jump" || isStuck(stack)),
        ),
      ),
      {
        what: "see whether that could be done",
        run: () => {
          const stuck = stacks().find(isStuck);
          if (stuck === undefined) return then();
          this.settle();
          const names = { patch: patch.name, func: stuck.site.symbol };
          return failed(refusalOf(() => refuse("klp-stuck", names)));
        },
      },
    ];
  }
}

/** Something with a name for the step that it is about. */
class Named<T> {
  readonly of: T;
  private readonly name: string;

  constructor(name: string, of: T) {
    this.name = name;
    this.of = of;
  }

  toString(): string {
    return this.name;
  }
}

function doing(target: Target): "patching" | "unpatching" {
  return target === "KLP_PATCHED" ? "patching" : "unpatching";
}
