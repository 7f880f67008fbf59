// parseElf against readelf and objcopy, and against files that are wrong in every way we know.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { addr } from "../../src/base/addr.ts";
import { Refusal } from "../../src/base/refuse.ts";
import { parseElf } from "../../src/image/elf.ts";
import { KERNEL_TEXT } from "../../src/image/layout.ts";
import { link } from "../../src/image/link.ts";
import type { ObjectFile } from "../../src/x86/object.ts";
import { fixture, fixtureBytes, inScratchFolder, missing, OBJECTS, run } from "./fixtures.ts";

const READELF = missing("readelf");
const OBJCOPY = missing("objcopy");

describe.each(OBJECTS)("%s", (name) => {
  test("has readelf's sections", (ctx) => {
    if (READELF) ctx.skip(READELF);
    const rows = [...run("readelf", ["-SW", name]).matchAll(SECTION_ROW)];
    const wanted = rows
      .filter(([, , type]) => ["PROGBITS", "NOBITS", "NOTE"].includes(type!))
      .map(([, section, type, size, flags, align]) => ({
        name: section,
        size: Number.parseInt(size!, 16),
        write: flags!.includes("W"),
        execute: flags!.includes("X"),
        alloc: flags!.includes("A"),
        align: Math.max(1, Number(align)),
        filled: type === "NOBITS" ? 0 : Number.parseInt(size!, 16),
      }));
    const found = fixture(name).sections.map(({ name, size, write, execute, alloc, align, bytes }) => {
      return { name, size, write, execute, alloc, align, filled: bytes.length };
    });
    expect(wanted.length).toBeGreaterThan(3);
    expect(found).toEqual(wanted);
  });

  test("has readelf's symbols", (ctx) => {
    if (READELF) ctx.skip(READELF);
    const object = fixture(name);
    const wanted = [...run("readelf", ["-sW", name]).matchAll(SYMBOL_ROW)]
      .filter(([, , , type]) => type !== "FILE")
      .slice(1) // the reserved first entry
      .map(([, value, size, type, binding, home, symbol]) => {
        return `${symbol} ${type} ${binding} ${Number.parseInt(value!, 16)} ${Number(size)} ${home === "UND"}`;
      });
    const found = object.symbols.map(({ name, kind, binding, value, size, section }) => {
      const type = kind === "none" ? "NOTYPE" : kind.toUpperCase();
      return `${name} ${type} ${binding.toUpperCase()} ${value} ${size} ${section === null}`;
    });
    expect(found).toEqual(wanted);
  });

  test("has readelf's relocations", (ctx) => {
    if (READELF) ctx.skip(READELF);
    const object = fixture(name);
    const wanted = [...run("readelf", ["-rW", name]).matchAll(RELOCATION_ROW)].map(
      ([, offset, type, symbol, sign, addend]) =>
        `${Number.parseInt(offset!, 16)} ${type} ${symbol} ${Number.parseInt(sign! + addend!, 16)}`,
    );
    const found = object.sections.flatMap((section) =>
      section.relocations.map(({ offset, type, symbol, addend }) => {
        return `${offset} ${type} ${object.symbols[symbol]!.name} ${addend}`;
      }),
    );
    expect(found.toSorted()).toEqual(wanted.toSorted());
    expect(found.length).toBeGreaterThan(0);
  });

  test("has objcopy's bytes", (ctx) => {
    if (OBJCOPY) ctx.skip(OBJCOPY);
    for (const section of fixture(name).sections.filter(({ alloc, bytes }) => alloc && bytes.length > 0)) {
      const wanted = inScratchFolder((folder) => {
        const file = join(folder, "section");
        run("objcopy", ["-O", "binary", "-j", section.name, name, file]);
        return new Uint8Array(readFileSync(file));
      });
      expect(section.bytes).toEqual(wanted);
    }
  });
});

/** Assembles `source` with GNU as. */
function assembled(source: string): ObjectFile {
  return inScratchFolder((folder) => {
    const file = join(folder, "source.o");
    run("as", ["-o", file, "-"], `${source}\n`);
    return parseElf("source.o", new Uint8Array(readFileSync(file)));
  });
}

