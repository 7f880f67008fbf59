// The guest's own sources: where they are, and the constants generated for them.

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { PACKAGE_ROOT } from "./base/file.ts";
import { FTRACE_OPS } from "./ftrace/layout.ts";
import { SITE_SIZE } from "./ftrace/site.ts";
import {
  CONSTANTS,
  CPU,
  FILE,
  FILE_OPERATIONS,
  INACTIVE_TASK_FRAME,
  PATCH_STATE,
  RET_STACK,
  TASK,
} from "./kernel/layout.ts";
import { KLP_FUNC } from "./livepatch/layout.ts";
import { PT_REGS } from "./machine/ptRegs.ts";
import { assemblerConstants } from "./machine/struct.ts";
import { HINT_CONSTANTS } from "./unwind/orc/generate/hint.ts";

/** The sources that make up the laboratory's kernel, in link order. */
export const KERNEL_SOURCES = [
  "entry.S",
  "switch.S",
  "ftrace.S",
  "return.S",
  "klp.S",
  "thunk.S",
  "faults.S",
  "read.S",
  "shapes.S",
] as const;

/** `.include` as the guest's sources use it: from `asm/`. */
export function includeGuestSource(name: string): string | undefined {
  const path = join(PACKAGE_ROOT, "asm", name);
  return existsSync(path) ? readFileSync(path, "utf8") : undefined;
}

/** What `asm/offsets.inc` has to contain: `npm run offsets` writes it, a test compares. */
export function guestOffsets(): string {
  const constants = { ...CONSTANTS, ...PATCH_STATE, FTRACE_SITE_SIZE: SITE_SIZE, ...HINT_CONSTANTS };
  const structs = [
    PT_REGS,
    FTRACE_OPS,
    KLP_FUNC,
    TASK,
    RET_STACK,
    CPU,
    INACTIVE_TASK_FRAME,
    FILE,
    FILE_OPERATIONS,
  ];
  return [
    "# Offsets and constants of the structures that TypeScript describes (src/*/layout.ts).\n",
    "# Written by `npm run offsets`: change the descriptions, not this file.\n\n",
    ...structs.map((struct) => `# struct ${struct.name}\n${assemblerConstants(struct)}\n`),
    ...Object.entries(constants).map(([name, value]) => `.set ${name}, ${value}\n`),
  ].join("");
}
