// Files: those of the package, by their path in it, and any other. Refuses what cannot be read.

import {
  accessSync,
  constants,
  existsSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { Refusal, refuse } from "./refuse.ts";

/** The folder of the package: sources and build output lie at different depths below it. */
export const PACKAGE_ROOT = packageRoot();

/** Where a file of the package is, by its path from the root. */
export function packagePath(path: string): string {
  return join(PACKAGE_ROOT, path);
}

/** A file of the package, by its path from the root. Refuses a file that is not there. */
export function readPackageFile(path: string): Uint8Array {
  return readInput(packagePath(path));
}

/** Any file, refused with its name and the system's reason if it cannot be read. */
export function readInput(path: string): Uint8Array {
  try {
    return readFileSync(path);
  } catch (error) {
    return refuse("unreadable", { file: path, why: reasonOf(error) });
  }
}

/** Refuses a path that `writeOutput` could not write to, before there is anything to write. */
export function refuseUnwritable(path: string): void {
  try {
    accessSync(dirname(path), constants.W_OK);
    if (existsSync(path) && statSync(path).isDirectory()) refuse("unwritable", { file: path, why: "EISDIR" });
  } catch (error) {
    if (error instanceof Refusal) throw error;
    refuse("unwritable", { file: path, why: reasonOf(error) });
  }
}

/** The whole of a file, or nothing: what was there stays until the new contents are. Refused as reading is. */
export function writeOutput(path: string, text: string): void {
  const unfinished = `${path}.unfinished`;
  try {
    writeFileSync(unfinished, text);
    renameSync(unfinished, path);
  } catch (error) {
    rmSync(unfinished, { force: true });
    refuse("unwritable", { file: path, why: reasonOf(error) });
  }
}

/** The system's name for what went wrong, as ENOENT. */
function reasonOf(error: unknown): string {
  return error instanceof Error && "code" in error ? String(error.code) : String(error);
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
