// The guest's own sources: where they are, and the constants generated for them.

import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { refuse } from "./base/refuse.ts";
import { FTRACE_OPS, PT_REGS } from "./ftrace/layout.ts";
import { SITE_SIZE } from "./ftrace/site.ts";
import { CONSTANTS, CPU, FILE, FILE_OPERATIONS, PATCH_STATE, TASK } from "./kernel/layout.ts";
import { KLP_FUNC } from "./livepatch/layout.ts";
import { assemblerConstants } from "./machine/struct.ts";

/** The sources that make up the laboratory's kernel, in link order. */
export const KERNEL_SOURCES = ["entry.S", "ftrace.S", "klp.S", "read.S", "shapes.S"] as const;

/** The folder of the package: sources and build output lie at different depths below it. */
export const PACKAGE_ROOT = packageRoot();

/** A file of the package, by its path from the root. Refuses a file that is not there. */
export function readPackageFile(path: string): Uint8Array {
  return readInput(packagePath(path));
}

/** Any file, refused with its name and the system's reason if it cannot be read. */
export function readInput(path: string): Uint8Array {
  try {
    return readFileSync(path);
  } catch (error) {
    const why = error instanceof Error && "code" in error ? String(error.code) : String(error);
    return refuse("unreadable", { file: path, why });
  }
}

/** `.include` as the guest's sources use it: from `asm/`. */
export function includeGuestSource(name: string): string | undefined {
  const path = join(PACKAGE_ROOT, "asm", name);
  return existsSync(path) ? readFileSync(path, "utf8") : undefined;
}

/** What `asm/offsets.inc` has to contain: `npm run offsets` writes it, a test compares. */
export function guestOffsets(): string {
  const constants = { ...CONSTANTS, ...PATCH_STATE, FTRACE_SITE_SIZE: SITE_SIZE };
  const structs = [PT_REGS, FTRACE_OPS, KLP_FUNC, TASK, CPU, FILE, FILE_OPERATIONS];
  return [
    "# Offsets and constants of the structures that TypeScript describes (src/*/layout.ts).\n",
    "# Written by `npm run offsets`: change the descriptions, not this file.\n\n",
    ...structs.map((struct) => `# struct ${struct.name}\n${assemblerConstants(struct)}\n`),
    ...Object.entries(constants).map(([name, value]) => `.set ${name}, ${value}\n`),
  ].join("");
}

/** Where a file of the package is, by its path from the root. */
export function packagePath(path: string): string {
  return join(PACKAGE_ROOT, path);
}

function packageRoot(): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(folder, "asm", "macros.inc"))) {
    const parent = dirname(folder);
    if (parent === folder) return refuse("unreadable", { file: "asm/macros.inc", why: "not in the package" });
    folder = parent;
  }
  return folder;
}
