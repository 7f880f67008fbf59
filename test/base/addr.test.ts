import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { addr, hex, isCanonical, offset, PAGE_SIZE, pageOf, toWord } from "../../src/base/addr.ts";

const RUNS = { seed: 1, numRuns: 300 };
const canonical = fc.integer({ min: -(2 ** 47), max: 2 ** 47 - 1 });
const LOWER_END = 0x0000_7fff_ffff_ffffn;
const UPPER_START = 0xffff_8000_0000_0000n;

describe("canonical addresses", () => {
  test.each([0n, 1n, LOWER_END, UPPER_START, 0xffff_ffff_ffff_ffffn, -1n, -(2n ** 47n)])(
    "0x%s is one",
    (value) => {
      expect(isCanonical(value)).toBe(true);
      expect(toWord(addr(value))).toBe(BigInt.asUintN(64, value));
    },
  );

  test.each([LOWER_END + 1n, UPPER_START - 1n, 2n ** 63n, -(2n ** 47n) - 1n])("%s is none", (value) => {
    expect(isCanonical(value)).toBe(false);
    expect(() => addr(value)).toThrow(RangeError);
  });

  test.each([2 ** 47, -(2 ** 47) - 1, 0.5, Number.NaN, Number.POSITIVE_INFINITY])(
    "nor is the number %d",
    (value) => {
      expect(isCanonical(value)).toBe(false);
      expect(() => addr(value)).toThrow(RangeError);
    },
  );

  test("the message names it as it would be printed", () => {
    expect(() => addr(LOWER_END + 1n)).toThrow("0x0000800000000000 is not a canonical address");
  });

  test("bigints of either signedness and numbers are the same address", () => {
    fc.assert(
      fc.property(canonical, (value) => {
        expect(addr(BigInt(value))).toBe(addr(value));
        expect(addr(BigInt.asUintN(64, BigInt(value)))).toBe(addr(value));
      }),
      RUNS,
    );
  });
});

test("kernel addresses are negative and print as sixteen digits", () => {
  const text = addr(0xffff_ffff_8100_0000n);
  expect(text).toBe(-0x7f00_0000);
  expect(hex(text)).toBe("0xffffffff81000000");
  expect(hex(addr(0x1234))).toBe("0x0000000000001234");
  fc.assert(
    fc.property(canonical, (value) => {
      expect(addr(BigInt(hex(addr(value))))).toBe(value);
    }),
    RUNS,
  );
});

test("the page of an address starts at or below it, in either half", () => {
  fc.assert(
    fc.property(canonical, (value) => {
      const page = pageOf(addr(value));
      expect(toWord(page)).toBe(toWord(addr(value)) & ~0xfffn);
      expect(value - page).toBeLessThan(PAGE_SIZE);
    }),
    RUNS,
  );
});

test("an offset stays canonical or is an error", () => {
  expect(offset(addr(LOWER_END), -0xfff)).toBe(2 ** 47 - 4096);
  expect(offset(addr(-1), 1)).toBe(0);
  expect(() => offset(addr(LOWER_END), 1)).toThrow(RangeError);
  expect(() => offset(addr(UPPER_START), -1)).toThrow(RangeError);
});
