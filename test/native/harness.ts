// DEV: GNU as until our assembler is there
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
export async function harnessText(): Promise<Uint8Array> {
  execFileSync("as", ["-o", "/tmp/h.o", fileURLToPath(new URL("harness.S", import.meta.url))]);
  execFileSync("objcopy", ["-O", "binary", "-j", ".text", "/tmp/h.o", "/tmp/h.bin"]);
  return readFileSync("/tmp/h.bin");
}
