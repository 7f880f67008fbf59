// The guest's sources: the same from GNU as as from ours, and every function is one that tools can find.

import { readdirSync, readFileSync } from "node:fs";
import { beforeAll, describe, expect, test } from "vitest";
import { hex, offset } from "../../src/base/addr.ts";
import { packagePath, readPackageFile } from "../../src/base/file.ts";
import { guestOffsets, KERNEL_OBJECTS, KERNEL_SOURCES } from "../../src/guest.ts";
import { parseElf } from "../../src/image/elf.ts";
import type { Image, Segment } from "../../src/image/image.ts";
import { KERNEL_TEXT, MODULE_TEXT, USER_TEXT } from "../../src/image/layout.ts";
import { link } from "../../src/image/link.ts";
import { readObject } from "../../src/lab.ts";
import { decode, MAX_LENGTH, printInstruction } from "../../src/x86/decode.ts";
import type { ObjectFile } from "../../src/x86/object.ts";
import { assembleGnu, NO_AS } from "./gnu.ts";

let objects: ObjectFile[];
/** Of the half in C, the same for both assemblers: the sources need its symbols. */
let compiled: ObjectFile[];
let image: Image;

beforeAll(async () => {
  objects = await Promise.all(
    KERNEL_SOURCES.map((name) => readObject(`asm/${name}`, readPackageFile(`asm/${name}`))),
  );
  compiled = KERNEL_OBJECTS.map((name) => parseElf(`kernel/${name}`, readPackageFile(`kernel/${name}`)));
  image = link([...objects, ...compiled], { text: KERNEL_TEXT });
});

const sourceOf = (name: string) => readFileSync(packagePath(`asm/${name}`), "utf8");
const declared = (kind: "traced" | "untraced") =>
  KERNEL_SOURCES.flatMap((name) =>
    [...sourceOf(name).matchAll(new RegExp(`^${kind} (\\w+)$`, "gm"))].map(([, symbol]) => symbol!),
  );

test("asm/offsets.inc is what the structures' descriptions give", () => {
  expect(sourceOf("offsets.inc")).toBe(guestOffsets());
});

test("every source is part of the kernel", () => {
  const sources = readdirSync(packagePath("asm")).filter((name) => name.endsWith(".S"));
  expect([...KERNEL_SOURCES].sort()).toEqual(sources.sort());
});

describe("GNU as makes the same of them", () => {
  /** A function's instructions; those of what is between functions are the linker's and left out. */
  const instructions = (of: Image, name: string) => {
    const { address, size } = of.symbol(name);
    const lines: string[] = [];
    for (let at = address; at < address + size; ) {
      const bytes = of.bytes(at, MAX_LENGTH);
      lines.push(`${hex(at)} ${printInstruction(bytes, at)}`);
      const decoded = decode(bytes, at);
      if (decoded.kind !== "instruction") return expect.fail(`${name} has no instruction at ${hex(at)}`);
      at = decoded.instruction.next;
    }
    return lines;
  };
  const shape = ({ name, address, size, write, execute }: Segment) => ({
    name,
    address,
    size,
    write,
    execute,
  });
  let theirs: Image;

  beforeAll(() => {
    if (NO_AS === undefined)
      theirs = link([...KERNEL_SOURCES.map(assembleGnu), ...compiled], { text: KERNEL_TEXT });
  });

  test("the same symbols at the same places", (ctx) => {
    if (NO_AS !== undefined) ctx.skip(NO_AS);
    expect(image.symbols).toEqual(theirs.symbols);
    expect(image.sections).toEqual(theirs.sections);
    expect(image.mcountLocations).toEqual(theirs.mcountLocations);
  });

  test("the same instructions, their targets included", (ctx) => {
    if (NO_AS !== undefined) ctx.skip(NO_AS);
    for (const { name, kind } of theirs.symbols)
      if (kind === "func") expect(instructions(image, name), name).toEqual(instructions(theirs, name));
  });

  test("the same data", (ctx) => {
    if (NO_AS !== undefined) ctx.skip(NO_AS);
    expect(image.segments.map(shape)).toEqual(theirs.segments.map(shape));
    for (const segment of theirs.segments)
      if (!segment.execute)
        expect(image.segments.find(({ name }) => name === segment.name)!.bytes).toEqual(segment.bytes);
  });
});

