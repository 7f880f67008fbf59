// Structures that trampolines and handlers share with TypeScript.

import { layout } from "../machine/struct.ts";

/** What a trampoline hands to its handler: the handler, and what is the handler's own. */
export const FTRACE_OPS = layout("ftrace_ops", { func: 8, private: 8 });
