// `fentrylab disasm`, held against objdump: where instructions begin and end in the object, and what they are.

import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { missing, run } from "../image/fixtures.ts";
import { command, fixturePath, type ListingDocument, Scratch } from "./command.ts";

const scratch = new Scratch();
afterAll(() => scratch.remove());
const absent = missing("objdump");

async function list(...args: string[]): Promise<ListingDocument["functions"]> {
  const { status, stdout, stderr } = await command("disasm", ...args, "--json");
  expect([status, stderr]).toEqual([0, ""]);
  const document: ListingDocument = JSON.parse(stdout);
  return document.functions;
}

interface Instruction {
  readonly at: bigint;
  readonly bytes: string;
  readonly text: string;
}

/** The instructions of an objdump listing. */
function parseObjdump(listing: string): Instruction[] {
  return [...listing.matchAll(/^ *([0-9a-f]+):\t((?:[0-9a-f]{2} )+) *\t(.*)$/gm)].map(
    ([, at, bytes, text]) => ({
      at: BigInt(`0x${at}`),
      bytes: bytes!.trim(),
      text: text!,
    }),
  );
}

/** Without what the two only spell differently: numbers, blanks, symbols, some names, what goes without saying. */
function normalise(text: string): string {
  const bare = text
    .replace(/\s*(#|<).*$/, "")
    .replace(/\b(?:0x[0-9a-f]+|\d+)\b/g, (word) => BigInt(word).toString());
  return bare
    .replace(/^((?:(?:lock|rep|repz|repe|repnz|repne|notrack) )*\w+?)\s+/, "$1|")
    .replaceAll(" ", "")
    .replace(/-(\d+)/g, (_, digits: string) => BigInt.asUintN(64, -BigInt(digits)).toString())
    .replace(/^jmpq\|(?!\*)/, "jmp|")
    .replace(/^(bswap|leave)[lq]\b/, "$1")
    .replace(/^rep(n?)e/, "rep$1z")
    .replace(/%[de]s:(?=\(%r[sd]i\))/g, "") // of string instructions
    .replace(/^((?:sa|sh|ro|rc)[lr][bwlq])\|\$1,/, "$1|")
    .replace("xchgw|%ax,%ax", "nop")
    .replace(/,1\)/g, ")")
    .replace(/(?<![\w$])0\(/g, "(");
}

const OBJECTS: [object: string, ...needs: string[]][] = [
  ["lookup_buggy.o"],
  ["string.o"],
  ["queue.o"],
  ["atomics.o"],
  ["compute.o", "string.o"],
  ["readfile.o", "string.o"],
  ["lookup_fixed.o", "lookup_buggy.o"],
];

describe.each(OBJECTS)("%s", (object, ...needs) => {
  const args = [fixturePath(object), ...needs.flatMap((needed) => ["--with", fixturePath(needed)])];
  let listed: ReturnType<typeof list>;
  beforeAll(() => {
    listed = list(...args);
    return listed;
  });

  test("every function of the object, with its instructions where objdump has them", async (ctx) => {
    if (absent) ctx.skip(absent);
    const listing = run("objdump", ["-d", "-w", "--no-show-raw-insn", fixturePath(object)]);
    const blocks = [...listing.matchAll(/^([0-9a-f]+) <([\w.]+)>:\n((?: .*\n)+)/gm)];
    const functions = await listed;
    expect(functions.map(({ symbol }) => symbol)).toEqual(blocks.map(([, , symbol]) => symbol));
    for (const [n, [, start, , body]] of blocks.entries()) {
      const { address, lines } = functions[n]!;
      const ours = lines.map((line) => BigInt(line.address) - BigInt(address));
      const theirs = [...body!.matchAll(/^ +([0-9a-f]+):/gm)].map(
        ([, at]) => BigInt(`0x${at}`) - BigInt(`0x${start}`),
      );
      // objdump goes on through the padding to the next function.
      expect(ours).toEqual(theirs.slice(0, ours.length));
    }
  });

  test("every line is what objdump makes of the linked bytes", async (ctx) => {
    if (absent) ctx.skip(absent);
    for (const { symbol, address, lines } of await listed) {
      const bytes = Buffer.from(lines.map((line) => line.bytes.replaceAll(" ", "")).join(""), "hex");
      const file = scratch.file("code.bin", bytes);
      const options = [
        "-D",
        "-w",
        "-b",
        "binary",
        "-m",
        "i386:x86-64",
        "-M",
        "suffix",
        `--adjust-vma=${address}`,
      ];
      const theirs = parseObjdump(run("objdump", [...options, file]));
      const shown = (at: bigint, raw: string, text: string) =>
        `${symbol}: ${at.toString(16)}: ${raw}: ${normalise(text)}`;
      expect(lines.map((line) => shown(BigInt(line.address), line.bytes, line.text))).toEqual(
        theirs.map(({ at, bytes: raw, text }) => shown(at, raw, text)),
      );
    }
  });
});

test("one function alone is as it is among all", async () => {
  const all = await list(fixturePath("lookup_buggy.o"));
  expect(await list(fixturePath("lookup_buggy.o"), "sys_lookup")).toEqual(
    all.filter(({ symbol }) => symbol === "sys_lookup"),
  );
});

test("labels of assembly are functions, whether it says so or not", async () => {
  const source = scratch.file("labels.S", ".text\none: nop\n ret\ntwo: ret\n.data\nword: .quad 0\n");
  expect((await list(source)).map(({ symbol, lines }) => [symbol, lines.map(({ text }) => text)])).toEqual([
    ["one", ["nop", "retq"]],
    ["two", ["retq"]],
  ]);
});

test("what people read has the same lines", async () => {
  const { stdout } = await command("disasm", fixturePath("lookup_buggy.o"));
  for (const { symbol, address, lines } of await list(fixturePath("lookup_buggy.o"))) {
    expect(stdout).toContain(`${address} <${symbol}>:\n${lines[0]!.address}: ${lines[0]!.bytes}`);
    for (const { address: at, bytes, text } of lines) {
      expect(
        stdout.split("\n").some((line) => line.startsWith(`${at}: ${bytes} `) && line.endsWith(`  ${text}`)),
      ).toBe(true);
    }
  }
});
