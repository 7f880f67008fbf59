// link() against GNU ld on the fixtures, and its rules for symbols and fields one by one.

import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { Addr } from "../../src/base/addr.ts";
import { addr, hex, PAGE_SIZE, toWord } from "../../src/base/addr.ts";
import type { Image } from "../../src/image/image.ts";
import { KERNEL_TEXT, MODULE_TEXT } from "../../src/image/layout.ts";
import { link } from "../../src/image/link.ts";
import { FIXTURES, fixture, inScratchFolder, KERNEL_OBJECTS, missing, run } from "./fixtures.ts";
import { object, reference, referring, section, symbol } from "./objects.ts";

const TOOLS = missing("ld", "objcopy", "nm");
const FENTRY = addr(0xffffffff81800000n);

const linkKernel = (): Image =>
  link(KERNEL_OBJECTS.map(fixture), {
    text: KERNEL_TEXT,
    externals: (name) => (name === "__fentry__" ? FENTRY : undefined),
  });

/** ld's image of the same objects: addresses of symbols, and bytes of sections. */
function gnuLink(
  names: readonly string[],
  text: Addr,
  externals: Record<string, Addr>,
  sections: readonly string[],
) {
  return inScratchFolder((folder) => {
    const [script, output] = [join(folder, "script.ld"), join(folder, "image")];
    // Output sections in the order in which the fixtures' names first appear.
    const kinds = [[".text"], ["__mcount_loc", ".rodata", ".rodata.str1.1"], [".data"], [".bss"]];
    const rows = kinds.flatMap((kind) => [
      ". = ALIGN(4096);",
      ...kind.map((name) => `${name} : { *(${name}) } ${name === ".text" ? "=0xcccccccc" : ""}`),
    ]);
    writeFileSync(
      script,
      `SECTIONS { . = ${hex(text)};\n${rows.join("\n")}\n/DISCARD/ : { *(.comment) *(.note*) } }\n`,
    );
    const given = Object.entries(externals).map(([name, at]) => `--defsym=${name}=${hex(at)}`);
    const paths = names.map((name) => join(FIXTURES, name));
    run("ld", ["-nostdlib", "--build-id=none", "-e", "0", "-T", script, "-o", output, ...given, ...paths]);
    const symbols = new Map<string, string[]>();
    for (const line of run("nm", [output]).trim().split("\n")) {
      const [value, , name] = line.split(" ");
      if (name! in externals) continue;
      symbols.set(name!, [...(symbols.get(name!) ?? []), `0x${value}`].sort());
    }
    const bytes = sections.map((name) => {
      run("objcopy", ["-O", "binary", "-j", name, output, join(folder, "bytes")]);
      return new Uint8Array(readFileSync(join(folder, "bytes")));
    });
    return { symbols, bytes };
  });
}

function addresses(image: Image): Map<string, string[]> {
  const names = new Set(image.symbols.map(({ name }) => name));
  return new Map(
    [...names].map((name) => [
      name,
      image
        .named(name)
        .map(({ address }) => hex(address))
        .sort(),
    ]),
  );
}

function contents(image: Image, name: string): Uint8Array {
  const [found, second] = image.sectionsNamed(name);
  expect(second).toBeUndefined();
  return image.bytes(found!.address, found!.size);
}

test("the kernel's fixtures come out as ld makes them", (ctx) => {
  if (TOOLS) ctx.skip(TOOLS);
  const image = linkKernel();
  const names = image.sections.map(({ name }) => name).filter((name) => name !== ".bss");
  const gnu = gnuLink(KERNEL_OBJECTS, KERNEL_TEXT, { __fentry__: FENTRY }, names);
  expect(addresses(image)).toEqual(gnu.symbols);
  names.forEach((name, i) => {
    expect(contents(image, name), name).toEqual(gnu.bytes[i]);
  });
});

test("a module that refers to the kernel comes out as ld makes it", (ctx) => {
  if (TOOLS) ctx.skip(TOOLS);
  const kernel = linkKernel();
  const externals: Record<string, Addr> = { __fentry__: FENTRY };
  for (const name of ["slot_table", "lookup_count"]) externals[name] = kernel.exported(name)!;
  const module = link([fixture("lookup_fixed.o")], {
    text: MODULE_TEXT,
    name: "fix_lookup",
    externals: (name) => externals[name],
  });
  const gnu = gnuLink(["lookup_fixed.o"], MODULE_TEXT, externals, [".text", "__mcount_loc"]);
  expect(addresses(module)).toEqual(gnu.symbols);
  expect(contents(module, ".text")).toEqual(gnu.bytes[0]);
  expect(contents(module, "__mcount_loc")).toEqual(gnu.bytes[1]);
  expect(module.symbol("lookup_slot").address).not.toBe(kernel.symbol("lookup_slot").address);
});

