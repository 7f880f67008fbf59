// What modules mean to patches: one that comes is patched before its own beginning, one that goes is left behind its end.

import type { Addr } from "../base/addr.ts";
import type { Image } from "../image/image.ts";
import { act, type Step } from "../machine/agenda.ts";
import { type Core, STRAND } from "./core.ts";
import type { Objects } from "./objects.ts";
import type { Patch, PatchObject } from "./patch.ts";
import { errnoOf, refusalOf } from "./refusal.ts";
import type { Settling } from "./settling.ts";

export class ModuleNotifier {
  private readonly core: Core;
  private readonly objects: Objects;
  private readonly settling: Settling;

  constructor(core: Core, objects: Objects, settling: Settling) {
    this.core = core;
    this.objects = objects;
    this.settling = settling;
  }

  /** A module is coming, before its own beginning, or going, behind its end; `at` is its struct module. */
  notify(at: Addr, image: Image, coming: boolean): void {
    this.setNotified(at, 1);
    const steps = coming ? () => this.coming(at, image) : () => this.going(at, image, undefined);
    this.core.parts.kernel.agenda.add(STRAND, [
      { what: `${image.name} is ${coming ? "coming" : "going"}`, run: steps },
    ]);
  }

  /** What has come of that. */
  notified(at: Addr): number {
    return this.core.state.notified.get(at) ?? 0;
  }

  private coming(at: Addr, image: Image): readonly Step[] {
    this.core.set({ alive: [...this.core.state.alive, image] });
    const failed = (patch: Patch, object: PatchObject, error: number): readonly Step[] => {
      this.core.log(
        "warn",
        `patch '${patch}' failed for module '${image.name}', refusing to load module '${image.name}'`,
      );
      this.objects.forget(object);
      return [...this.going(at, image, patch), act("it is refused", () => this.setNotified(at, -error))];
    };
    const from = (patches: readonly Patch[], n: number): readonly Step[] => {
      const patch = patches[n];
      if (patch === undefined) return [act("it may come", () => this.comes(at))];
      const object = patch.objects.find(({ name }) => name === image.name);
      if (object === undefined) return from(patches, n + 1);
      const refusal = refusalOf(() => this.core.checks.resolve(patch, object, image));
      if (refusal !== undefined) {
        const error = errnoOf(refusal);
        this.core.log("warn", `failed to initialize patch '${patch}' for module '${image.name}' (-${error})`);
        return failed(patch, object, error);
      }
      this.core.log("notice", `applying patch '${patch}' to loading module '${image.name}'`);
      const unwilling = this.objects.prePatch(object);
      if (unwilling !== undefined) return failed(patch, object, errnoOf(unwilling));
      return [
        ...this.objects.patchObject(object, (why) => {
          const number = errnoOf(why);
          this.core.log("warn", `failed to apply patch '${patch}' to module '${image.name}' (-${number})`);
          this.objects.postUnpatch(object);
          return failed(patch, object, number);
        }),
        {
          what: `${image.name}: next patch`,
          run: () => {
            if (!object.isPatched) return undefined;
            if (patch !== this.core.transition?.patch) this.objects.callback("postPatch", object);
            return from(patches, n + 1);
          },
        },
      ];
    };
    return from(this.core.patches, 0);
  }

  /** Reverts the patches before `limit`, or all. */
  private going(at: Addr, image: Image, limit: Patch | undefined): readonly Step[] {
    this.core.set({ alive: this.core.state.alive.filter((one) => one !== image) });
    const patches =
      limit === undefined ? this.core.patches : this.core.patches.slice(0, this.core.patches.indexOf(limit));
    const steps = patches.flatMap((patch): Step[] => {
      const object = patch.objects.find(({ name }) => name === image.name);
      if (object === undefined || !object.isLoaded) return [];
      return [
        act(`${patch} leaves ${image.name}`, () => {
          if (patch !== this.core.transition?.patch) this.objects.callback("preUnpatch", object);
          this.core.log("notice", `reverting patch '${patch}' on unloading module '${image.name}'`);
        }),
        { what: `unpatch ${image.name}`, run: () => this.objects.unpatchObject(object) },
        act(`${patch} has left ${image.name}`, () => {
          this.objects.postUnpatch(object);
          this.objects.forget(object);
        }),
      ];
    });
    return limit === undefined ? [...steps, act("it may go", () => this.setNotified(at, 0))] : steps;
  }

  private comes(at: Addr): void {
    if (this.core.transition === undefined) this.settling.settle();
    this.setNotified(at, 0);
  }

  private setNotified(at: Addr, result: number): void {
    this.core.set({ notified: new Map([...this.core.state.notified, [at, result]]) });
  }
}
