// The guest's kernel with some text of a C source changed, as gcc makes it.

import { execFileSync, spawnSync } from "node:child_process";
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { packagePath } from "../../src/base/file.ts";

/** Why nothing can be compiled here; undefined if it can. */
export const NO_GCC = spawnSync("gcc", ["--version"]).status === 0 ? undefined : "gcc is not on this host";

export interface Change {
  /** As a path in the package, in kernel/ or asm/. */
  readonly file: string;
  /** Text that is there once, and what takes its place. */
  readonly before: string;
  readonly after: string;
}

/** The kernel's parts that differ with `change`, for a laboratory's `parts`. */
export function partsWith({ file, before, after }: Change): Map<string, Uint8Array> {
  const text = readFileSync(packagePath(file), "utf8");
  if (text.split(before).length !== 2) throw new Error(`${file} has not one ${JSON.stringify(before)}`);
  const changed = text.replace(before, () => after);
  if (file.startsWith("asm/")) return new Map([[file, new TextEncoder().encode(changed)]]);
  const folder = mkdtempSync(join(tmpdir(), "fentrylab-kernel-"));
  try {
    cpSync(packagePath("kernel"), folder, { recursive: true });
    writeFileSync(join(folder, basename(file)), changed);
    const only = file.endsWith(".c") ? [".", basename(file)] : [];
    execFileSync("sh", [join(folder, "build.sh"), ...only], { stdio: "pipe" });
    const objects = readdirSync(folder).filter((name) => name.endsWith(".o"));
    return new Map(
      objects.map((name) => [`kernel/${name}`, new Uint8Array(readFileSync(join(folder, name)))]),
    );
  } finally {
    rmSync(folder, { recursive: true });
  }
}
