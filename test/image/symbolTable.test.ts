// Symbols by name and by address, against a search that tries every symbol.

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { addr } from "../../src/base/addr.ts";
import { Refusal } from "../../src/base/refuse.ts";
import { closestName } from "../../src/image/closest.ts";
import type { ImageSymbol } from "../../src/image/symbolTable.ts";
import { SymbolTable } from "../../src/image/symbolTable.ts";

const at = (name: string, address: number, more: Partial<ImageSymbol> = {}): ImageSymbol => {
  return { name, address: addr(address), size: 0, kind: "func", binding: "global", object: "a.o", ...more };
};
const label = (name: string, address: number) => at(name, address, { kind: "none", binding: "local" });
const table = (...symbols: ImageSymbol[]) =>
  new SymbolTable(symbols, [{ address: addr(0x1000), size: 0x100 }]);
const found = (symbols: SymbolTable, address: number): string | undefined => {
  const place = symbols.at(addr(address));
  return place && `${place.symbol.name}+${place.offset}/${place.symbol.size}`;
};

describe("sizes", () => {
  test("that the object gives are respected: nothing is in the gap behind", () => {
    const symbols = table(at("first", 0x1000, { size: 16 }), at("second", 0x1020, { size: 4 }));
    const places = [0xfff, 0x1000, 0x100f, 0x1010, 0x101f, 0x1020, 0x1023, 0x1024];
    expect(places.map((place) => found(symbols, place))).toEqual([
      undefined,
      "first+0/16",
      "first+15/16",
      undefined,
      undefined,
      "second+0/4",
      "second+3/4",
      undefined,
    ]);
  });

  test("that are missing reach to the next symbol or the end of the section", () => {
    const symbols = table(label("entry", 0x1000), at("routine", 0x1010), label("table", 0x10f0));
    expect(symbols.symbols.map(({ name, size }) => [name, size])).toEqual([
      ["entry", 16],
      ["routine", 0xe0],
      ["table", 16],
    ]);
    expect(found(symbols, 0x10ff)).toBe("table+15/16");
    expect(found(symbols, 0x1100)).toBeUndefined();
  });

  test("of labels inside a sized function are none: the function has its bytes", () => {
    const symbols = table(
      at("handler", 0x1000, { size: 32 }),
      label("resume", 0x1008),
      label("after", 0x1020),
    );
    expect(found(symbols, 0x1008)).toBe("handler+8/32");
    expect(found(symbols, 0x1010)).toBe("handler+16/32");
    expect(found(symbols, 0x1020)).toBe("after+0/224");
    expect(symbols.find("resume")).toMatchObject({ address: 0x1008, size: 0 });
  });

  test("of labels at the very end of a section are none", () => {
    const symbols = table(at("last", 0x10f0), label("end", 0x1100));
    expect(found(symbols, 0x10ff)).toBe("last+15/16");
    expect(symbols.find("end")!.size).toBe(0);
  });

  test("of two names at one address are the same, and the function's name wins", () => {
    const symbols = table(
      label("alias", 0x1000),
      at("weak", 0x1000, { binding: "weak" }),
      at("name", 0x1000),
    );
    expect(symbols.symbols.map(({ name, size }) => [name, size])).toEqual([
      ["name", 256],
      ["weak", 256],
      ["alias", 256],
    ]);
    expect(found(symbols, 0x1001)).toBe("name+1/256");
  });
});

test("the symbol at an address is the innermost of those that hold it", () => {
  const sized = fc.record({ start: fc.nat(200), size: fc.integer({ min: 1, max: 60 }) });
  fc.assert(
    fc.property(fc.array(sized, { maxLength: 20 }), fc.nat(300), (ranges, place) => {
      const symbols = table(...ranges.map(({ start, size }, i) => at(`f${i}`, 0x1000 + start, { size })));
      const holding = ranges.filter(({ start, size }) => start <= place && place < start + size);
      const wanted = holding.length === 0 ? undefined : Math.max(...holding.map(({ start }) => start));
      const got = symbols.at(addr(0x1000 + place));
      expect(got && got.symbol.address - 0x1000).toBe(wanted);
      if (got !== undefined) {
        expect(got.symbol.address + got.offset).toBe(0x1000 + place);
        expect(got.offset).toBeLessThan(got.symbol.size);
      }
    }),
    { numRuns: 500, seed: 3 },
  );
});

describe("names", () => {
  const local = (name: string, address: number, object: string) =>
    at(name, address, { binding: "local", object });
  const symbols = table(
    at("vfs_read", 0x1000),
    at("vfs_write", 0x1010),
    local("helper", 0x1020, "a.o"),
    local("helper", 0x1030, "b.o"),
    local("once", 0x1040, "b.o"),
    local("vfs_read", 0x1050, "b.o"),
  );

  test("find a global before locals, and a local that is the only one", () => {
    expect(symbols.get("vfs_read", "vmlinux").address).toBe(0x1000);
    expect(symbols.get("once", "vmlinux").object).toBe("b.o");
    expect(symbols.find("nothing")).toBeUndefined();
    expect(symbols.named("helper").map(({ object }) => object)).toEqual(["a.o", "b.o"]);
  });

  test("that are unknown are refused with the nearest known one", () => {
    expect(() => symbols.get("vfs_raed", "vmlinux")).toThrow(
      "vmlinux has no symbol 'vfs_raed'; did you mean 'vfs_read'?",
    );
    expect(() => symbols.get("zzz", "vmlinux")).toThrow(/^vmlinux has no symbol 'zzz'; list its symbols/);
    expect(() => symbols.get("zzz", "vmlinux")).toThrow(Refusal);
  });

  test("that several objects use locally are refused, naming them", () => {
    for (const ask of [() => symbols.find("helper"), () => symbols.get("helper", "vmlinux")]) {
      expect(ask).toThrow(/^2 objects have a local symbol 'helper': a\.o, b\.o; /);
    }
  });
});

test("the closest name is few edits away, and the first of equals", () => {
  const names = ["sys_read", "sys_write", "vfs_read", "do_exit"];
  expect(closestName("sys_raed", names)).toBe("sys_read");
  expect(closestName("s_read", names)).toBe("sys_read");
  expect(closestName("xfs_read", names)).toBe("vfs_read");
  expect(closestName("schedule", names)).toBeUndefined();
  expect(closestName("ab", ["ax", "ay"])).toBe("ax");
  expect(closestName("", [])).toBeUndefined();
});