describe("what only an assembler writes", () => {
  const AS = missing("as");

  test("is read: constants, labels, weak names, 64-bit distances, unwind tables, groups", (ctx) => {
    if (AS) ctx.skip(AS);
    const object = assembled(`
      .set LOCAL_CONSTANT, 42
      .globl entry; .weak maybe
      .type entry, @function
      entry: .cfi_startproc; mov $LOCAL_CONSTANT, %eax; call maybe; ret; .cfi_endproc
      label: .quad maybe - ., entry + 8
      .section .text.thunk, "axG", @progbits, thunk, comdat
      .globl thunk
      thunk: .reloc ., R_X86_64_NONE; ret
      .section .init_array, "aw", @init_array
      .quad entry
    `);
    const named = (name: string) => object.symbols.find((symbol) => symbol.name === name);
    expect(named("LOCAL_CONSTANT")).toBeUndefined();
    expect(named("entry")).toMatchObject({ kind: "func", binding: "global", value: 0, size: 0 });
    expect(named("maybe")).toMatchObject({ kind: "none", binding: "weak", section: null });
    expect(named("label")).toMatchObject({ kind: "none", binding: "local", value: 11 });
    const section = (name: string) => object.sections.find((section) => section.name === name)!;
    expect(section(".eh_frame")).toMatchObject({ alloc: false, relocations: [] });
    expect(section(".text.thunk")).toMatchObject({ alloc: true, execute: true, size: 1, relocations: [] });
    expect(section(".init_array")).toMatchObject({ alloc: true, write: true, size: 8 });
    const types = section(".text").relocations.map(({ type, offset }) => [type, offset]);
    expect(types).toEqual([
      ["R_X86_64_PLT32", 6],
      ["R_X86_64_PC64", 11],
      ["R_X86_64_64", 19],
    ]);
  });

  test("is refused: global constants, thread-local data, COMMON", (ctx) => {
    if (AS) ctx.skip(AS);
    expect(refusalOf(() => assembled(".globl limit; .set limit, 42")).message).toMatch(
      /'limit' is a global constant/,
    );
    expect(refusalOf(() => assembled(".comm pool, 8")).message).toMatch(/'pool' is COMMON/);
    const local = '.section .tdata, "awT"; .quad 1';
    expect(refusalOf(() => assembled(local)).message).toMatch(/\.tdata is thread-local/);
    expect(refusalOf(() => assembled("mov name@GOTPCREL(%rip), %rax")).code).toBe("elf-relocation");
  });
});

const SECTION_ROW =
  /^ +\[ *\d+\] (\S+) +(\S+) +[0-9a-f]{16} [0-9a-f]+ ([0-9a-f]+) [0-9a-f]+ +([A-Zop]*) +\d+ +\d+ +(\d+)$/gm;
const SYMBOL_ROW = /^ +\d+: ([0-9a-f]{16}) +(\d+) (\w+) +(\w+) +\w+ +(\w+) ?(\S*)$/gm;
const RELOCATION_ROW = /^([0-9a-f]{16}) +[0-9a-f]{16} (R_\w+) +[0-9a-f]{16} (\S+) ([+-]) ([0-9a-f]+)$/gm;

/** A copy of lookup_fixed.o with some bytes changed. */
function corrupted(change: (view: DataView) => void): Uint8Array {
  const bytes = fixtureBytes("lookup_fixed.o");
  change(new DataView(bytes.buffer));
  return bytes;
}

/** File offset of the n-th section header of that type. */
function header(view: DataView, type: number): number {
  const start = Number(view.getBigUint64(40, true));
  for (let i = 0; i < view.getUint16(60, true); i++) {
    if (view.getUint32(start + 64 * i + 4, true) === type) return start + 64 * i;
  }
  throw new Error(`no section of type ${type}`);
}

const contentAt = (view: DataView, type: number): number =>
  Number(view.getBigUint64(header(view, type) + 24, true));
const [PROGBITS, SYMTAB, STRTAB, RELA] = [1, 2, 3, 4];

