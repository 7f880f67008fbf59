// Live patching as upstream has it (Linux kernel/livepatch, 6.1): patches, their transitions, and what modules mean to them.
//
// Everything is done in steps on the agenda, each write one of its own, so that CPUs run in between. What upstream does with
// klp_mutex held is one stretch of one strand.

import type { Addr } from "../base/addr.ts";
import { type Refusal, refuse } from "../base/refuse.ts";
import type { Ftrace } from "../ftrace/ftrace.ts";
import type { CodeMap } from "../image/codeMap.ts";
import { type Image, VMLINUX } from "../image/image.ts";
import type { Kernel, Task } from "../kernel/kernel.ts";
import { nameOfError, type PatchState, THREAD_FLAG, VECTORS } from "../kernel/layout.ts";
import { act, each, type Step, until } from "../machine/agenda.ts";
import { Kept } from "../machine/kept.ts";
import type { Pool } from "../machine/pool.ts";
import { StructView } from "../machine/struct.ts";
import { orcUnwinder } from "../unwind/orcWalker.ts";
import type { UnwindContext, Walk } from "../unwind/walk.ts";
import { type Blocker, TaskSwitch } from "./blocker.ts";
import { Checks } from "./checks.ts";
import { FunctionStacks } from "./functionStack.ts";
import { KLP_FUNC } from "./layout.ts";
import { type LivepatchOptions, LOG_LEVELS, type LogLevel, type Weakening } from "./options.ts";
import {
  type Field,
  type FunctionSpec,
  Patch,
  PatchFunction,
  PatchObject,
  type PatchSpec,
  type SystemState,
} from "./patch.ts";
import { errnoOf, refusalOf } from "./refusal.ts";

export type Target = Exclude<PatchState, "KLP_UNDEFINED">;

export interface Transition {
  readonly patch: Patch;
  readonly target: Target;
  /** How often tasks were looked at that could not be switched. */
  readonly tries: number;
}

export interface LivepatchParts {
  readonly kernel: Kernel;
  readonly ftrace: Ftrace;
  readonly code: CodeMap;
  readonly pool: Pool;
  readonly contextOf: (task: Task) => UnwindContext;
  readonly walkOfCurrent: (task: Task) => Walk | undefined;
  readonly grace: () => () => boolean;
  /** Whether a module of that name could be loaded. */
  readonly isModule: (name: string) => boolean;
  /** Counts one more who needs a module, or one less; false if it is not loaded. */
  readonly use: (module: string, by: 1 | -1) => boolean;
  /** The handler in guest code. */
  readonly handler: Addr;
  /** Makes every CPU serialise, and waits until all have. */
  readonly serialise: () => readonly Step[];
}

interface State {
  readonly patches: readonly Patch[];
  readonly transition: Transition | undefined;
  /** How often a transition was forced: from then on tasks may be in code that they should have left. */
  readonly forces: number;
  /** Modules that have been heard of, from their coming until their going: those that are mapped already, or still, count for nothing. */
  readonly alive: readonly Image[];
  /** What has come of modules that came or went, by their struct module: an error number, 0, or 1 until it is known. */
  readonly notified: ReadonlyMap<Addr, number>;
}

type NewFunction = Pick<FunctionSpec, "name" | "sympos"> & { readonly replacement?: Addr };

const STRAND = "livepatch";
const RETRY = "livepatch retry";
const SECOND = 1e9;
const SIGNALS_TIMEOUT = 15;

export class Livepatch {
  options: LivepatchOptions = {};
  readonly stacks: FunctionStacks;
  readonly tasks: TaskSwitch;
  private readonly parts: LivepatchParts;
  private readonly checks: Checks;
  private readonly kept: Kept<State>;
  private refusal: Refusal | undefined;

