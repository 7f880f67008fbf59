// Live patching as upstream has it (Linux kernel/livepatch, 6.1): patches, their transitions, and what modules mean to them.
//
// Everything is done in steps on the agenda, each write one of its own, so that CPUs run in between. This is what others ask of
// it; how it is done is transition.ts's, objects.ts's and moduleNotifier.ts's, on what core.ts keeps.

import type { Addr } from "../base/addr.ts";
import { refuse } from "../base/refuse.ts";
import { type Image, VMLINUX } from "../image/image.ts";
import type { Task } from "../kernel/kernel.ts";
import type { Step } from "../machine/agenda.ts";
import type { Blocker } from "./blocker.ts";
import { Core, type LivepatchParts, STRAND, type Transition } from "./core.ts";
import type { FunctionStacks } from "./functionStack.ts";
import { ModuleNotifier } from "./moduleNotifier.ts";
import { Objects } from "./objects.ts";
import { type LivepatchOptions, refuseOptions } from "./options.ts";
import { type FunctionSpec, Patch, PatchObject, type PatchSpec, type SystemState } from "./patch.ts";
import { refusalOf } from "./refusal.ts";
import { Request } from "./request.ts";
import { Settling } from "./settling.ts";
import { TaskSwitch } from "./taskSwitch.ts";
import { type Refused, Transitions } from "./transition.ts";

export class Livepatch {
  private readonly core: Core;
  private readonly objects: Objects;
  private readonly transitions: Transitions;
  private readonly modules: ModuleNotifier;
  readonly tasks: TaskSwitch;

  constructor(parts: LivepatchParts) {
    this.core = new Core(parts);
    this.objects = new Objects(this.core);
    this.tasks = new TaskSwitch(this.core);
    const settling = new Settling(this.core);
    this.transitions = new Transitions(this.core, this.objects, settling, this.tasks);
    this.modules = new ModuleNotifier(this.core, this.objects, settling);
  }

  get options(): LivepatchOptions {
    return this.core.options;
  }

  /** Refuses values that none of them can have. */
  set options(options: LivepatchOptions) {
    refuseOptions(options);
    this.core.options = options;
    this.core.parts.kernel.setMissesFork(this.core.isWeakened("fork"));
  }

  // ---- What there is.

  get stacks(): FunctionStacks {
    return this.core.stacks;
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

  /**
   * What is known of a state by the latest of the patches before the one in transition; undefined if none knows it, or there is no
   * transition (klp_get_prev_state).
   */
  previousState(id: number): SystemState | undefined {
    if (this.transition === undefined) return undefined;
    const end = this.patches.indexOf(this.transition.patch);
    const before = this.patches.slice(0, end).flatMap((patch) => patch.state(id) ?? []);
    return before.at(-1);
  }

  /** What is waited for before anything else is done, in words, where it is not for tasks: a grace period, or sites to be rewritten. */
  get waitsFor(): string | undefined {
    const { agenda } = this.core.parts.kernel;
    const waiting = agenda.pending.find(({ strand }) => strand === STRAND);
    return waiting === undefined || agenda.ready().includes(STRAND) ? undefined : waiting.what;
  }

  /** Who holds the transition up, and why; nobody if there is none. */
  blockers(): Blocker[] {
    const { transition } = this;
    return transition === undefined ? [] : this.tasks.blockers(transition.target);
  }

  // ---- What can be asked for. Where nobody runs it is done, or refused, when these return; where CPUs run it has its turn
  // between their instructions, and the request says what has come of it.

  /** Checks a patch, makes it known, and begins the transition to it. */
  enable(spec: PatchSpec): Patch {
    if (this.patches.some(({ name }) => name === spec.name)) refuse("klp-known", { patch: spec.name });
    const patch = this.make(spec);
    this.ask(`enable ${patch}`, (refused) => this.transitions.enabling(patch, refused));
    return patch;
  }

  /** Begins the transition away from a patch; it goes with its end. */
  disable(patch: Patch): Request {
    return this.ask(`disable ${patch}`, (refused) => this.transitions.disabling(patch, refused));
  }

  /** Turns the transition round. */
  reverse(patch: Patch): Request {
    return this.ask(`reverse ${patch}`, (refused) => this.transitions.reversing(patch, refused));
  }

  /** Ends the transition, whatever is on stacks. */
  force(patch: Patch): Request {
    return this.ask(`force ${patch}`, (refused) => this.transitions.forcing(patch, refused));
  }

  /**
   * What is written to a patch's `enabled` in sysfs, looked at in its turn: a transition of its own is turned round; otherwise it can only
   * be disabled.
   */
  setEnabled(patch: Patch, on: boolean): Request {
    return this.ask(`write ${on ? 1 : 0} to ${patch}'s enabled`, (refused) =>
      this.transitions.settingEnabled(patch, on, refused),
    );
  }

  /** Sends those who were not switched a signal that is none, and wakes kthreads. */
  signal(): Request {
    return this.ask("signal", () => this.transitions.passes.signal());
  }

  /** Looks at all tasks again, at once. */
  retry(): Request {
    return this.ask("retry", () => this.transitions.passes.trySwitchAll());
  }

  /** Throws what it is refused with, if that is known at once. */
  private ask(what: string, steps: (refused: Refused) => readonly Step[]): Request {
    const { agenda, machine } = this.core.parts.kernel;
    const request = new Request(machine.keeper);
    const run = () => {
      request.take();
      return steps((why) => request.refuse(why));
    };
    agenda.add(STRAND, [{ what, run }]);
    if (request.refusal !== undefined) throw request.refusal;
    return request;
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
    const patch = new Patch(keeper, spec, () => (this.transition?.patch === patch ? this.blockers() : []));
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
    const names = { patch, func, replacement };
    const module = this.core.parts.code.images.find((image) => image.name === patch);
    if (module === undefined) return refuse("klp-replacement-module", names);
    const named = module.named(replacement);
    const [only, another] = named.filter(({ kind }) => kind === "func");
    if (only !== undefined && another === undefined) return { ...spec, replacement: only.address };
    const hint =
      another !== undefined
        ? "it has several; rename all but one, or give an address"
        : named.length > 0
          ? `say that it is one: \`.type ${replacement}, @function\``
          : (module.hint(replacement) ?? "name a function that its source defines");
    return refuse("klp-replacement-name", { ...names, hint });
  }
}
