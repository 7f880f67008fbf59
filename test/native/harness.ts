// harness.S as machine code, by our own assembler: the test needs no toolchain.

import { readPackageFile } from "../../src/guest.ts";
import { assemble } from "../../src/x86/assemble.ts";

let text: Promise<Uint8Array> | undefined;

/** The harness's bytes, which run at any address. Assembled once. */
export function harnessText(): Promise<Uint8Array> {
  text ??= assembleHarness();
  return text;
}

async function assembleHarness(): Promise<Uint8Array> {
  // By its path in the package: this file may run compiled, with no sources beside it.
  const source = new TextDecoder().decode(readPackageFile("test/native/harness.S"));
  const { sections } = await assemble("harness.S", source);
  const found = sections.find(({ name }) => name === ".text");
  if (found === undefined || found.relocations.length > 0)
    throw new Error("harness.S must be one .text without relocations");
  return found.bytes;
}
