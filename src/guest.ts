// The guest's own sources: where they are, and the constants generated for them.

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { PACKAGE_ROOT } from "./base/file.ts";
import {
  BP_PATCHING_DESC,
  FTRACE_HASH,
  FTRACE_OPS,
  FTRACE_OPS_FLAG,
  OPCODE,
  TEXT_POKE_LOC,
  TRACED_CALL,
} from "./ftrace/layout.ts";
import { SITE_SIZE } from "./ftrace/site.ts";
import {
  CONSTANTS,
  CPU,
  FILE,
  FILE_OPERATIONS,
  INACTIVE_TASK_FRAME,
  MODULE,
  PATCH_STATE,
  RET_STACK,
  SIGACTION,
  TASK,
} from "./kernel/layout.ts";
import { KLP_FUNC, KLP_SHADOW } from "./livepatch/layout.ts";
import { PT_REGS } from "./machine/ptRegs.ts";
import { assemblerConstants, cDeclaration } from "./machine/struct.ts";
import { HINT_CONSTANTS } from "./unwind/orc/generate/hint.ts";

/** The sources that make up the laboratory's kernel, in link order. */
export const KERNEL_SOURCES = [
  "entry.S",
  "switch.S",
  "ftrace.S",
  "return.S",
  "thunk.S",
  "uaccess.S",
  "faults.S",
  "read.S",
  "shapes.S",
] as const;

/** Its half in C, as objects that gcc made (kernel/build.sh), behind the sources. */
export const KERNEL_OBJECTS = [
  "sched.o",
  "time.o",
  "lock.o",
  "stop.o",
  "kthread.o",
  "fork.o",
  "signal.o",
  "syscall.o",
  "pipe.o",
  "futex.o",
  "traps.o",
  "ftrace.o",
  "klp.o",
  "shadow.o",
  "module.o",
] as const;

/** Every part of the kernel, as paths in this package. */
export const KERNEL_PARTS: readonly string[] = [
  ...KERNEL_SOURCES.map((name) => `asm/${name}`),
  ...KERNEL_OBJECTS.map((name) => `kernel/${name}`),
];

/** `.include` as the guest's sources use it: from `asm/`. */
export function includeGuestSource(name: string): string | undefined {
  const path = join(PACKAGE_ROOT, "asm", name);
  return existsSync(path) ? readFileSync(path, "utf8") : undefined;
}

const STRUCTS = [
  PT_REGS,
  FTRACE_OPS,
  TRACED_CALL,
  FTRACE_HASH,
  TEXT_POKE_LOC,
  BP_PATCHING_DESC,
  KLP_FUNC,
  KLP_SHADOW,
  TASK,
  RET_STACK,
  SIGACTION,
  CPU,
  INACTIVE_TASK_FRAME,
  MODULE,
  FILE,
  FILE_OPERATIONS,
];
const ALL_CONSTANTS = {
  ...CONSTANTS,
  ...PATCH_STATE,
  ...FTRACE_OPS_FLAG,
  ...OPCODE,
  FTRACE_SITE_SIZE: SITE_SIZE,
  ...HINT_CONSTANTS,
};

/** What `asm/offsets.inc` has to contain: `npm run offsets` writes it, a test compares. */
export function guestOffsets(): string {
  return [
    "# Offsets and constants of the structures that TypeScript describes (src/*/layout.ts).\n",
    "# Written by `npm run offsets`: change the descriptions, not this file.\n\n",
    ...STRUCTS.map((struct) => `# struct ${struct.name}\n${assemblerConstants(struct)}\n`),
    ...Object.entries(ALL_CONSTANTS).map(([name, value]) => `.set ${name}, ${value}\n`),
  ].join("");
}

/** The same for `kernel/layout.h`. */
export function guestHeader(): string {
  return [
    "/* Structures that TypeScript describes (src/.../layout.ts), and constants. */\n",
    "/* Written by `npm run offsets`: change the descriptions, not this file. */\n\n",
    ...STRUCTS.map(({ name }) => `struct ${name};\n`),
    "\n",
    ...STRUCTS.map((struct) => `${cDeclaration(struct)}\n`),
    ...Object.entries(ALL_CONSTANTS).map(
      ([name, value]) => `#define ${name} ${value < 0 ? `(${value})` : value}\n`,
    ),
  ].join("");
}
