// The two halves of every case line agree: the text, assembled, is the instruction that the bytes are.
//
// Held against GNU as. Encodings may differ (a case may want the longer one), instructions may not.

import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Code, Formatter, FormatterSyntax } from "iced-x86";
import { expect, test } from "vitest";
import { loadCases } from "./cases.ts";
import { decodeAll } from "./cases-flags.ts";

const skip = spawnSync("as", ["--version"]).status === 0 ? undefined : "no GNU as on this host";
if (skip !== undefined) console.log(`texts and bytes of the cases are not compared: ${skip}`);

/** What the bytes say at CODE, in a syntax that shows no difference between encodings; null if they are no instruction. */
function disassemble(bytes: Uint8Array): string | null {
  const formatter = new Formatter(FormatterSyntax.Masm);
  formatter.showBranchSize = false;
  const instructions = decodeAll(bytes);
  const valid = instructions.every(({ code }) => code !== Code.INVALID);
  const text = instructions.map((instruction) => formatter.format(instruction)).join("; ");
  for (const instruction of instructions) instruction.free();
  formatter.free();
  return valid ? text : null;
}

/** Each text's bytes, from one run of GNU as, which writes every text's length before it. */
function assembleAll(texts: readonly string[]): Uint8Array[] {
  const folder = mkdtempSync(join(tmpdir(), "fentrylab-cases-"));
  try {
    const [source, object, binary] = ["cases.s", "cases.o", "cases.bin"].map((name) => join(folder, name));
    const lines = texts.map((text) => `.long 2f-1f; 1: ${text}; 2:`);
    writeFileSync(source!, `${lines.join("\n")}\n`);
    execFileSync("as", ["-W", "-o", object!, source!]);
    execFileSync("objcopy", ["-O", "binary", "-j", ".text", object!, binary!]);
    const bytes = readFileSync(binary!);
    let at = 0;
    return texts.map(() => {
      const start = at + 4;
      at = start + bytes.readUInt32LE(at);
      return bytes.subarray(start, at);
    });
  } finally {
    rmSync(folder, { recursive: true });
  }
}

test.skipIf(skip !== undefined)("the text of every case is its bytes", () => {
  // What is no instruction in 64-bit mode has a text for readers only
  const cases = loadCases().filter(({ bytes }) => disassemble(bytes) !== null);
  const assembled = assembleAll(cases.map(({ text }) => text));
  const wrong = cases.flatMap(({ name, bytes }, i) => {
    const [expected, got] = [disassemble(bytes), disassemble(assembled[i]!)];
    return expected === got ? [] : [`${name}: the bytes are '${expected}', the text '${got}'`];
  });
  expect(wrong).toEqual([]);
});

test("what is no instruction is undefined to the processor too", () => {
  const defined = loadCases().filter(
    ({ bytes, after }) => disassemble(bytes) === null && after?.fault?.name !== "#UD",
  );
  expect(defined.map(({ name }) => name)).toEqual([]);
});