  constructor(parts: LivepatchParts) {
    this.parts = parts;
    this.checks = new Checks({
      code: parts.code,
      ftrace: parts.ftrace,
      log: (level, text) => this.log(level, text),
    });
    const { kernel, ftrace, pool, code } = parts;
    const { memory, keeper } = kernel.machine;
    this.kept = new Kept<State>(keeper, {
      patches: [],
      transition: undefined,
      forces: 0,
      alive: [],
      notified: new Map(),
    });
    const { handler } = parts;
    this.stacks = new FunctionStacks({ ftrace, memory, keeper, pool, handler });
    this.tasks = new TaskSwitch({
      ...{ kernel, memory, code, contextOf: parts.contextOf, walkOfCurrent: parts.walkOfCurrent },
      leaving: () => this.leaving(),
      weakened: (what) => this.isWeakened(what),
      unwinder: () => this.options.unwinder ?? orcUnwinder,
    });
  }

  // ---- What there is.

  /** In the order in which they were enabled. */
  get patches(): readonly Patch[] {
    return this.kept.value.patches;
  }

  get transition(): Transition | undefined {
    return this.kept.value.transition;
  }

  /** Whether something is being done: what is asked for now waits for its turn. */
  get isBusy(): boolean {
    return this.parts.kernel.agenda.isPending(STRAND);
  }

  get forces(): number {
    return this.kept.value.forces;
  }

  patch(name: string): Patch {
    return this.patches.find((patch) => patch.name === name) ?? refuse("no-patch", { name });
  }

  /** What is known of a state by the latest of the patches before the one in transition; undefined if none knows it. */
  previousState(id: number): SystemState | undefined {
    const end = this.transition === undefined ? undefined : this.patches.indexOf(this.transition.patch);
    const before = this.patches.slice(0, end).flatMap((patch) => patch.state(id) ?? []);
    return before.at(-1);
  }

  /** Who holds the transition up, and why; nobody if there is none. */
  blockers(): Blocker[] {
    const { transition } = this;
    return transition === undefined ? [] : this.tasks.blockers(transition.target);
  }

  // ---- What can be asked for. Where nobody runs it is done, or refused, when these return.

  /** Checks a patch, makes it known, and begins the transition to it. */
  enable(spec: PatchSpec): Patch {
    if (this.patches.some(({ name }) => name === spec.name)) refuse("klp-known", { patch: spec.name });
    const patch = this.make(spec);
    this.ask([{ what: `enable ${patch}`, run: () => this.enabling(patch) }]);
    return patch;
  }

  /** Begins the transition away from a patch; it goes with its end. */
  disable(patch: Patch): void {
    this.ask([{ what: `disable ${patch}`, run: () => this.disabling(patch) }]);
  }

  /** Turns the transition round. */
  reverse(patch: Patch): void {
    this.ask([{ what: `reverse ${patch}`, run: () => this.reversing(patch) }]);
  }

  /** Ends the transition, whatever is on stacks. */
  force(patch: Patch): void {
    this.ask([{ what: `force ${patch}`, run: () => this.forcing(patch) }]);
  }

  /** Sends those who were not switched a signal that is none, and wakes kthreads. */
  signal(): void {
    this.ask([{ what: "signal", run: () => this.signalling() }]);
  }

  /** Looks at all tasks again, at once. */
  retry(): void {
    this.ask([{ what: "retry", run: () => this.tryComplete() }]);
  }

  private ask(steps: readonly Step[]): void {
    this.refusal = undefined;
    this.parts.kernel.agenda.add(STRAND, steps);
    const refusal = this.refusal as Refusal | undefined;
    this.refusal = undefined;
    if (refusal !== undefined) throw refusal;
  }

  /** The task that a CPU executes asks for it, at a place where it can be. */
  trySwitchCurrent(task: Task): void {
    const { transition } = this;
    if (transition !== undefined) this.tasks.trySwitchCurrent(task, transition.target);
  }

  // ---- Checks.

