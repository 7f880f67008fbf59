// The committed objects that gcc made, linked as a kernel of their own, and their recorded calls.
//
// Not a `Lab`: readfile.o brings a sys_read of its own, so asm/read.S cannot be linked with it.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { offset } from "../../src/base/addr.ts";
import { readPackageFile } from "../../src/base/file.ts";
import { Ftrace } from "../../src/ftrace/ftrace.ts";
import { KERNEL_SOURCES } from "../../src/guest.ts";
import { CodeMap } from "../../src/image/codeMap.ts";
import type { Image } from "../../src/image/image.ts";
import { DIRECT_MAP, KERNEL_TEXT, MODULE_TEXT } from "../../src/image/layout.ts";
import { link } from "../../src/image/link.ts";
import { load } from "../../src/image/load.ts";
import { Kernel } from "../../src/kernel/kernel.ts";
import { readObject } from "../../src/lab.ts";
import { Heap } from "../../src/machine/heap.ts";
import { Machine } from "../../src/machine/machine.ts";
import { FIXTURES, fixture, KERNEL_OBJECTS } from "../image/fixtures.ts";

/** One call: arguments and result as 64-bit hexadecimal words. */
export interface Call {
  readonly object: string;
  readonly function: string;
  readonly args: readonly string[];
  readonly result: string;
}

/** What silicon returned. */
export const CALLS: readonly Call[] = JSON.parse(readFileSync(join(FIXTURES, "calls.json"), "utf8"));

export const MODULE = "lookup_fixed.o";

export interface FixtureGuest {
  readonly machine: Machine;
  readonly kernel: Kernel;
  readonly image: Image;
  readonly module: Image;
  /** The image that a call's function is in. */
  readonly imageOf: (call: Call) => Image;
}

/** Links and boots it: every call site is a NOP. */
export async function openFixtureGuest(): Promise<FixtureGuest> {
  const needed = KERNEL_SOURCES.filter((name) => name !== "read.S");
  const sources = await Promise.all(
    needed.map((name) => readObject(`asm/${name}`, readPackageFile(`asm/${name}`))),
  );
  const image = link([...sources, ...KERNEL_OBJECTS.map(fixture)], { text: KERNEL_TEXT });
  const externals = (name: string) => image.exported(name);
  const module = link([fixture(MODULE)], { text: MODULE_TEXT, name: "lookup_fixed", externals });
  const machine = new Machine();
  const { memory } = machine;
  for (const loaded of [image, module]) load(memory, loaded);
  const code = new CodeMap();
  const heap = new Heap(memory, DIRECT_MAP, { write: true, execute: false, user: false });
  const text = new Heap(memory, offset(MODULE_TEXT, 2 ** 28), { write: false, execute: true, user: false });
  new Ftrace({ image, memory, code, heap, text }).addImage(module);
  const kernel = new Kernel(machine, heap, image);
  kernel.createTask();
  return { machine, kernel, image, module, imageOf: ({ object }) => (object === MODULE ? module : image) };
}