test.for([
  ["the program of user tasks", "user/patients.S", USER_TEXT],
  ["what is linked in to be explored", "explore/poked.S", KERNEL_TEXT],
] as const)("and of %s", async ([, path, text], ctx) => {
  if (NO_AS !== undefined) ctx.skip(NO_AS);
  const externals = (name: string) => image.find(name)?.address;
  const linked = (object: ObjectFile) => link([object], { text, externals });
  const own = linked(await readObject(`asm/${path}`, readPackageFile(`asm/${path}`)));
  const theirs = linked(assembleGnu(path));
  expect(own.symbols).toEqual(theirs.symbols);
  for (const { name, address, size, bytes } of theirs.segments) {
    if (size === 0) continue; // theirs has an empty .data
    const segment = own.segments.find((candidate) => candidate.name === name)!;
    expect([segment.address, segment.size]).toEqual([address, size]);
    if (name !== "text") expect(segment.bytes).toEqual(bytes);
    else expect(instructionsIn(segment)).toEqual(instructionsIn({ address, bytes }));
  }
});

describe("and of what trampolines are checked with, and those to learn from", () => {
  const FILES = ["check", "trampolines"].flatMap((folder) =>
    readdirSync(packagePath(`asm/${folder}`)).map((name) => `${folder}/${name}`),
  );

  test.each(FILES)("%s", async (path) => {
    if (NO_AS !== undefined) return;
    const own = await readObject(`asm/${path}`, readPackageFile(`asm/${path}`));
    const theirs = assembleGnu(path);
    const externals = () => KERNEL_TEXT;
    const [ours, gnu] = [own, theirs].map((object) =>
      link([object], { text: MODULE_TEXT, name: path, externals }),
    );
    expect(ours!.symbols).toEqual(gnu!.symbols);
    const text = (of: Image) => instructionsIn(of.segments.find(({ name }) => name === "text")!);
    expect(text(ours!)).toEqual(text(gnu!));
  });
});

/** All of them, from the first; encodings may differ, lengths may not. */
function instructionsIn({ address, bytes }: Pick<Segment, "address" | "bytes">): string[] {
  const lines: string[] = [];
  for (let from = 0; from < bytes.length; ) {
    const at = offset(address, from);
    const decoded = decode(bytes.subarray(from, from + MAX_LENGTH), at);
    lines.push(`${hex(at)} ${printInstruction(bytes.subarray(from, from + MAX_LENGTH), at)}`);
    from += decoded.kind === "instruction" ? decoded.instruction.length : 1;
  }
  return lines.filter((line) => !/ nop|xchg %ax, ?%ax|int3/.test(line)); // padding
}

describe("every function", () => {
  test("that is `traced` has a call site recorded at its start, and no other", () => {
    const sites = image.mcountLocations
      .map((ip) => image.symbolAt(ip)!)
      .filter(({ symbol }) => symbol.object.startsWith("asm/"));
    expect(sites.map(({ symbol }) => symbol.name).sort()).toEqual(declared("traced").sort());
    expect(sites.map((site) => site.offset)).toEqual(sites.map(() => 0));
  });

  test("has type and size, and starts at a multiple of 16", () => {
    for (const name of [...declared("traced"), ...declared("untraced")]) {
      const defined = objects.flatMap(({ symbols }) =>
        symbols.filter((symbol) => symbol.name === name && symbol.section !== null),
      );
      expect(defined, name).toEqual([
        expect.objectContaining({ kind: "func", binding: "global", size: expect.toSatisfy((n) => n > 0) }),
      ]);
      expect(defined[0]!.value % 16, name).toBe(0);
    }
  });

  test("is declared: code between functions is only padding", () => {
    for (const { sections, symbols, name } of objects) {
      const text = sections.findIndex((section) => section.name === ".text");
      const own = symbols.filter(({ kind, section }) => kind === "func" && section === text);
      const { bytes } = sections[text]!;
      for (let at = 0; at < bytes.length; at++) {
        const inside = own.some(({ value, size }) => at >= value && at < value + size);
        if (inside) continue;
        const next = own.map(({ value }) => value).filter((value) => value > at);
        expect(next.length === 0 ? bytes.length - at : Math.min(...next) - at, `${name}+${at}`).toBeLessThan(
          16,
        );
      }
    }
  });
});