  private make(spec: PatchSpec): Patch {
    const { keeper } = this.parts.kernel.machine;
    if (spec.objects.length === 0) refuse("klp-empty", { patch: spec.name });
    const patch = new Patch(keeper, spec);
    this.checks.refuseIncompatible(patch, this.patches);
    const objects = spec.objects.map(({ name = VMLINUX, functions, callbacks = {} }) => {
      const funcs = functions.map((func) => this.makeFunction(this.located(patch, func)));
      return new PatchObject(keeper, patch, name, funcs, callbacks);
    });
    patch.change({ objects });
    const refusal = refusalOf(() => {
      this.checks.refuseUnresolved(patch);
      for (const object of objects) this.check(patch, object);
    });
    if (refusal !== undefined) {
      this.freeFunctions(patch, patch.functions);
      throw refusal;
    }
    patch.change({ holdsModule: this.parts.use(patch.name, 1) });
    return patch;
  }

  private check(patch: Patch, object: PatchObject): void {
    const image = this.imageOf(object.name);
    if (image !== undefined) this.checks.resolve(patch, object, image);
    else if (!this.parts.isModule(object.name))
      refuse("klp-no-object", { patch: patch.name, object: object.name });
  }

  /** A replacement that has a name is a function of the patch's own module. */
  private located({ name: patch }: Patch, spec: FunctionSpec): FunctionSpec & { readonly replacement: Addr } {
    const { name: func, replacement } = spec;
    if (typeof replacement === "number") return { ...spec, replacement };
    const module = this.parts.code.images.find((image) => image.name === patch);
    const found = module?.named(replacement).filter(({ kind }) => kind === "func") ?? [];
    const [only, another] = found;
    if (only === undefined || another !== undefined)
      refuse("klp-replacement-name", { patch, func, replacement });
    return { ...spec, replacement: only.address };
  }

  private makeFunction({ name, sympos = 0, replacement }: NewFunction) {
    const { pool, kernel } = this.parts;
    const { memory, keeper } = kernel.machine;
    const struct = new StructView(memory, KLP_FUNC, pool.take(KLP_FUNC.size));
    struct.set("new_func", replacement ?? 0);
    struct.set("next", 0);
    struct.set("transition", 0);
    return new PatchFunction(keeper, { name, sympos, replacement, struct });
  }

  private imageOf(object: string): Image | undefined {
    const images = object === VMLINUX ? this.parts.code.images : this.kept.value.alive;
    return images.find(({ name }) => name === object);
  }

  // ---- Enabling and disabling.

  private enabling(patch: Patch): readonly Step[] {
    if (this.transition !== undefined)
      return this.failToEnable(patch, () => refuse("klp-busy", { patch: patch.name }));
    if (this.patches.some(({ name }) => name === patch.name))
      return this.failToEnable(patch, () => refuse("klp-known", { patch: patch.name }));
    if (patch.replace) this.addNops(patch);
    this.set({
      patches: [...this.patches, patch],
      transition: { patch, target: "KLP_PATCHED", tries: 0 },
    });
    this.log("notice", `enabling patch '${patch}'`);
    const phases = {
      target: this.setTarget(),
      states: this.setStates("KLP_UNPATCHED"),
      transition: this.setTransition(patch, true),
      stack: { what: "patch objects", run: () => this.patchObjects(patch) },
      pending: { what: "start", run: () => this.starting() },
    };
    const order = this.ordered(["target", "states", "transition", "stack", "pending"]);
    return [
      ...this.unsettle(patch),
      act("begin", () => this.log("debug", `'${patch}': initializing patching transition`)),
      ...order.map((name) => this.unlessFailed(patch, phases[name as keyof typeof phases])),
      this.unlessFailed(patch, {
        what: "try",
        run: () => {
          patch.change({ enabled: true });
          return this.tryComplete();
        },
      }),
    ];
  }

