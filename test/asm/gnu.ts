// The guest's sources through GNU as, read with our ELF reader and linked with our linker.

import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { packagePath } from "../../src/base/file.ts";
import { parseElf } from "../../src/image/elf.ts";
import type { ObjectFile } from "../../src/x86/object.ts";

/** Why there is nothing to compare with here, or undefined. */
export const NO_AS = spawnSync("as", ["--version"]).status === 0 ? undefined : "GNU as is not on this host";

/** `asm/name` as `as --64 -I asm` makes it. */
export function assembleGnu(name: string): ObjectFile {
  const folder = mkdtempSync(join(tmpdir(), "fentrylab-asm-"));
  try {
    const object = join(folder, "out.o");
    execFileSync("as", ["--64", "-I", packagePath("asm"), "-o", object, packagePath(`asm/${name}`)]);
    return parseElf(`asm/${name}`, new Uint8Array(readFileSync(object)));
  } finally {
    rmSync(folder, { recursive: true });
  }
}
