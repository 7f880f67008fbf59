// The code map: what the unwinder is told about an address.

import { describe, expect, test } from "vitest";
import type { Addr } from "../../src/base/addr.ts";
import { addr, offset } from "../../src/base/addr.ts";
import type { CodeRange } from "../../src/image/codeMap.ts";
import { CodeMap } from "../../src/image/codeMap.ts";
import { KERNEL_TEXT, MODULE_TEXT } from "../../src/image/layout.ts";
import { link } from "../../src/image/link.ts";
import { fixture, KERNEL_OBJECTS } from "./fixtures.ts";

const FENTRY = addr(0xffffffff81800000n);
const kernel = link(KERNEL_OBJECTS.map(fixture), { text: KERNEL_TEXT, externals: () => FENTRY });
const patch = link([fixture("lookup_fixed.o")], {
  text: MODULE_TEXT,
  name: "fix_lookup",
  externals: (name) => kernel.exported(name) ?? FENTRY,
});
const trampoline: CodeRange = {
  name: "ftrace_trampoline",
  address: addr(0xffffffffa0100000n),
  size: 0x80,
  kind: "trampoline",
  template: kernel.symbol("vfs_read").address,
};

function filled(): CodeMap {
  const map = new CodeMap();
  map.addImage(kernel);
  map.addImage(patch);
  map.addRange(trampoline);
  return map;
}

test("addresses print as the kernel prints them", () => {
  const map = filled();
  const vfsRead = kernel.symbol("vfs_read");
  const size = vfsRead.size.toString(16);
  expect(map.describe(vfsRead.address)).toBe(`vfs_read+0x0/0x${size}`);
  expect(map.describe(offset(vfsRead.address, 0x1c))).toBe(`vfs_read+0x1c/0x${size}`);
  expect(map.describe(patch.symbol("lookup_slot").address)).toMatch(
    /^lookup_slot\+0x0\/0x2b \[fix_lookup\]$/,
  );
  expect(map.describe(offset(trampoline.address, 5))).toBe("ftrace_trampoline+0x5/0x80");
  expect(map.describe(offset(trampoline.address, 0x80))).toBe("0xffffffffa0100080");
});

test("text is what can be executed: images' text and code made at run time", () => {
  const map = filled();
  const text = kernel.segments[0]!;
  const cases: [Addr, boolean][] = [
    [text.address, true],
    [offset(text.address, text.size - 1), true],
    [offset(text.address, text.size), false],
    [offset(text.address, -1), false],
    [kernel.symbol("fd_table").address, false],
    [MODULE_TEXT, true],
    [trampoline.address, true],
    [offset(trampoline.address, 0x7f), true],
    [offset(trampoline.address, 0x80), false],
  ];
  for (const [address, wanted] of cases) expect(map.isText(address), map.describe(address)).toBe(wanted);
});

test("every address in every function is found in it", () => {
  const map = filled();
  for (const image of [kernel, patch]) {
    for (const symbol of image.symbols.filter(({ kind }) => kind === "func")) {
      for (let i = 0; i < symbol.size; i++) {
        expect(map.symbolAt(offset(symbol.address, i))).toEqual({ symbol, offset: i });
      }
      expect(image.functionBytes(symbol).length).toBe(symbol.size);
    }
  }
});

describe("what is removed is forgotten", () => {
  test("a range", () => {
    const map = filled();
    expect(map.rangeAt(offset(trampoline.address, 3))).toEqual({ range: trampoline, offset: 3 });
    map.removeRange(trampoline);
    expect(map.rangeAt(trampoline.address)).toBeUndefined();
    expect(map.isText(trampoline.address)).toBe(false);
    map.addRange(trampoline);
    expect(map.isText(trampoline.address)).toBe(true);
  });

  test("an image", () => {
    const map = filled();
    expect(map.imageAt(MODULE_TEXT)).toBe(patch);
    map.removeImage(patch);
    expect(map.imageAt(MODULE_TEXT)).toBeUndefined();
    expect(map.describe(MODULE_TEXT)).toBe("0xffffffffa0000000");
    expect(map.images).toEqual([kernel]);
  });

  test("only once: a second time is our own mistake", () => {
    const map = filled();
    map.removeRange(trampoline);
    expect(() => map.removeRange(trampoline)).toThrow(/^fentrylab bug: /);
    map.removeImage(patch);
    expect(() => map.removeImage(patch)).toThrow(/^fentrylab bug: /);
  });
});

test("ranges stay sorted, however they are added", () => {
  const map = new CodeMap();
  const ranges = [5, 1, 9, 3, 7].map((i): CodeRange => {
    return { name: `t${i}`, address: addr(0x1000 * i), size: 0x1000, kind: "thunk" };
  });
  for (const range of ranges) map.addRange(range);
  expect(map.ranges.map(({ name }) => name)).toEqual(["t1", "t3", "t5", "t7", "t9"]);
  expect([0x0fff, 0x1000, 0x1fff, 0x2000, 0x9000].map((at) => map.rangeAt(addr(at))?.range.name)).toEqual([
    undefined,
    "t1",
    "t1",
    undefined,
    "t9",
  ]);
});

test("code on top of other code is refused", () => {
  const map = filled();
  const over = (address: Addr, size: number) => () =>
    map.addRange({ name: "new", address, size, kind: "thunk" });
  expect(over(offset(trampoline.address, -1), 2)).toThrow(
    /^code of new from .* would overlap ftrace_trampoline at /,
  );
  expect(over(offset(trampoline.address, 0x7f), 1)).toThrow(/overlap ftrace_trampoline/);
  expect(over(KERNEL_TEXT, 1)).toThrow(/would overlap vmlinux at 0xffffffff81000000; /);
  expect(() => map.addImage(patch)).toThrow(/^code of fix_lookup /);
  over(offset(trampoline.address, 0x80), 16)();
  expect(map.ranges.length).toBe(2);
});

test("names are looked for in the kernel first, then in modules", () => {
  const map = filled();
  expect(map.find("lookup_slot")).toBe(kernel.symbol("lookup_slot").address);
  expect(map.find("lookup_refused")).toBe(patch.symbol("lookup_refused").address);
  expect(map.find("nothing")).toBeUndefined();
});