  private disabling(patch: Patch): readonly Step[] {
    if (!this.patches.includes(patch) || !patch.enabled)
      return this.fail(() => refuse("klp-disabled", { patch: patch.name }));
    if (this.transition !== undefined) return this.fail(() => refuse("klp-busy", { patch: patch.name }));
    const top = this.patches.at(-1)!;
    if (this.options.onlyOnTop === true && patch !== top)
      return this.fail(() => refuse("klp-not-on-top", { patch: patch.name, top: top.name }));
    this.set({ transition: { patch, target: "KLP_UNPATCHED", tries: 0 } });
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
    return [
      ...this.unsettle(patch),
      act("begin", () => this.log("debug", `'${patch}': initializing unpatching transition`)),
      ...order.map((name) => phases[name as keyof typeof phases]),
      {
        what: "try",
        run: () => {
          patch.change({ enabled: false });
          return this.tryComplete();
        },
      },
    ];
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
    for (const order of this.options.weakened ?? []) {
      if (order === "target-before-pending") move("target", "pending");
      if (order === "states-before-transition") move("states", "transition");
      if (order === "transition-before-stack") move("transition", "stack");
      if (order === "transition-before-pending" && !isEnabling) move("transition", "pending");
    }
    return turned;
  }

  private setTarget(): Step {
    return act("the target state", () => this.writeTarget(this.transition?.target ?? "KLP_UNDEFINED"));
  }

  private writeTarget(state: PatchState): void {
    const { kernel } = this.parts;
    kernel.setTargetState(state);
  }

