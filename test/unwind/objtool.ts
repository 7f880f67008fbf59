// Objects as a kernel's build makes them, and what the kernel's own objtool says of their stacks.

import { execFileSync, spawnSync } from "node:child_process";
import { copyFileSync, existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { parseElf } from "../../src/image/elf.ts";
import type { ObjectFile } from "../../src/x86/object.ts";

/** Where Debian's package linux-kbuild-6.1 puts it. */
const OBJTOOL = "/usr/lib/linux-kbuild-6.1/tools/objtool/objtool";

/** Why there is nothing to compare with here, or undefined. */
export const NO_OBJTOOL = existsSync(OBJTOOL) ? undefined : "objtool is not on this host (linux-kbuild-6.1)";

export interface Reference {
  /** The object with its ORC sections. */
  readonly object: ObjectFile;
  /** `.text+16: sp:sp+16 bp:(und) type:call end:0`, as objtool prints what it wrote. */
  readonly dump: readonly string[];
  readonly warnings: readonly string[];
}

/** What objtool makes of the object file at `path`, which stays as it is. */
export function objtool(path: string): Reference {
  const copy = `${path}.orc`;
  copyFileSync(path, copy);
  const run = (option: string) => {
    const { status, stdout, stderr, error } = spawnSync(OBJTOOL, [option, copy], { encoding: "utf8" });
    if (status !== 0) throw new Error(`objtool ${option}: ${error?.message ?? stderr}`);
    return { stdout, stderr };
  };
  const { stderr } = run("--orc");
  const { stdout } = run("--dump=orc");
  const lines = (text: string) => text.split("\n").filter((line) => line !== "");
  return {
    object: parseElf(path, new Uint8Array(readFileSync(copy))),
    dump: lines(stdout),
    warnings: lines(stderr),
  };
}

/** As fixtures/build.sh has it, without what only calls of __fentry__ need. */
const FLAGS =
  `-std=gnu11 -w -g0 -ffreestanding -mcmodel=kernel -fno-pic -fno-pie -mno-red-zone -mgeneral-regs-only
  -mpreferred-stack-boundary=3 -fno-stack-protector -fcf-protection=none -fno-asynchronous-unwind-tables
  -fno-stack-clash-protection -fno-common -fno-strict-aliasing`.split(/\s+/);

/** Compiles `source` with gcc into `object`, which it returns; `flags` come after those of a kernel. */
export function compile(object: string, source: string, flags: readonly string[]): string {
  execFileSync("gcc", [...FLAGS, ...flags, "-c", "-o", object, source]);
  return object;
}

/** The same of orcShapes.c. */
export function compileShapes(object: string, flags: readonly string[]): string {
  return compile(object, fileURLToPath(new URL("orcShapes.c", import.meta.url)), flags);
}
