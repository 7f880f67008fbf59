// Live-patching structures that guest code knows (Linux include/linux/livepatch.h and kernel/livepatch/patch.h, 6.1).

import { layout } from "../machine/struct.ts";

/**
 * One replacement of a function: where it is, and the one below it in the function's stack, which it took the place of. At
 * the bottom is the original, as a replacement that goes on behind the site; so do NOPs. A function's ftrace_ops has the top in
 * `private`. While `transition` is set each task's patch_state decides.
 */
export const KLP_FUNC = layout("klp_func", {
  new_func: 8,
  next: "struct klp_func *",
  transition: 1,
});

/** Data that is attached to an object by id; the data itself is behind this. */
export const KLP_SHADOW = layout("klp_shadow", {
  next: "struct klp_shadow *",
  obj: "void *",
  id: 8,
  data_size: 8,
});
