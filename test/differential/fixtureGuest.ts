// The committed objects that gcc made, loaded as modules, and their recorded calls.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { Image } from "../../src/image/image.ts";
import type { Kernel } from "../../src/kernel/kernel.ts";
import { Lab } from "../../src/lab.ts";
import type { Machine } from "../../src/machine/machine.ts";
import { FIXTURES, KERNEL_OBJECTS } from "../image/fixtures.ts";

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
  readonly lab: Lab;
  readonly machine: Machine;
  readonly kernel: Kernel;
  /** Of all but one of the objects, and of that one. */
  readonly image: Image;
  readonly module: Image;
  /** The image that a call's function is in. */
  readonly imageOf: (call: Call) => Image;
}

/** Loads them into a laboratory, where every call site is a NOP. */
export async function openFixtureGuest(): Promise<FixtureGuest> {
  const lab = await Lab.open();
  const paths = KERNEL_OBJECTS.map((name) => join(FIXTURES, name));
  const image = await lab.loadModule("fixtures", paths);
  const module = await lab.loadModule("lookup_fixed", [join(FIXTURES, MODULE)]);
  const { machine, kernel } = lab;
  return {
    lab,
    machine,
    kernel,
    image,
    module,
    imageOf: ({ object }) => (object === MODULE ? module : image),
  };
}
