// The live patches of the scenarios, with callbacks that say what the kernel's own test modules say (Linux
// lib/livepatch/test_klp_*.c): which one, of what, and what state that is in.

import type {
  CallbackObject,
  Callbacks,
  ObjectSpec,
  PatchSpec,
  StateSpec,
} from "../../../src/livepatch/patch.ts";
import type { ModuleName, Rig } from "./rig.ts";

type Spec = PatchSpec & { readonly name: ModuleName };

const MODULE_STATES: Readonly<Record<string, string>> = {
  MODULE_STATE_LIVE: "Normal state",
  MODULE_STATE_COMING: "Full formed, running module_init",
  MODULE_STATE_GOING: "Going away",
};

function object(
  rig: Rig,
  name: string | undefined,
  functions: Readonly<Record<string, string>>,
): Pick<ObjectSpec, "name" | "functions"> {
  return {
    ...(name === undefined ? {} : { name }),
    functions: Object.entries(functions).map(([old, replacement]) => ({
      name: old,
      replacement: rig.address(replacement),
    })),
  };
}

export const hello = (rig: Rig): Spec => ({
  name: "klp_hello",
  objects: [object(rig, undefined, { cmdline_show: "hello_cmdline_show" })],
});

export const replace = (rig: Rig, isReplace: boolean): Spec => ({
  name: "klp_replace",
  replace: isReplace,
  objects: [object(rig, undefined, { meminfo_show: "replace_meminfo_show" })],
});

/** `result` is what the pre-patch callbacks answer, and may change. */
export const demo = (rig: Rig, result: { value: number } = { value: 0 }): Spec => ({
  name: "klp_demo",
  objects: [
    object(rig, undefined, { version_show: "demo_version_show" }),
    object(rig, "klp_mod", { mod_show: "demo_mod_show" }),
    object(rig, "klp_busy", { busy_work: "demo_busy_work" }),
  ].map((one) => ({ ...one, callbacks: callbacks(rig, { prePatch: () => result.value }) })),
});

export const demo2 = (rig: Rig, isReplace = false): Spec => ({
  name: "klp_demo2",
  replace: isReplace,
  objects: [
    { ...object(rig, undefined, { version_show: "demo2_version_show" }), callbacks: callbacks(rig, {}) },
  ],
});

const LOGLEVEL: StateSpec = { id: 1, version: 1 };
const VERBOSE = 15;

/** What the console's loglevel was is kept in guest memory, and handed on from patch to patch by those that can. */
export function state(rig: Rig, name: "klp_state" | "klp_state2" | "klp_state3"): Spec {
  const { livepatch, kernel } = rig.lab;
  const canMigrate = name !== "klp_state";
  const say = (text: string) => rig.log(`${name}: ${text}`);
  const own = (object: CallbackObject) => {
    const found = object.patch.state(LOGLEVEL.id);
    if (found === undefined) throw new Error(`${name} has no state`);
    return found;
  };
  const previous = () => (canMigrate ? livepatch.previousState(LOGLEVEL.id) : undefined);
  const version = canMigrate ? 2 : LOGLEVEL.version;
  return {
    name,
    replace: true,
    states: [{ ...LOGLEVEL, version }],
    objects: [
      {
        ...object(rig, undefined, {
          loglevel_show: `state${name.slice("klp_state".length) || 1}_loglevel_show`,
        }),
        callbacks: callbacks(rig, {
          prePatch: (object) => {
            if (previous() !== undefined) {
              say("allocate_loglevel_state: space to store console_loglevel already allocated");
              return 0;
            }
            own(object).data = kernel.allocator.kmalloc(4);
            say("allocate_loglevel_state: allocating space to store console_loglevel");
            return 0;
          },
          postPatch: (object) => {
            const before = previous();
            if (before !== undefined) {
              say("fix_console_loglevel: taking over the console_loglevel change");
              own(object).data = before.data;
              return;
            }
            say("fix_console_loglevel: fixing console_loglevel");
            rig.setInt(own(object).data!, rig.int("console_loglevel"));
            rig.setInt("console_loglevel", VERBOSE);
          },
          preUnpatch: (object) => {
            say("restore_console_loglevel: restoring console_loglevel");
            rig.setInt("console_loglevel", rig.intAt(own(object).data!));
          },
          postUnpatch: (object) => {
            say("free_loglevel_state: freeing space for the stored console_loglevel");
            kernel.allocator.kfreeRcu(own(object).data!, 4);
          },
        }),
      },
    ],
  };
}

/** Callbacks that say that they are called, and then do `also`. */
function callbacks(rig: Rig, also: Callbacks): Callbacks {
  const say = (what: string, { patch, name }: CallbackObject) => {
    const state = rig.lab.modules.loaded.find((module) => module.name === name)?.state;
    const where = state === undefined ? name : `${name} -> [${state}] ${MODULE_STATES[state]}`;
    rig.log(`${patch}: ${what}: ${where}`);
  };
  return {
    prePatch: (object) => {
      say("pre_patch_callback", object);
      return also.prePatch?.(object) ?? 0;
    },
    postPatch: (object) => {
      say("post_patch_callback", object);
      also.postPatch?.(object);
    },
    preUnpatch: (object) => {
      say("pre_unpatch_callback", object);
      also.preUnpatch?.(object);
    },
    postUnpatch: (object) => {
      say("post_unpatch_callback", object);
      also.postUnpatch?.(object);
    },
  };
}
