// Live-patching structures and states that guest code knows.

import { layout } from "../machine/struct.ts";

/** A patched function: where its replacement is, and whether a transition is under way. */
export const KLP_FUNC = layout("klp_func", { new_func: 8, transition: 1 });

/** A task's `patch_state` (Linux include/linux/livepatch.h). */
export const PATCH_STATE = { KLP_UNDEFINED: -1, KLP_UNPATCHED: 0, KLP_PATCHED: 1 } as const;