test("kinds lie on pages of their own, with permissions of their own", () => {
  const image = linkKernel();
  expect(image.segments.map(({ name, write, execute }) => [name, write, execute])).toEqual([
    ["text", false, true],
    ["rodata", false, false],
    ["data", true, false],
    ["bss", true, false],
  ]);
  image.segments.forEach((segment, i) => {
    const before = image.segments[i - 1];
    expect(segment.address % PAGE_SIZE === 0).toBe(true);
    if (before !== undefined) expect(before.address + before.size).toBeLessThanOrEqual(segment.address);
  });
  const bss = image.segments.at(-1)!;
  expect([bss.bytes.length, bss.size > 0]).toEqual([0, true]);
  expect(image.end % PAGE_SIZE === 0 && image.end >= bss.address + bss.size).toBe(true);
});

test("recorded call sites are the calls of __fentry__ at the start of each function", () => {
  const image = linkKernel();
  const functions = image.symbols.filter(({ kind }) => kind === "func");
  expect(image.mcountLocations).toEqual(functions.map(({ address }) => address));
  for (const at of image.mcountLocations) {
    const site = image.bytes(at, 5);
    expect(site[0]).toBe(0xe8);
    expect(at + 5 + new DataView(site.buffer, site.byteOffset, 5).getInt32(1, true)).toBe(FENTRY);
  }
});

describe("symbols", () => {
  const at = (image: Image, name: string): number => image.symbol(name).address - KERNEL_TEXT;
  /** What the 64-bit field at the start of the image's text holds, as an offset from it; null for 0. */
  const field = (image: Image): number | null => {
    const word = new DataView(image.segments[0]!.bytes.buffer).getBigInt64(0, true);
    return word === 0n ? null : Number(word) - KERNEL_TEXT;
  };
  const definer = (name: string, binding: "global" | "weak" | "local") =>
    object(name, [section(".text", 16)], [symbol("target", 4, { binding })]);
  const user = (binding: "global" | "weak" = "global") =>
    referring("user.o", "R_X86_64_64", reference("target", binding));
  const text = KERNEL_TEXT;

  test.each([
    ["a definition in another object", user(), ["global"], 20],
    ["a weak definition", user(), ["weak"], 20],
    ["the first of two weak definitions", user(), ["weak", "weak"], 20],
    ["a global definition before a weak one", user(), ["weak", "global"], 36],
    ["a global definition though a weak one follows", user(), ["global", "weak"], 20],
    ["a weak reference to a definition", user("weak"), ["global"], 20],
    ["a weak reference to nothing", user("weak"), [], null],
    ["a weak reference, past a local of that name", user("weak"), ["local"], null],
  ] as const)("%s", (_, first, bindings, wanted) => {
    const image = link([first, ...bindings.map((binding, i) => definer(`${i}.o`, binding))], { text });
    expect(field(image)).toBe(wanted);
    if (wanted !== null) expect(at(image, "target")).toBe(wanted);
  });

  test("a local definition stays its object's", () => {
    const own = { ...user(), symbols: [symbol("target", 8, { binding: "local" as const })] };
    const image = link([own, definer("a.o", "local"), definer("b.o", "global")], { text });
    expect(field(image)).toBe(8);
    expect(image.named("target").map(({ object }) => object)).toEqual(["user.o", "a.o", "b.o"]);
    expect(image.symbol("target").object).toBe("b.o");
    expect(() => link([own, definer("a.o", "local")], { text }).symbol("target")).toThrow(
      /^2 objects have a local symbol 'target': user\.o, a\.o; /,
    );
  });

  test("an external is asked only for what no object defines", () => {
    const asked: string[] = [];
    const externals = (name: string): Addr => {
      asked.push(name);
      return addr(KERNEL_TEXT + 0x1234);
    };
    expect(field(link([user()], { text, externals }))).toBe(0x1234);
    expect(field(link([user(), definer("a.o", "weak")], { text, externals }))).toBe(20);
    expect(asked).toEqual(["target"]);
  });

  test("two global definitions are refused, naming both objects", () => {
    const twice = [definer("a.o", "global"), definer("b.o", "weak"), definer("c.o", "global")];
    expect(() => link(twice, { text })).toThrow(/^'target' is defined in a\.o and again in c\.o; /);
  });

  test("an undefined symbol is refused, naming place and symbol", () => {
    expect(() => link([user()], { text })).toThrow(/^user\.o \.text\+0x0 refers to 'target', /);
    expect(() => link([user(), definer("a.o", "local")], { text })).toThrow(/refers to 'target'/);
  });

  test("a symbol in a section that is not loaded is undefined", () => {
    const note = object("note.o", [section(".comment", 16, { alloc: false })], [symbol("target", 4)]);
    expect(() => link([user(), note], { text })).toThrow(/refers to 'target'/);
  });
});

