// Objects of patches: their functions onto stacks and off them, what refers to them, and giving back what a patch has.

import { type Refusal, refuse } from "../base/refuse.ts";
import { nameOfError } from "../kernel/layout.ts";
import { act, type Step } from "../machine/agenda.ts";
import type { Core } from "./core.ts";
import { makeFunc } from "./klpFunc.ts";
import { KLP_FUNC } from "./layout.ts";
import {
  type Callbacks,
  type Field,
  type FunctionSpec,
  type Patch,
  PatchFunction,
  PatchObject,
} from "./patch.ts";
import { errnoOf, refusal, refusalOf } from "./refusal.ts";

/** A function to be made; without a replacement a NOP. */
type NewFunction = Pick<FunctionSpec, "name" | "sympos"> & {
  readonly replacement?: PatchFunction["replacement"];
};

/** What has come of a callback; what it answers is checked, for scripts come without types. */
type Outcome =
  | { readonly kind: "answered"; readonly answer: unknown }
  | { readonly kind: "thrown"; readonly what: string };

export class Objects {
  private readonly core: Core;

  constructor(core: Core) {
    this.core = core;
  }

  // ---- Patching.

  /** Why an object's prePatch does not agree; undefined if it does. The kernel's callbacks answer with a minus. */
  prePatch(object: PatchObject): Refusal | undefined {
    const names = { patch: object.patch.name, object: object.name };
    const outcome = this.callback("prePatch", object);
    const why = refusalOf(() => {
      if (outcome.kind === "thrown") return refuse("klp-thrown", { ...names, what: outcome.what });
      const { answer = 0 } = outcome;
      if (typeof answer !== "number" || !Number.isInteger(answer))
        return refuse("klp-answer", { ...names, answer: String(answer) });
      if (answer !== 0) refuse("klp-callback", { ...names, error: nameOfError(Math.abs(answer)) });
    });
    object.change({ prepared: why === undefined });
    if (why !== undefined) this.core.log("warn", `pre-patch callback failed for object '${object.name}'`);
    return why;
  }

  postUnpatch(object: PatchObject): void {
    if (object.state.value.prepared) this.callback("postUnpatch", object);
    object.change({ prepared: false });
  }

  /** What a callback throws is thrown when all that is under way is done: here it would leave that half done. */
  callback(kind: keyof Callbacks, object: PatchObject): Outcome {
    try {
      return { kind: "answered", answer: object.callbacks[kind]?.(object) };
    } catch (error) {
      const rethrow = () => {
        throw error;
      };
      this.core.parts.kernel.agenda.add(`${kind} of ${object.name}`, [
        act(`throw what ${kind} has thrown`, rethrow),
      ]);
      return { kind: "thrown", what: error instanceof Error ? error.message : String(error) };
    }
  }

  patchObject(object: PatchObject, failed: (why: Refusal) => readonly Step[]): readonly Step[] {
    const pushes = object.functions.map(
      (func): Step => ({
        what: `patch ${func.name}`,
        run: () => {
          if (object.state.value.failure !== undefined) return undefined;
          const site = this.core.checks.siteOf({ address: func.place!.old, name: func.name });
          return this.core.stacks.push(func, site, (why) => {
            const names = { patch: object.patch.name, object: object.name };
            const failure = why ?? refusal("klp-not-patched", names);
            const error = errnoOf(failure);
            this.core.log("err", `failed to register ftrace handler for function '${func.name}' (-${error})`);
            object.change({ failure });
          });
        },
      }),
    );
    const refer: Step = {
      what: `relocate what refers to ${object.name}`,
      run: () => {
        this.write(object.fields);
        return this.core.parts.serialise();
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
        return [...this.unpatchObject(object), { what: "failed", run: () => failed(failure) }];
      },
    };
    return [...(object.fields.length > 0 ? [refer] : []), ...pushes, end];
  }

  unpatchObject(object: PatchObject, only: (func: PatchFunction) => boolean = () => true): readonly Step[] {
    const pops = object.functions.filter(only).flatMap((func) => this.core.stacks.pop(func));
    return [...pops, act(`${object.name} is not patched`, () => object.change({ patched: false }))];
  }

  /** What it is about is not loaded any more; what refers to that leads nowhere, as before it came. */
  forget(object: PatchObject): void {
    this.write(object.fields.map(({ at, bytes }) => ({ at, bytes: new Uint8Array(bytes.length) })));
    object.change({ image: undefined, fields: [] });
    for (const func of object.functions) func.place = undefined;
  }

  private write(fields: readonly Field[]): void {
    const { memory } = this.core.parts.kernel.machine;
    // The patch's own module, or whatever else has its code, may have been taken away from under it.
    for (const { at, bytes } of fields) if (memory.isMapped(at, bytes.length)) memory.write(at, bytes);
  }

  // ---- Functions and NOPs.

  makeFunction({ name, sympos = 0, replacement }: NewFunction) {
    const { pool, kernel } = this.core.parts;
    const { memory, keeper } = kernel.machine;
    const struct = makeFunc(memory, pool.take(KLP_FUNC.size), replacement ?? 0);
    return new PatchFunction(keeper, { name, sympos, replacement, struct });
  }

  /** Functions of earlier patches that this one leaves alone go back to their originals. */
  addNops(patch: Patch): void {
    const { keeper } = this.core.parts.kernel.machine;
    for (const { objects } of this.core.patches) {
      for (const old of objects) {
        const known = patch.objects.find(({ name }) => name === old.name);
        const own = known ?? new PatchObject(keeper, patch, old.name, [], undefined);
        const missing = old.functions.filter((func) => !own.functions.some(({ key }) => key === func.key));
        const nops = missing.map(({ name, sympos }) => this.makeFunction({ name, sympos }));
        own.change({ functions: [...own.functions, ...nops] });
        if (known === undefined) patch.change({ objects: [...patch.objects, own] });
        const image = this.core.imageOf(own.name);
        if (image !== undefined) this.core.checks.resolve(patch, own, image);
      }
    }
  }

  discardNops(patch: Patch): readonly Step[] {
    const isNop = ({ isNop }: PatchFunction) => isNop;
    const pops = patch.objects.flatMap((object) =>
      object.functions.filter(isNop).flatMap((func) => this.core.stacks.pop(func)),
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

  // ---- The end.

  free(patch: Patch): void {
    this.core.set({ patches: this.core.patches.filter((other) => other !== patch) });
    if (!patch.forced) this.release(patch);
  }

  /** Gives back what a patch has, its module among that: once nobody can be at it any more. */
  release(patch: Patch): void {
    this.freeFunctions(patch, patch.functions);
    const { holds } = patch;
    if (holds.length === 0) return;
    patch.change({ holds: [] });
    this.core.parts.kernel.agenda.add(`free ${patch}`, [
      act(`${patch} lets its modules go`, () => {
        for (const name of holds) this.core.parts.use(name, -1);
      }),
    ]);
  }

  freeFunctions(patch: Patch, functions: readonly PatchFunction[]): void {
    const { kernel, pool, grace } = this.core.parts;
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
}