describe("refuses in one line", () => {
  const wrong: [string, string, RegExp, (view: DataView) => void][] = [
    ["another format", "elf-kind", /not an ELF file/, (v) => v.setUint8(1, 0x45 + 1)],
    ["32-bit objects", "elf-kind", /a 32-bit ELF file/, (v) => v.setUint8(4, 1)],
    ["class 7", "elf-kind", /class 7/, (v) => v.setUint8(4, 7)],
    ["big-endian objects", "elf-kind", /a big-endian ELF file/, (v) => v.setUint8(5, 2)],
    ["another machine's", "elf-kind", /machine 183/, (v) => v.setUint16(18, 183, true)],
    ["executables", "elf-kind", /an executable/, (v) => v.setUint16(16, 2, true)],
    ["shared libraries", "elf-kind", /a shared library/, (v) => v.setUint16(16, 3, true)],
    ["no sections", "elf-malformed", /no section headers/, (v) => v.setUint16(60, 0, true)],
    ["odd section headers", "elf-malformed", /40 bytes/, (v) => v.setUint16(58, 40, true)],
    [
      "section headers outside",
      "elf-truncated",
      /section header table/,
      (v) => v.setBigUint64(40, 1n << 60n, true),
    ],
    ["a bad index of names", "elf-malformed", /names section 77/, (v) => v.setUint16(62, 77, true)],
    [
      "contents outside",
      "elf-truncated",
      /section \.text/,
      (v) => v.setBigUint64(header(v, PROGBITS) + 24, 1n << 62n, true),
    ],
    [
      "contents too long",
      "elf-truncated",
      /section \.text/,
      (v) => v.setBigUint64(header(v, PROGBITS) + 32, (1n << 64n) - 1n, true),
    ],
    [
      "overlapping contents",
      "elf-malformed",
      /overlaps/,
      (v) => v.setBigUint64(header(v, PROGBITS) + 32, BigInt(v.byteLength - 64), true),
    ],
    [
      "odd alignment",
      "elf-malformed",
      /alignment 3/,
      (v) => v.setBigUint64(header(v, PROGBITS) + 48, 3n, true),
    ],
    [
      "huge alignment",
      "elf-malformed",
      /alignment/,
      (v) => v.setBigUint64(header(v, PROGBITS) + 48, 1n << 40n, true),
    ],
    [
      "thread-local sections",
      "elf-malformed",
      /thread-local/,
      (v) => v.setBigUint64(header(v, PROGBITS) + 8, 0x406n, true),
    ],
    [
      "unknown loaded sections",
      "elf-malformed",
      /type 12345/,
      (v) => v.setUint32(header(v, PROGBITS) + 4, 12345, true),
    ],
    ["SHT_REL", "elf-rel", /\.rela\.text/, (v) => v.setUint32(header(v, RELA) + 4, 9, true)],
    [
      "a symbol table without strings",
      "elf-malformed",
      /string table/,
      (v) => v.setUint32(header(v, SYMTAB) + 40, 1, true),
    ],
    [
      "odd symbol entries",
      "elf-malformed",
      /entries of 16/,
      (v) => v.setBigUint64(header(v, SYMTAB) + 56, 16n, true),
    ],
    [
      "half a symbol",
      "elf-malformed",
      /middle of an entry/,
      (v) => v.setBigUint64(header(v, SYMTAB) + 32, 25n, true),
    ],
    [
      "a name outside the strings",
      "elf-malformed",
      /name at offset/,
      (v) => v.setUint32(contentAt(v, SYMTAB) + 24, 1 << 30, true),
    ],
    [
      "COMMON symbols",
      "elf-common",
      /-fno-common/,
      (v) => v.setUint16(contentAt(v, SYMTAB) + 24 * 3 + 6, 0xfff2, true),
    ],
    [
      "symbols in no section",
      "elf-malformed",
      /section 500/,
      (v) => v.setUint16(contentAt(v, SYMTAB) + 24 * 3 + 6, 500, true),
    ],
    [
      "global constants",
      "elf-malformed",
      /global constant/,
      (v) => v.setUint16(contentAt(v, SYMTAB) + 24 * 3 + 6, 0xfff1, true),
    ],
    [
      "symbols past their section",
      "elf-malformed",
      /after \.text does/,
      (v) => v.setBigUint64(contentAt(v, SYMTAB) + 24 * 3 + 16, 9999n, true),
    ],
    [
      "symbols of unknown type",
      "elf-malformed",
      /type 10/,
      (v) => v.setUint8(contentAt(v, SYMTAB) + 24 * 3 + 4, 0x1a),
    ],
    [
      "symbols of unknown binding",
      "elf-malformed",
      /binding 10/,
      (v) => v.setUint8(contentAt(v, SYMTAB) + 24 * 3 + 4, 0xa2),
    ],
    [
      "relocations of no section",
      "elf-malformed",
      /relocates section 99/,
      (v) => v.setUint32(header(v, RELA) + 44, 99, true),
    ],
    [
      "relocations without symbols",
      "elf-malformed",
      /symbol table/,
      (v) => v.setUint32(header(v, RELA) + 40, 1, true),
    ],
    [
      "relocations outside",
      "elf-malformed",
      /outside its section/,
      (v) => v.setBigUint64(contentAt(v, RELA), 1n << 63n, true),
    ],
    [
      "GOT relocations",
      "elf-relocation",
      /type 9 at \.text\+0x1/,
      (v) => v.setUint32(contentAt(v, RELA) + 8, 9, true),
    ],
    [
      "relocations against no symbol",
      "elf-malformed",
      /symbol 4096/,
      (v) => v.setUint32(contentAt(v, RELA) + 12, 4096, true),
    ],
    [
      "huge addends",
      "elf-malformed",
      /addend/,
      (v) => v.setBigInt64(contentAt(v, RELA) + 16, 1n << 62n, true),
    ],
  ];

  test.each(wrong)("%s", (_, code, words, change) => {
    const refusal = refusalOf(() => parseElf("bad.o", corrupted(change)));
    expect(refusal.code).toBe(code);
    expect(refusal.message).toMatch(words);
    expect(refusal.message).toMatch(/^bad\.o/);
    expect(refusal.message).not.toContain("\n");
  });

  test("an empty file", () => {
    expect(refusalOf(() => parseElf("bad.o", new Uint8Array(0))).message).toMatch(/^bad\.o is empty, /);
  });

  test("a file cut off anywhere", () => {
    const whole = fixtureBytes("lookup_fixed.o");
    for (let length = 1; length < whole.length; length++) {
      expect(refusalOf(() => parseElf("cut.o", whole.subarray(0, length))).code).toBe("elf-truncated");
    }
  });

  test("a file whose headers ask for far more than it holds, quickly", () => {
    const count = 60_000;
    const bytes = new Uint8Array(64 + count * 64);
    const view = new DataView(bytes.buffer);
    const whole = fixtureBytes("lookup_fixed.o");
    bytes.set(whole.subarray(0, 64));
    view.setBigUint64(40, 64n, true);
    view.setUint16(60, count, true);
    view.setUint16(62, 1, true);
    for (let i = 0; i < count; i++) {
      const at = 64 + i * 64;
      view.setUint32(at + 4, i === 1 ? STRTAB : i === 2 ? SYMTAB : i === 3 ? PROGBITS : RELA, true);
      view.setBigUint64(at + 8, 2n, true);
      view.setBigUint64(at + 24, i === 1 ? 0n : 64n, true);
      view.setBigUint64(at + 32, i === 1 ? 64n : i === 2 || i === 3 ? 0n : BigInt(24 * 150_000), true);
      view.setUint32(at + 40, i === 2 ? 1 : 2, true);
      view.setUint32(at + 44, 3, true);
      view.setBigUint64(at + 56, 24n, true);
    }
    expect(refusalOf(() => parseElf("greedy.o", bytes)).code).toMatch(/^elf-/);
  });
});

