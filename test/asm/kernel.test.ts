// The guest's kernel in C: its header is what TypeScript describes, its objects are what gcc makes of its sources.

import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { packagePath } from "../../src/base/file.ts";
import { guestHeader, KERNEL_OBJECTS } from "../../src/guest.ts";
import { parseElf } from "../../src/image/elf.ts";

/** Modules, which are no parts of the kernel's image. */
const MODULES = ["patients.o", "visitor.o"];

const bytesOf = (name: string) => new Uint8Array(readFileSync(packagePath(`kernel/${name}`)));

/** What compiled them, as they say: GCC: (Debian 12.2.0-14) 12.2.0. */
function compilerOf(name: string): string {
  const object = parseElf(name, bytesOf(name));
  const comment = object.sections.find((section) => section.name === ".comment");
  return new TextDecoder().decode(comment?.bytes).replaceAll("\0", "");
}

/** Why objects cannot be made again here, or undefined. */
function noCompiler(): string | undefined {
  const gcc = spawnSync("gcc", ["--version"], { encoding: "utf8" });
  if (gcc.status !== 0) return "gcc is not on this host";
  const [first = ""] = gcc.stdout.split("\n");
  const here = first.replace(/^gcc /, "GCC: ");
  const then = compilerOf(KERNEL_OBJECTS[0]);
  return here === then ? undefined : `this host has ${here}, the objects are of ${then}`;
}

test("kernel/layout.h is what the structures' descriptions give", () => {
  expect(readFileSync(packagePath("kernel/layout.h"), "utf8")).toBe(guestHeader());
});

test("every object is a part of the kernel or a module, and each has its source", () => {
  const files = readdirSync(packagePath("kernel"));
  const objects = files.filter((name) => name.endsWith(".o"));
  const sources = files.filter((name) => name.endsWith(".c"));
  expect([...KERNEL_OBJECTS, ...MODULES].sort()).toEqual(objects.sort());
  expect(sources.map((name) => name.replace(/c$/, "o")).sort()).toEqual(objects.sort());
});

test("the same compiler makes the same objects of the sources", (ctx) => {
  const reason = noCompiler();
  if (reason !== undefined) ctx.skip(reason);
  const folder = mkdtempSync(join(tmpdir(), "fentrylab-kernel-"));
  try {
    execFileSync("sh", [packagePath("kernel/build.sh"), folder]);
    for (const name of [...KERNEL_OBJECTS, ...MODULES])
      expect(Buffer.from(readFileSync(join(folder, name))).equals(bytesOf(name)), name).toBe(true);
  } finally {
    rmSync(folder, { recursive: true });
  }
});
