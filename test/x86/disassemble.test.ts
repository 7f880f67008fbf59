// Listings: every byte shown, lengths as objdump has them, names where they belong.

import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { beforeAll, describe, expect, test } from "vitest";
import { type Addr, addr } from "../../src/base/addr.ts";
import { parseHexBytes } from "../../src/base/bytes.ts";
import { loadAssembler } from "../../src/x86/assemble.ts";
import { type Disassembler, formatLines, loadDisassembler } from "../../src/x86/disassemble.ts";
import { NO_GNU } from "./assemble-gnu.ts";
import { instructionTexts } from "./assemble-texts.ts";

const TEXT = addr(0xffffffff81000000n);

let disassembler: Disassembler;
beforeAll(async () => {
  disassembler = await loadDisassembler();
});

const texts = (hex: string, names: Record<string, string> = {}) =>
  disassembler
    .disassemble(parseHexBytes(hex), TEXT, (at: Addr) => names[(at - TEXT).toString(16)])
    .map(({ text }) => text);

describe("one line", () => {
  test.each([
    ["90", "nop"],
    ["f3 0f 1e fa", "endbr64"],
    ["0f 1f 44 00 00", "nopl (%rax, %rax)"],
    ["e8 3b 00 00 00", "callq 0xffffffff81000040 <vfs_read>"],
    ["eb fe", "jmp 0xffffffff81000000"],
    ["74 3e", "je 0xffffffff81000040 <vfs_read>"],
    ["48 8b 05 39 00 00 00", "movq 0x39(%rip), %rax  # 0xffffffff81000040 <vfs_read>"],
    ["48 8d 05 00 00 00 00", "leaq (%rip), %rax  # 0xffffffff81000007"],
    ["ff d0", "callq *%rax"],
    ["f0 48 0f b1 0b", "lock cmpxchgq %rcx, (%rbx)"],
    ["06", "(bad)"],
    ["0f ff c0", "ud0 %eax,%eax  # Capstone: ud0, 2 bytes"],
    ["0f 01 e8", "serialize  # Capstone: not decodable"],
  ])("%s is %s", (hex, text) => expect(texts(hex, { 40: "vfs_read" })).toEqual([text]));
});

test("what does not decode is one line a byte, and decoding goes on", () => {
  expect(texts("90 06 0e 90 c3 e8")).toEqual(["nop", "(bad)", "(bad)", "nop", "retq", "(bad)"]);
  expect(texts("")).toEqual([]);
});

test("lines are formatted in columns", () => {
  const lines = disassembler.disassemble(parseHexBytes("90 e8 00 00 00 00"), TEXT);
  expect(formatLines(lines)).toEqual([
    "0xffffffff81000000: 90              nop",
    "0xffffffff81000001: e8 00 00 00 00  callq 0xffffffff81000006",
  ]);
  expect(formatLines([])).toEqual([]);
});

test("any bytes at any address are covered, in order, without an exception", () => {
  const places = fc.constantFrom(0, 0x400000, TEXT, addr(2 ** 47 - 4096), addr(-4096), addr(-(2 ** 47)));
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 300 }), places, (bytes, at) => {
      const lines = disassembler.disassemble(bytes, at as Addr, () => "name");
      expect(lines.flatMap((line) => [...line.bytes])).toEqual([...bytes]);
      let next = at;
      for (const line of lines) {
        expect(line.at).toBe(next);
        next += line.bytes.length;
      }
    }),
  );
});

describe.skipIf(NO_GNU)(`against objdump${NO_GNU ? ` (skipped: ${NO_GNU})` : ""}`, () => {
  test("lines begin where objdump's do, over all instructions that the assembler makes", async () => {
    const assembler = await loadAssembler();
    // A tenth of them; branches out of the section would be relocations.
    const chosen = instructionTexts().filter(
      (text, i) => i % 10 === 0 && !/%cs$|^nop |^rex|\*%ax/.test(text),
    );
    const bytes: number[] = [];
    for (const text of chosen)
      try {
        bytes.push(...assembler.assemble("t.s", text).sections[0]!.bytes);
      } catch {
        // Some texts are no instructions: assemble-instructions.test.ts says which.
      }
    const code = Uint8Array.from(bytes);
    const lines = disassembler.disassemble(code, TEXT);
    const found = lines.map(({ at }) => at - TEXT);
    expect(found).toEqual(objdumpStarts(code));
    expect(found.length).toBeGreaterThan(2000);
    expect(lines.filter(({ text }) => text === "(bad)")).toEqual([]);
  });
});

function objdumpStarts(code: Uint8Array): number[] {
  const folder = mkdtempSync(join(tmpdir(), "fentrylab-objdump-"));
  try {
    const file = join(folder, "code.bin");
    writeFileSync(file, code);
    const options = ["-D", "-b", "binary", "-m", "i386:x86-64", "--insn-width=15", file];
    const listing = execFileSync("objdump", options, { encoding: "utf8", maxBuffer: 1 << 28 });
    return [...listing.matchAll(/^ +([0-9a-f]+):\t/gm)].map(([, at]) => Number.parseInt(at!, 16));
  } finally {
    rmSync(folder, { recursive: true });
  }
}
