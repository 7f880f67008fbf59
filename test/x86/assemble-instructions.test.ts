// Every instruction text that GNU as takes, and what it makes of it, against our assembler.

import { Decoder, Formatter, FormatterSyntax } from "iced-x86";
import { beforeAll, describe, expect, test } from "vitest";
import { Refusal } from "../../src/base/refuse.ts";
import { KeystoneEncoder } from "../../src/x86/assemble/keystone.ts";
import { type Assembler, loadAssembler } from "../../src/x86/assemble.ts";
import { gnuEncodings, NO_GNU } from "./assemble-gnu.ts";
import { instructionTexts } from "./assemble-texts.ts";

let assembler: Assembler;
beforeAll(async () => {
  assembler = await loadAssembler();
});

const encode = (text: string) =>
  Buffer.from(assembler.assemble("t.s", text).sections[0]!.bytes).toString("hex");

/** The same text for encodings of the same instruction. */
function meaning(hex: string): string {
  const decoder = new Decoder(64, Buffer.from(hex, "hex"), 0);
  const formatter = new Formatter(FormatterSyntax.Nasm);
  const texts: string[] = [];
  while (decoder.canDecode) {
    const instruction = decoder.decode();
    texts.push(formatter.format(instruction));
    instruction.free();
  }
  formatter.free();
  decoder.free();
  return texts.join("; ");
}

/** Taken by GNU as, not by us: no size given, unencodable selectors, 16-bit branches, REX alone. */
const NOT_OURS = /^(nop [^%].*|nop %cs:.*|mov.*, %cs|(call|jmp) \*%ax|rex\.w nop)$/;

/** Taken by us, not by GNU as: far branches through ten bytes. */
const NOT_GNUS = /^l(call|jmp)q /;

describe.skipIf(NO_GNU)(`every instruction text${NO_GNU ? ` (skipped: ${NO_GNU})` : ""}`, () => {
  test("means what GNU as makes of it, and is refused when GNU as refuses it", () => {
    const reference = gnuEncodings(instructionTexts());
    const wrong: string[] = [];
    let same = 0;
    let alike = 0;
    for (const [text, expected] of reference) {
      let got: string;
      try {
        got = encode(text);
      } catch (error) {
        if (!(error instanceof Refusal)) throw error;
        if ("hex" in expected && !NOT_OURS.test(text)) wrong.push(`${text}: ${error.message}`);
        continue;
      }
      if ("error" in expected) {
        if (!NOT_GNUS.test(text)) wrong.push(`${text}: GNU as says ${expected.error}, we make ${got}`);
      } else if (got === expected.hex) same++;
      else if (meaning(got) === meaning(expected.hex)) alike++;
      else
        wrong.push(
          `${text}: ${got} is ${meaning(got)}; GNU as makes ${expected.hex}, ${meaning(expected.hex)}`,
        );
    }
    expect(wrong).toEqual([]);
    // Byte for byte the same but for the order of two prefixes.
    expect(same).toBeGreaterThan(26_000);
    expect(alike).toBeLessThan(5);
  });
});

describe("what Keystone gets wrong or lacks", () => {
  test.each([
    ["nopl 0(%rax,%rax,1)", "0f1f0400"],
    ["nopl 0x12345678(%rax,%rax,1)", "0f1f840078563412"],
    ["nopw %cs:0x0(%rax,%rax,1)", "2e660f1f0400"],
    ["nopl 8(%rip)", "0f1f0508000000"],
    ["nopw 0x7000", "660f1f042500700000"],
    ["endbr64", "f30f1efa"],
    ["rdpid %r12", "f3410fc7fc"],
    ["notrack jmp *%rax", "3effe0"],
    ["mov 16(%rsp), %rax", "488b442410"],
    ["push $127", "6a7f"],
    ["mov 0x7000, %rax", "488b042500700000"],
    ["mov %gs:0x28, %rax", "65488b042528000000"],
    ["mov $-1, %rax", "48c7c0ffffffff"],
    ["movl $5, %ss:(%rax)", "36c70005000000"],
  ])("%s is %s", (text, hex) => expect(encode(text)).toBe(hex));
});

test("Keystone's own breakdown is caught, and leaves no exit code", async () => {
  const keystone = await KeystoneEncoder.load();
  const before = process.exitCode;
  expect(() => keystone.encode("cmpxchg %sil, %ah", "cmpxchg")).toThrow(/broke down/);
  expect(process.exitCode).toBe(before);
  expect(keystone.alive).toBe(false);
  expect(() => keystone.encode("nop", "nop")).toThrow(/load the assembler again/);
});

test("statements that Keystone would not survive never reach it", async () => {
  expect(() => encode("movzbq %ah, %rax")).toThrow(/no encoding has both/);
  expect(() => encode("add %ah, %sil")).toThrow(/no encoding has both/);
  expect((await loadAssembler()).alive).toBe(true);
  expect(encode("mov %ah, (%rax)")).toBe("8820");
});

test("a few hundred new instructions take well under 150 ms", () => {
  const lines = Array.from({ length: 300 }, (_, i) => `mov %rax, ${i * 8 + 4}(%rbx,%rcx)`);
  const start = performance.now();
  expect(assembler.assemble("t.s", lines.join("\n")).sections[0]!.size).toBeGreaterThan(300 * 5);
  expect(performance.now() - start).toBeLessThan(600); // four times the aim: other tests run beside this one
});