test("whatever is done to an object, it is linked or refused", () => {
  const outcomes = { linked: 0, refused: 0 };
  const edit = fc.record({
    at: fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }),
    bytes: fc.oneof(
      fc.uint8Array({ minLength: 1, maxLength: 8 }),
      fc
        .constantFrom([0xff], [0], [0x80], [0xff, 0xff, 0xff, 0xff], [0, 0, 0, 0, 0, 0, 0, 0x80])
        .map((list) => Uint8Array.from(list)),
    ),
  });
  const name = fc.constantFrom(...OBJECTS);
  fc.assert(
    fc.property(
      name,
      fc.array(edit, { minLength: 1, maxLength: 4 }),
      fc.boolean(),
      (name, edits, headersOnly) => {
        const bytes = fixtureBytes(name);
        const table = Number(new DataView(bytes.buffer).getBigUint64(40, true));
        const start = headersOnly ? table : 0;
        for (const { at, bytes: change } of edits) {
          const place = start + Math.floor(at * (bytes.length - start));
          bytes.set(change.subarray(0, bytes.length - place), place);
        }
        try {
          link([parseElf(name, bytes)], { text: KERNEL_TEXT, externals: () => addr(0xffffffff82000000n) });
          outcomes.linked++;
        } catch (error) {
          if (!(error instanceof Refusal)) throw error;
          expect(error.message).not.toContain("\n");
          outcomes.refused++;
        }
      },
    ),
    { numRuns: 3000, seed: 20 },
  );
  // Both must happen often, or the edits prove nothing.
  expect(outcomes.linked).toBeGreaterThan(100);
  expect(outcomes.refused).toBeGreaterThan(300);
});

function refusalOf(body: () => unknown): Refusal {
  try {
    body();
  } catch (error) {
    if (error instanceof Refusal) return error;
    throw error;
  }
  throw new Error("was not refused");
}
