// Which entry holds at an address: in one table, and over all that is loaded or was made at run time.

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { type Addr, addr } from "../../src/base/addr.ts";
import { CodeMap, type CodeRange } from "../../src/image/codeMap.ts";
import type { Image } from "../../src/image/image.ts";
import { KERNEL_TEXT, MODULE_TEXT } from "../../src/image/layout.ts";
import { link } from "../../src/image/link.ts";
import { frameless, type OrcEntry, type OrcRule } from "../../src/unwind/orc/entry.ts";
import { OrcTable } from "../../src/unwind/orc/table.ts";
import { OrcTables } from "../../src/unwind/orc/tables.ts";
import { loadAssembler } from "../../src/x86/assemble.ts";

const at = (bytes: number, base: Addr = KERNEL_TEXT) => (base + bytes) as Addr;

function rule(offset: number): OrcRule {
  const bp = { register: "undefined", offset: 0 } as const;
  return { type: "CALL", cfa: { register: "sp", offset }, bp, signal: false };
}

describe("a table", () => {
  test("answers with the last entry at an address or before it, as a search from the end does", () => {
    const places = fc.uniqueArray(fc.integer({ min: 0, max: 60 }), { maxLength: 20 });
    fc.assert(
      fc.property(places, (places) => {
        const entries = places
          .toSorted((a, b) => a - b)
          .map((place) => ({ address: at(place), ...rule(place) }));
        const table = new OrcTable("t", entries);
        for (let place = -1; place < 62; place++) {
          const expected = entries.findLast(({ address }) => address <= at(place));
          expect(table.find(at(place))).toBe(expected);
        }
      }),
    );
  });

  test("has nothing before its first entry, and the last goes on for ever", () => {
    const table = new OrcTable("t", [{ address: at(4), ...rule(8) }]);
    expect(table.find(at(3))).toBeUndefined();
    expect(table.find(at(1e6))).toBe(table.entries[0]);
    expect(new OrcTable("empty", []).find(at(0))).toBeUndefined();
  });

  test("refuses entries out of order, and two rules for an address", () => {
    const entry = (place: number, offset: number): OrcEntry => ({ address: at(place), ...rule(offset) });
    expect(() => new OrcTable("t", [entry(4, 8), entry(0, 8)])).toThrow(
      /^t: ORC entry 1 is for 0xffffffff81000000, and the one before it for 0xffffffff81000004; /,
    );
    expect(() => new OrcTable("t", [entry(0, 8), entry(0, 16)])).toThrow(
      /two ORC rules for 0xffffffff81000000/,
    );
    // The same rule twice, or the end of what comes before.
    const end = { address: at(0), ...frameless("UNDEFINED") };
    expect(new OrcTable("t", [end, entry(0, 8), entry(0, 8)]).find(at(0))?.cfa.offset).toBe(8);
  });
});

describe("over everything", () => {
  const PUSHES = "f: .type f, @function\n push %rbx\n pop %rbx\n ret\n .size f, . - f";

  async function image(name: string, text: Addr, source = PUSHES): Promise<Image> {
    const assembler = await loadAssembler();
    return link([assembler.assemble(`${name}.S`, `.text\n${source}\n`)], { text, name });
  }

  const depthsAt = (tables: OrcTables, from: Addr) =>
    [-1, 0, 1, 2, 3].map((bytes) => tables.find((from + bytes) as Addr)?.cfa.offset);

  test("each image has its own, and loses it when it goes", async () => {
    const code = new CodeMap();
    const tables = new OrcTables(code);
    expect(tables.find(KERNEL_TEXT)).toBeUndefined();
    const [kernel, first] = [await image("vmlinux", KERNEL_TEXT), await image("first", MODULE_TEXT)];
    code.addImage(kernel);
    code.addImage(first);
    // Sizes of push, pop and ret are 1, 1, 1; then the text ends.
    expect(depthsAt(tables, KERNEL_TEXT)).toEqual([undefined, 8, 16, 8, undefined]);
    expect(depthsAt(tables, MODULE_TEXT)).toEqual([undefined, 8, 16, 8, undefined]);
    code.removeImage(first);
    expect(depthsAt(tables, MODULE_TEXT)).toEqual(Array(5).fill(undefined));
    // Another module at the same place: nothing of the stale one is left.
    const plain = ".globl g\n.type g, @function\ng: nop\n nop\n ret\n .size g, . - g";
    code.addImage(await image("second", MODULE_TEXT, plain));
    expect(depthsAt(tables, MODULE_TEXT)).toEqual([undefined, 8, 8, 8, undefined]);
    expect(depthsAt(tables, KERNEL_TEXT)).toEqual([undefined, 8, 16, 8, undefined]);
  });

  test("a copy of a template has the template's entries, at its own addresses", async () => {
    const code = new CodeMap();
    const tables = new OrcTables(code);
    const kernel = await image("vmlinux", KERNEL_TEXT, `nop\n nop\n${PUSHES}`);
    code.addImage(kernel);
    const template = kernel.symbol("f").address;
    const place = addr(MODULE_TEXT + 0x123);
    const range: CodeRange = { name: "copy", address: place, size: 3, kind: "trampoline", template };
    expect(tables.find(place)).toBeUndefined();
    code.addRange(range);
    expect(depthsAt(tables, place)).toEqual([undefined, 8, 16, 8, undefined]);
    expect([0, 1, 2].map((n) => tables.find(at(n, place))?.address)).toEqual(
      [0, 1, 2].map((n) => at(n, place)),
    );
    code.removeRange(range);
    expect(tables.find(place)).toBeUndefined();
  });

  test("code made without a template has entries once they are generated", async () => {
    const code = new CodeMap();
    const tables = new OrcTables(code);
    const made: CodeRange = { name: "made", address: MODULE_TEXT, size: 3, kind: "thunk" };
    code.addRange(made);
    expect(tables.find(MODULE_TEXT)).toBeUndefined();
    const { findings } = tables.addMade(made, Uint8Array.of(0x53, 0x5b, 0xc3)); // push %rbx; pop %rbx; ret
    expect(findings).toEqual([]);
    expect(depthsAt(tables, MODULE_TEXT)).toEqual([undefined, 8, 16, 8, undefined]);
    // What it finds wrong is said: a return with a word too many on the stack.
    const again = tables.addMade(made, Uint8Array.of(0x53, 0x53, 0xc3));
    expect(again.findings.map(({ kind }) => kind)).toEqual(["return-unbalanced"]);
  });

  test("a table can be put in place of an image's own", async () => {
    const code = new CodeMap();
    const tables = new OrcTables(code);
    const kernel = await image("vmlinux", KERNEL_TEXT);
    code.addImage(kernel);
    tables.replace(kernel, new OrcTable("wrong", [{ address: KERNEL_TEXT, ...rule(800) }]));
    expect(depthsAt(tables, KERNEL_TEXT)).toEqual([undefined, 800, 800, 800, undefined]);
    expect(tables.generate(kernel).entries.map(({ cfa }) => cfa.offset)).toEqual([8, 16, 8, 0]);
  });
});