  private setStates(state: PatchState): Step {
    const { kernel } = this.parts;
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
    const { kernel } = this.parts;
    const ready = () => kernel.tasklistIsFree;
    const from = (tasks: readonly Task[], n: number): readonly Step[] => {
      const task = tasks[n];
      if (task === undefined) {
        const more = this.tasks.all.filter(needs);
        return more.length === 0 ? [] : from(more, 0);
      }
      return [
        {
          what: `${what} ${task}`,
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

  private starting(): readonly Step[] {
    const { patch, target } = this.transition!;
    this.log("notice", `'${patch}': starting ${doing(target)} transition`);
    this.set({ transition: { ...this.transition!, tries: 0 } });
    return [
      this.eachTask(
        "pending for",
        (task) => this.parts.kernel.patchState(task) !== target && !this.tasks.isPending(task),
        (task) => this.tasks.setFlag(task, THREAD_FLAG.TIF_PATCH_PENDING, true),
      ),
    ];
  }

  // ---- Objects and functions.

  private patchObjects(patch: Patch): readonly Step[] {
    return patch.objects.map((object) =>
      this.unlessFailed(patch, {
        what: `patch ${object.name}`,
        run: () => {
          const image = this.imageOf(object.name);
          if (image === undefined) {
            this.forget(object);
            return undefined;
          }
          const unfit = object.isLoaded
            ? undefined
            : refusalOf(() => this.checks.resolve(patch, object, image));
          if (unfit !== undefined) return this.cancelling(patch, errnoOf(unfit), unfit);
          const error = this.prePatch(object);
          if (error !== 0) {
            this.log("warn", `pre-patch callback failed for object '${object.name}'`);
            const names = { patch: patch.name, object: object.name, error: nameOfError(error) };
            return this.cancelling(
              patch,
              error,
              refusalOf(() => refuse("klp-callback", names)),
            );
          }
          return this.patchObject(object, (refusal) => {
            this.log("warn", `failed to patch object '${object.name}'`);
            const names = { patch: patch.name, object: object.name };
            const why = refusal ?? refusalOf(() => refuse("klp-not-patched", names));
            return this.cancelling(patch, errnoOf(why), why);
          });
        },
      }),
    );
  }

  /** prePatch's answer, as an error number; the kernel's callbacks return it with a minus. */
  private prePatch(object: PatchObject): number {
    const error = Math.abs(object.callbacks.prePatch?.(object) ?? 0);
    object.change({ prepared: error === 0 });
    return error;
  }

  private postUnpatch(object: PatchObject): void {
    if (object.state.value.prepared) object.callbacks.postUnpatch?.(object);
    object.change({ prepared: false });
  }

  private patchObject(
    object: PatchObject,
    failed: (refusal: Refusal | undefined) => readonly Step[],
  ): readonly Step[] {
    const pushes = object.functions.map(
      (func): Step => ({
        what: `patch ${func.name}`,
        run: () => {
          if (object.state.value.failure !== undefined) return undefined;
          const site = this.checks.siteOf({ address: func.place!.old, name: func.name });
          return this.stacks.push(func, site, (refusal) => {
            const error = errnoOf(refusal);
            this.log("err", `failed to register ftrace handler for function '${func.name}' (-${error})`);
            object.change({ failure: { refusal } });
          });
        },
      }),
    );
    const refer: Step = {
      what: `relocate what refers to ${object.name}`,
      run: () => {
        this.write(object.fields);
        return this.parts.serialise();
      },
    };
    const end: Step = {
      what: `${object.name} is patched`,
      run: () => {
        const { failure } = object.state.value;
        if (failure === undefined) {
          object.change({ patched: true });
          return undefined;
        }
        object.change({ failure: undefined });
        const { refusal } = failure;
        return [...this.unpatchObject(object), { what: "failed", run: () => failed(refusal) }];
      },
    };
    return [...(object.fields.length > 0 ? [refer] : []), ...pushes, end];
  }

  /** What it is about is not loaded any more; what refers to that leads nowhere, as before it came. */
  private forget(object: PatchObject): void {
    this.write(object.fields.map(({ at, bytes }) => ({ at, bytes: new Uint8Array(bytes.length) })));
    object.change({ image: undefined, fields: [] });
    for (const func of object.functions) func.place = undefined;
  }

  private write(fields: readonly Field[]): void {
    const { memory } = this.parts.kernel.machine;
    // The patch's own module, or whatever else has its code, may have been taken away from under it.
    for (const { at, bytes } of fields) if (memory.isMapped(at, bytes.length)) memory.write(at, bytes);
  }

  private unpatchObject(
    object: PatchObject,
    only: (func: PatchFunction) => boolean = () => true,
  ): readonly Step[] {
    const pops = object.functions.filter(only).flatMap((func) => this.stacks.pop(func));
    return [...pops, act(`${object.name} is not patched`, () => object.change({ patched: false }))];
  }

  /** Functions of earlier patches that this one leaves alone go back to their originals. */
  private addNops(patch: Patch): void {
    const { keeper } = this.parts.kernel.machine;
    for (const { objects } of this.patches) {
      for (const old of objects) {
        const known = patch.objects.find(({ name }) => name === old.name);
        const own = known ?? new PatchObject(keeper, patch, old.name, [], undefined);
        const missing = old.functions.filter((func) => !own.functions.some(({ key }) => key === func.key));
        const nops = missing.map(({ name, sympos }) => this.makeFunction({ name, sympos }));
        own.change({ functions: [...own.functions, ...nops] });
        if (known === undefined) patch.change({ objects: [...patch.objects, own] });
        const image = this.imageOf(own.name);
        if (image !== undefined) this.checks.resolve(patch, own, image);
      }
    }
  }

  /** What the transition would have tasks leave: of each function in it, its name and range. */
  private leaving() {
    const { transition } = this;
    if (transition === undefined) return [];
    const objects = transition.patch.objects.filter(({ isPatched }) => isPatched);
    return objects.flatMap(({ functions }) =>
      functions.flatMap((func) => {
        const { place } = func;
        if (place === undefined) return [];
        if (transition.target === "KLP_UNPATCHED")
          return this.isWeakened("newest-entry")
            ? []
            : [{ name: func.name, low: place.new, size: place.newSize }];
        const below = this.stacks.below(func)?.place;
        return below === undefined
          ? [{ name: func.name, low: place.old, size: place.oldSize }]
          : [{ name: func.name, low: below.new, size: below.newSize }];
      }),
    );
  }

  // ---- The way through.

  private tryComplete(): readonly Step[] {
    const { transition } = this;
    if (transition === undefined) return [];
    const { target } = transition;
    const { kernel } = this.parts;
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
          what: `try to switch ${task}`,
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
    this.log("trace", `klp_try_switch_task: ${task} ${blocker.text}`);
    if (task.has("PF_IDLE")) this.tasks.kickIdle(task);
    return false;
  }

  private incomplete(): readonly Step[] {
    const { transition, parts } = this;
    const { agenda } = parts.kernel;
    const { retryEvery = SECOND, signalsTimeout = SIGNALS_TIMEOUT } = this.options;
    const { tries } = transition!;
    this.set({ transition: { ...transition!, tries: tries + 1 } });
    const due = parts.kernel.clock + retryEvery;
    const again: Step = {
      what: "try again",
      due,
      ready: () => parts.kernel.clock >= due && !agenda.isPending(STRAND),
      run: () => {
        if (this.transition !== undefined)
          agenda.add(STRAND, [{ what: "try", run: () => this.tryComplete() }]);
        return undefined;
      },
    };
    // One at a time, however often somebody asks for another look in between.
    if (!agenda.isPending(RETRY)) agenda.add(RETRY, [again]);
    if (tries === 0 || tries % signalsTimeout !== 0) return [];
    if (tries === signalsTimeout) this.log("notice", "signaling remaining tasks");
    return this.signalling();
  }

  private signalling(): readonly Step[] {
    const { kernel } = this.parts;
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

  private completing(): readonly Step[] {
    const { patch, target } = this.transition!;
    this.log("debug", `'${patch}': completing ${doing(target)} transition`);
    const isPatching = target === "KLP_PATCHED";
    const replaced = patch.replace && isPatching ? this.patches.slice(0, this.patches.indexOf(patch)) : [];
    return [
      ...replaced.flatMap((old) => [
        act(`${old} is replaced`, () => old.change({ enabled: false })),
        ...old.objects.filter(({ isPatched }) => isPatched).flatMap((object) => this.unpatchObject(object)),
      ]),
      ...(replaced.length > 0 || patch.replace ? this.discardNops(patch, isPatching) : []),
      ...(isPatching
        ? []
        : patch.objects.filter(({ isPatched }) => isPatched).flatMap((object) => this.unpatchObject(object))),
      ...(isPatching ? [] : [this.grace()]),
      this.setTransition(patch, false),
      ...(isPatching ? [this.grace()] : []),
      this.setStates("KLP_UNDEFINED"),
      act("post callbacks", () => {
        for (const object of patch.objects) {
          if (!object.isLoaded) continue;
          if (isPatching) object.callbacks.postPatch?.(object);
          else this.postUnpatch(object);
        }
      }),
      act("complete", () => {
        this.log("notice", `'${patch}': ${doing(target)} complete`);
        this.writeTarget("KLP_UNDEFINED");
        this.set({ transition: undefined });
        for (const old of replaced) this.free(old);
        if (!patch.enabled) this.free(patch);
        this.settle();
      }),
    ];
  }

  private discardNops(patch: Patch, isPatching: boolean): readonly Step[] {
    if (!isPatching) return [];
    const isNop = ({ isNop }: PatchFunction) => isNop;
    const pops = patch.objects.flatMap((object) =>
      object.functions.filter(isNop).flatMap((func) => this.stacks.pop(func)),
    );
    const forget = act("NOPs are gone", () => {
      const nops = patch.functions.filter(isNop);
      for (const object of patch.objects)
        object.change({ functions: object.functions.filter((func) => !func.isNop) });
      patch.change({ objects: patch.objects.filter(({ isDynamic }) => !isDynamic) });
      this.freeFunctions(patch, nops);
    });
    return [...pops, forget];
  }

  /** Before it has begun for any task. */
  private cancelling(patch: Patch, error: number, refusal: Refusal | undefined): readonly Step[] {
    this.log("warn", `failed to enable patch '${patch}'`);
    this.log("debug", `'${patch}': canceling patching transition, going to unpatch`);
    patch.change({ error, enabled: false });
    const { transition } = this;
    this.set({ transition: { ...transition!, target: "KLP_UNPATCHED" } });
    this.writeTarget("KLP_UNPATCHED");
    this.refusal = refusal;
    return this.completing();
  }

  private unlessFailed(patch: Patch, step: Step): Step {
    return { ...step, run: () => (patch.error === undefined ? step.run() : undefined) };
  }

  /** What was asked for cannot be: whoever asked is told if he waits. */
  private fail(refused: () => never): readonly Step[] {
    this.refusal = refusalOf(refused);
    return [];
  }

  /** The patch has never been known to anybody, and is given back. */
  private failToEnable(patch: Patch, refused: () => never): readonly Step[] {
    this.refusal = refusalOf(refused);
    patch.change({ error: errnoOf(this.refusal) });
    this.release(patch);
    return [];
  }

  private reversing(patch: Patch): readonly Step[] {
    const { transition } = this;
    if (transition?.patch !== patch)
      return this.fail(() => refuse("klp-no-transition", { patch: patch.name }));
    const target = transition.target === "KLP_PATCHED" ? "KLP_UNPATCHED" : "KLP_PATCHED";
    const way = target === "KLP_UNPATCHED" ? "patching to unpatching" : "unpatching to patching";
    this.log("debug", `'${patch}': reversing transition from ${way}`);
    patch.change({ enabled: !patch.enabled });
    this.set({ transition: { ...transition, target, tries: 0 } });
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

  private forcing(patch: Patch): readonly Step[] {
    const { transition } = this;
    if (transition?.patch !== patch)
      return this.fail(() => refuse("klp-no-transition", { patch: patch.name }));
    const { target } = transition;
    this.log("warn", "forcing remaining tasks to the patched state");
    this.set({ forces: this.forces + 1 });
    const left =
      target === "KLP_UNPATCHED" ? [patch] : patch.replace ? this.patches.filter((one) => one !== patch) : [];
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

  private grace(): Step {
    return {
      what: "grace period",
      run: () =>
        this.isWeakened("grace-period")
          ? undefined
          : [until("every CPU has been preemptible", this.parts.grace())],
    };
  }

  // ---- Fully patched.

  /** Where only one thing is left to do at a site, it jumps there. */
  private settle(): void {
    for (const { ops, functions } of this.stacks.all.values()) {
      const [top] = functions;
      if (top !== undefined && !top.isNop) this.parts.ftrace.settle(ops, top.place!.new);
    }
  }

  /** The sites that the patch is going to have a say at have a handler again, and no CPU can execute a jump there. */
  private unsettle(patch: Patch): readonly Step[] {
    const stacks = () => patch.functions.flatMap((func) => this.stacks.of(func) ?? []);
    return [
      act("handlers decide again", () => {
        for (const { ops } of stacks()) this.parts.ftrace.settle(ops, undefined);
      }),
      until("no site jumps", () =>
        stacks().every(({ ops, site }) => this.parts.ftrace.isDone(ops) && site.target.kind !== "jump"),
      ),
    ];
  }

  // ---- Modules.

  /** A module is coming, before its own beginning, or going, behind its end; `at` is its struct module. */
  notify(at: Addr, image: Image, coming: boolean): void {
    this.setNotified(at, 1);
    const steps = coming ? () => this.coming(at, image) : () => this.going(at, image, undefined);
    this.parts.kernel.agenda.add(STRAND, [
      { what: `${image.name} is ${coming ? "coming" : "going"}`, run: steps },
    ]);
  }

  /** What has come of that. */
  notified(at: Addr): number {
    return this.kept.value.notified.get(at) ?? 0;
  }

  private coming(at: Addr, image: Image): readonly Step[] {
    this.set({ alive: [...this.kept.value.alive, image] });
    const failed = (patch: Patch, object: PatchObject, error: number): readonly Step[] => {
      this.log(
        "warn",
        `patch '${patch}' failed for module '${image.name}', refusing to load module '${image.name}'`,
      );
      this.forget(object);
      return [...this.going(at, image, patch), act("it is refused", () => this.setNotified(at, -error))];
    };
    const from = (patches: readonly Patch[], n: number): readonly Step[] => {
      const patch = patches[n];
      if (patch === undefined) return [act("it may come", () => this.comes(at))];
      const object = patch.objects.find(({ name }) => name === image.name);
      if (object === undefined) return from(patches, n + 1);
      const refusal = refusalOf(() => this.checks.resolve(patch, object, image));
      if (refusal !== undefined) {
        const error = errnoOf(refusal);
        this.log("warn", `failed to initialize patch '${patch}' for module '${image.name}' (-${error})`);
        return failed(patch, object, error);
      }
      this.log("notice", `applying patch '${patch}' to loading module '${image.name}'`);
      const error = this.prePatch(object);
      if (error !== 0) {
        this.log("warn", `pre-patch callback failed for object '${object.name}'`);
        return failed(patch, object, error);
      }
      return [
        ...this.patchObject(object, (why) => {
          const number = errnoOf(why);
          this.log("warn", `failed to apply patch '${patch}' to module '${image.name}' (-${number})`);
          this.postUnpatch(object);
          return failed(patch, object, number);
        }),
        {
          what: `${image.name}: next patch`,
          run: () => {
            if (!object.isPatched) return undefined;
            if (patch !== this.transition?.patch) object.callbacks.postPatch?.(object);
            return from(patches, n + 1);
          },
        },
      ];
    };
    return from(this.patches, 0);
  }

  /** Reverts the patches before `limit`, or all. */
  private going(at: Addr, image: Image, limit: Patch | undefined): readonly Step[] {
    this.set({ alive: this.kept.value.alive.filter((one) => one !== image) });
    const patches = limit === undefined ? this.patches : this.patches.slice(0, this.patches.indexOf(limit));
    const steps = patches.flatMap((patch): Step[] => {
      const object = patch.objects.find(({ name }) => name === image.name);
      if (object === undefined || !object.isLoaded) return [];
      return [
        act(`${patch} leaves ${image.name}`, () => {
          if (patch !== this.transition?.patch) object.callbacks.preUnpatch?.(object);
          this.log("notice", `reverting patch '${patch}' on unloading module '${image.name}'`);
        }),
        { what: `unpatch ${image.name}`, run: () => this.unpatchObject(object) },
        act(`${patch} has left ${image.name}`, () => {
          this.postUnpatch(object);
          this.forget(object);
        }),
      ];
    });
    return limit === undefined ? [...steps, act("it may go", () => this.setNotified(at, 0))] : steps;
  }

  private comes(at: Addr): void {
    if (this.transition === undefined) this.settle();
    this.setNotified(at, 0);
  }

  private setNotified(at: Addr, result: number): void {
    this.set({ notified: new Map([...this.kept.value.notified, [at, result]]) });
  }

  // ---- The end.

  private free(patch: Patch): void {
    this.set({ patches: this.patches.filter((other) => other !== patch) });
    if (!patch.forced) this.release(patch);
  }

  /** Gives back what a patch has, its module among that: once nobody can be at it any more. */
  private release(patch: Patch): void {
    this.freeFunctions(patch, patch.functions);
    if (!patch.holdsModule) return;
    patch.change({ holdsModule: false });
    this.parts.kernel.agenda.add(`free ${patch}`, [
      act(`${patch} lets its module go`, () => this.parts.use(patch.name, -1)),
    ]);
  }

  private freeFunctions(patch: Patch, functions: readonly PatchFunction[]): void {
    const { kernel, pool, grace } = this.parts;
    kernel.agenda.add(`free ${patch}`, [
      {
        what: `wait until no handler of before is at work, for ${patch}`,
        ready: grace(),
        run: () => {
          for (const { struct } of functions) pool.give(struct.at, KLP_FUNC.size);
          return undefined;
        },
      },
    ]);
  }

  private isWeakened(what: Weakening): boolean {
    return this.options.weakened?.includes(what) === true;
  }

  private log(level: LogLevel, text: string): void {
    const { logLevel = "debug" } = this.options;
    if (LOG_LEVELS.indexOf(level) > LOG_LEVELS.indexOf(logLevel)) return;
    this.parts.kernel.log.print(`livepatch: ${text}`);
  }

  private set(to: Partial<State>): void {
    this.kept.value = { ...this.kept.value, ...to };
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