describe("fields", () => {
  const far = (distance: number) => ({ text: KERNEL_TEXT, externals: () => addr(KERNEL_TEXT + distance) });
  const linked = (type: Parameters<typeof referring>[1], distance: number, addend = 0): DataView => {
    const image = link([referring("user.o", type, reference("target"), addend)], far(distance));
    return new DataView(image.segments[0]!.bytes.buffer);
  };
  const overflow = /^user\.o \.text\+0x0: 'target' at 0x[0-9a-f]{16} does not fit R_X86_64_/;

  test.each(["R_X86_64_PC32", "R_X86_64_PLT32"] as const)(
    "%s reaches 2 GiB either way, and no further",
    (type) => {
      expect(linked(type, 2 ** 31 - 1).getInt32(0, true)).toBe(2 ** 31 - 1);
      expect(() => linked(type, 2 ** 31)).toThrow(overflow);
      expect(linked(type, -(2 ** 31)).getInt32(0, true)).toBe(-(2 ** 31));
      expect(() => linked(type, -(2 ** 31) - 1)).toThrow(overflow);
      expect(linked(type, 100, -4).getInt32(0, true)).toBe(96);
      expect(linked(type, 2 ** 31, -4).getInt32(0, true)).toBe(2 ** 31 - 4);
    },
  );

  test("R_X86_64_32S holds the upper 2 GiB of the kernel's half, and the lowest of all", () => {
    expect(linked("R_X86_64_32S", 0x100).getInt32(0, true)).toBe(-0x7effff00);
    expect(() => linked("R_X86_64_32S", -0x1000001)).toThrow(overflow);
    expect(linked("R_X86_64_32S", -KERNEL_TEXT + 2 ** 31 - 1).getInt32(0, true)).toBe(2 ** 31 - 1);
  });

  test("R_X86_64_32 holds only what is unsigned", () => {
    expect(() => linked("R_X86_64_32", 0)).toThrow(overflow);
    expect(linked("R_X86_64_32", -KERNEL_TEXT + 2 ** 32 - 1).getUint32(0, true)).toBe(2 ** 32 - 1);
    expect(() => linked("R_X86_64_32", -KERNEL_TEXT + 2 ** 32)).toThrow(overflow);
  });

  test("64-bit fields hold every address", () => {
    const distance = fc.integer({ min: -(2 ** 46), max: 2 ** 46 });
    fc.assert(
      fc.property(distance, fc.maxSafeInteger(), (distance, addend) => {
        const wanted = BigInt(KERNEL_TEXT) + BigInt(distance) + BigInt(addend);
        expect(linked("R_X86_64_64", distance, addend).getBigInt64(0, true)).toBe(BigInt.asIntN(64, wanted));
        const relative = BigInt(distance) + BigInt(addend);
        expect(linked("R_X86_64_PC64", distance, addend).getBigInt64(0, true)).toBe(relative);
      }),
      { numRuns: 200, seed: 1 },
    );
  });

  test("a field is relative to where it lies itself", () => {
    const first = object("pad.o", [section(".text", 24)], []);
    const image = link([first, referring("user.o", "R_X86_64_PC32", reference("target"))], far(0x40));
    expect(new DataView(image.segments[0]!.bytes.buffer).getInt32(24, true)).toBe(0x40 - 24);
  });
});

describe("sections", () => {
  test("of one name stand together, aligned, with int3 between functions", () => {
    const a = object("a.o", [section(".text", 3), section(".text.cold", 2), section(".data", 5)], []);
    const b = object("b.o", [section(".text", 4, { align: 16 }), section(".data", 1, { align: 8 })], []);
    const image = link([a, b], { text: KERNEL_TEXT });
    const found = image.sections.map(({ name, address, size }) => [name, address - KERNEL_TEXT, size]);
    expect(found).toEqual([
      [".text", 0, 20],
      [".text.cold", 20, 2],
      [".data", 4096, 9],
    ]);
    expect([...image.segments[0]!.bytes.subarray(2, 18)]).toEqual([
      0x90,
      ...Array(13).fill(0xcc),
      0x90,
      0x90,
    ]);
  });

  test("that are writable and executable are refused", () => {
    const both = object("wx.o", [section(".text", 4, { write: true })], []);
    expect(() => link([both], { text: KERNEL_TEXT })).toThrow(
      /^wx\.o: section \.text is writable and executable; /,
    );
  });

  test("that are too large are refused before any memory is taken", () => {
    const huge = object("huge.o", [section(".bss", 2 ** 50)], []);
    expect(() => link([huge], { text: KERNEL_TEXT })).toThrow(/^section \.bss of huge\.o ends beyond /);
    const end = addr(0xffffffffffffe000n);
    const page = object("page.o", [section(".bss", 2 * PAGE_SIZE)], []);
    expect(() => link([page], { text: end })).toThrow(/^section \.bss of page\.o ends beyond /);
  });

  test("an address prints as the words that fields hold", () => {
    expect(toWord(KERNEL_TEXT)).toBe(0xffffffff81000000n);
  });
});
