// Live-patching structures that guest code knows.

import { layout } from "../machine/struct.ts";

/** A patched function: where its replacement is, and whether a transition is under way. */
export const KLP_FUNC = layout("klp_func", { new_func: 8, transition: 1 });
