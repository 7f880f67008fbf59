// Live patching as upstream has it (Linux kernel/livepatch, 6.1): patches, their transitions, and what modules mean to them.
//
// Everything is done in steps on the agenda, each write one of its own, so that CPUs run in between. This is what others ask of
// it; how it is done is transition.ts's, objects.ts's and moduleNotifier.ts's, on what core.ts keeps.

import type { Addr } from "../base/addr.ts";
import { type Refusal, refuse } from "../base/refuse.ts";
import { type Image, VMLINUX } from "../image/image.ts";
import type { Task } from "../kernel/kernel.ts";
import type { Step } from "../machine/agenda.ts";
import type { Blocker, TaskSwitch } from "./blocker.ts";
import { Core, type LivepatchParts, STRAND, type Transition } from "./core.ts";
import type { FunctionStacks } from "./functionStack.ts";
import { ModuleNotifier } from "./moduleNotifier.ts";
import { Objects } from "./objects.ts";
import { type LivepatchOptions, refuseOptions } from "./options.ts";
import { type FunctionSpec, Patch, PatchObject, type PatchSpec, type SystemState } from "./patch.ts";
import { refusalOf } from "./refusal.ts";
import { Transitions } from "./transition.ts";

export class Livepatch {
  private readonly core: Core;
  private readonly objects: Objects;
  private readonly transitions: Transitions;
  private readonly modules: ModuleNotifier;

  constructor(parts: LivepatchParts) {
    this.core = new Core(parts);
    this.objects = new Objects(this.core);
    this.transitions = new Transitions(this.core, this.objects);
    this.modules = new ModuleNotifier(this.core, this.objects, () => this.transitions.settle());
  }

  get options(): LivepatchOptions {
    return this.core.options;
  }

  /** Refuses values that none of them can have. */
  set options(options: LivepatchOptions) {
    refuseOptions(options);
    this.core.options = options;
  }

  // ---- What there is.

  get stacks(): FunctionStacks {
    return this.core.stacks;
  }

  get tasks(): TaskSwitch {
    return this.transitions.tasks;
  }

  /** In the order in which they were enabled. */
  get patches(): readonly Patch[] {
    return this.core.state.patches;
  }

  get transition(): Transition | undefined {
    return this.core.state.transition;
  }

  /** Whether something is being done: what is asked for now waits for its turn. */
  get isBusy(): boolean {
    return this.core.parts.kernel.agenda.isPending(STRAND);
  }

  get forces(): number {
    return this.core.state.forces;
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
    this.ask([{ what: `enable ${patch}`, run: () => this.transitions.enabling(patch) }]);
    return patch;
  }

  /** Begins the transition away from a patch; it goes with its end. */
  disable(patch: Patch): void {
    this.ask([{ what: `disable ${patch}`, run: () => this.transitions.disabling(patch) }]);
  }

  /** Turns the transition round. */
  reverse(patch: Patch): void {
    this.ask([{ what: `reverse ${patch}`, run: () => this.transitions.reversing(patch) }]);
  }

  /** Ends the transition, whatever is on stacks. */
  force(patch: Patch): void {
    this.ask([{ what: `force ${patch}`, run: () => this.transitions.forcing(patch) }]);
  }

  /** Sends those who were not switched a signal that is none, and wakes kthreads. */
  signal(): void {
    this.ask([{ what: "signal", run: () => this.transitions.signalling() }]);
  }

  /** Looks at all tasks again, at once. */
  retry(): void {
    this.ask([{ what: "retry", run: () => this.transitions.tryComplete() }]);
  }

  private ask(steps: readonly Step[]): void {
    const before = this.transitions.refusal; // of a request that a callback's is part of
    this.transitions.refusal = undefined;
    this.core.parts.kernel.agenda.add(STRAND, steps);
    const refusal = this.transitions.refusal as Refusal | undefined;
    this.transitions.refusal = before;
    if (refusal !== undefined) throw refusal;
  }

  // ---- What the guest tells.

  /** The task that a CPU executes asks for it, at a place where it can be. */
  trySwitchCurrent(task: Task): void {
    const { transition } = this;
    if (transition !== undefined) this.tasks.trySwitchCurrent(task, transition.target);
  }

  /** A module is coming, before its own beginning, or going, behind its end; `at` is its struct module. */
  notify(at: Addr, image: Image, coming: boolean): void {
    this.modules.notify(at, image, coming);
  }

  /** What has come of that: an error number, 0, or 1 until it is known. */
  notified(at: Addr): number {
    return this.modules.notified(at);
  }

  // ---- Checks.

  private make(spec: PatchSpec): Patch {
    const { keeper } = this.core.parts.kernel.machine;
    this.core.checks.refuseMalformed(spec);
    const patch = new Patch(keeper, spec);
    this.core.checks.refuseIncompatible(patch, this.patches);
    const located = spec.objects.map(({ functions }) => functions.map((func) => this.located(patch, func)));
    const objects = spec.objects.map(({ name = VMLINUX, callbacks = {} }, n) => {
      const functions = located[n]!.map((func) => this.objects.makeFunction(func));
      return new PatchObject(keeper, patch, name, functions, callbacks);
    });
    patch.change({ objects });
    const { use } = this.core.parts;
    const holds: string[] = [];
    const refusal = refusalOf(() => {
      this.core.checks.refuseUnresolved(patch);
      for (const object of objects) this.check(patch, object);
      for (const { name } of this.core.checks.imagesOf(patch)) if (use(name, 1)) holds.push(name);
    });
    if (refusal !== undefined) {
      for (const name of holds) use(name, -1);
      this.objects.freeFunctions(patch, patch.functions);
      throw refusal;
    }
    patch.change({ holds });
    return patch;
  }

  private check(patch: Patch, object: PatchObject): void {
    const image = this.core.imageOf(object.name);
    if (image !== undefined) this.core.checks.resolve(patch, object, image);
    else if (!this.core.parts.isModule(object.name))
      refuse("klp-no-object", { patch: patch.name, object: object.name });
  }

  /** A replacement that has a name is a function of the patch's own module. */
  private located({ name: patch }: Patch, spec: FunctionSpec): FunctionSpec & { readonly replacement: Addr } {
    const { name: func, replacement } = spec;
    if (typeof replacement === "number") return { ...spec, replacement };
    const module = this.core.parts.code.images.find((image) => image.name === patch);
    const found = module?.named(replacement).filter(({ kind }) => kind === "func") ?? [];
    const [only, another] = found;
    if (only === undefined || another !== undefined)
      refuse("klp-replacement-name", { patch, func, replacement });
    return { ...spec, replacement: only.address };
  }
}
