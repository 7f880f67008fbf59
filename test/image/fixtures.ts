// The committed fixtures, and the GNU tools that what we make of them is held against.

import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseElf } from "../../src/image/elf.ts";
import type { ObjectFile } from "../../src/x86/object.ts";

export const FIXTURES = fileURLToPath(new URL("../../fixtures/", import.meta.url));

/** Every committed object, sorted. */
export const OBJECTS: readonly string[] = readdirSync(FIXTURES)
  .filter((name) => name.endsWith(".o"))
  .sort();

/** What the kernel's image is linked from, in this order; lookup_fixed.o is a module. */
export const KERNEL_OBJECTS: readonly string[] = OBJECTS.filter((name) => name !== "lookup_fixed.o");

export function fixtureBytes(name: string): Uint8Array {
  return new Uint8Array(readFileSync(join(FIXTURES, name)));
}

export function fixture(name: string): ObjectFile {
  return parseElf(name, fixtureBytes(name));
}

/** A tool's output on the fixtures. */
export function run(tool: string, args: readonly string[], input = ""): string {
  return execFileSync(tool, args, { cwd: FIXTURES, encoding: "utf8", input, maxBuffer: 2 ** 26 });
}

/** Why a test that needs these tools cannot run here, or undefined: it can. */
export function missing(...tools: string[]): string | undefined {
  const absent = tools.filter((tool) => spawnSync(tool, ["--version"]).status !== 0);
  return absent.length === 0 ? undefined : `not on this machine: ${absent.join(", ")}`;
}

/** Calls `body` with a folder that is gone afterwards. */
export function inScratchFolder<T>(body: (folder: string) => T): T {
  const folder = mkdtempSync(join(tmpdir(), "fentrylab-"));
  try {
    return body(folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
}
