// The two halves of every case line agree: the text, assembled, is the instruction that the bytes are.
//
// By our own assembler and by GNU as. Encodings may differ (a case may want the longer one), instructions may not.

import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Code, Formatter, FormatterSyntax } from "iced-x86";
import { expect, test } from "vitest";
import { assemble } from "../../src/x86/assemble.ts";
import { loadCases } from "./cases.ts";
import { decodeAll } from "./cases-flags.ts";

/** A source's .text. */
type Assemble = (source: string) => Promise<Uint8Array>;

const ours: Assemble = async (source) => {
  const { sections } = await assemble("cases.s", source);
  return sections.find(({ name }) => name === ".text")!.bytes;
};

const gnu: Assemble = async (source) => {
  const folder = mkdtempSync(join(tmpdir(), "fentrylab-cases-"));
  const [input, object, binary] = ["cases.s", "cases.o", "cases.bin"].map((name) => join(folder, name));
  try {
    writeFileSync(input!, source);
    execFileSync("as", ["-W", "-o", object!, input!]);
    execFileSync("objcopy", ["-O", "binary", "-j", ".text", object!, binary!]);
    return readFileSync(binary!);
  } finally {
    rmSync(folder, { recursive: true });
  }
};

/** What the bytes say at CODE, in a syntax that shows no difference between encodings; null if they are no instruction. */
function disassemble(bytes: Uint8Array): string | null {
  const formatter = new Formatter(FormatterSyntax.Masm);
  formatter.showBranchSize = false;
  const instructions = decodeAll(bytes);
  const valid = instructions.every(({ code }) => code !== Code.INVALID);
  // No assembler writes the second encoding of shl, which iced-x86 calls sal.
  const text = instructions.map((each) => formatter.format(each).replace(/^sal /, "shl ")).join("; ");
  for (const instruction of instructions) instruction.free();
  formatter.free();
  return valid ? text : null;
}

/** Each text's bytes, all assembled as one source that gives every text's length before it. */
async function assembleAll(texts: readonly string[], by: Assemble): Promise<Uint8Array[]> {
  const bytes = await by(`${texts.map((text) => `.long 2f-1f; 1: ${text}; 2:`).join("\n")}\n`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let at = 0;
  return texts.map(() => {
    const start = at + 4;
    at = start + view.getUint32(at, true);
    return bytes.subarray(start, at);
  });
}

/** What Keystone does not know, or takes for something else: newer instructions, eip, operands of xlatb. */
const NOT_OURS =
  /prefetchwt1|prefetchit|enterw|xlatb .|%eip|,p[nt] |movdir|(?:^|lock )a(?:add|and|or|xor) |cmp\w+xadd|xacquire|xrelease/;

async function disagreements(by: Assemble): Promise<string[]> {
  // What is no instruction in 64-bit mode has a text for readers only
  const cases = loadCases().filter(
    ({ bytes, text }) => disassemble(bytes) !== null && !(by === ours && NOT_OURS.test(text)),
  );
  const assembled = await assembleAll(
    cases.map(({ text }) => text),
    by,
  );
  return cases.flatMap(({ name, bytes }, i) => {
    const [expected, got] = [disassemble(bytes), disassemble(assembled[i]!)];
    return expected === got ? [] : [`${name}: the bytes are '${expected}', the text '${got}'`];
  });
}

test("the text of every case is its bytes, by our assembler", async () => {
  expect(await disagreements(ours)).toEqual([]);
});

test("the text of every case is its bytes, by GNU as", async (ctx) => {
  if (spawnSync("as", ["--version"]).status !== 0) ctx.skip("there is no GNU as on this host");
  expect(await disagreements(gnu)).toEqual([]);
});

test("a text that is another instruction is found", async () => {
  const [wrong] = await assembleAll(["add %ecx,%eax"], ours);
  expect(disassemble(wrong!)).not.toBe(disassemble(Uint8Array.of(0x01, 0xd8)));
  expect(disassemble(wrong!)).toBe("add eax,ecx");
});

test("what is no instruction is undefined to the processor too", () => {
  const invalid = loadCases().filter(({ bytes }) => disassemble(bytes) === null);
  expect(invalid.length).toBeGreaterThan(0);
  expect(invalid.filter(({ after }) => after?.fault?.name !== "#UD").map(({ name }) => name)).toEqual([]);
});
