// LEB128 against a decoder written from the specification's definition (core 5.2.2), and as constants, run.

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { Writer } from "../../src/wasm/writer.ts";
import { compile } from "./compiled.ts";

const RUNS = { seed: 1, numRuns: 500 };
const S32 = [0, 1, -1, 63, 64, -64, -65, 127, 128, 8191, 8192, -8192, -8193, 2 ** 31 - 1, -(2 ** 31)];
const S64 = [...S32.map(BigInt), 2n ** 53n, -(2n ** 53n), 2n ** 62n, 2n ** 63n - 1n, -(2n ** 63n)];

function written(write: (writer: Writer) => void): number[] {
  const writer = new Writer(1);
  write(writer);
  return [...writer.view()];
}

/** The number that `bytes` say, all of them used: u(n) = byte for byte < 2^7, else 2^7 * u(rest) + (byte - 2^7). */
function decode(bytes: readonly number[], signed: boolean): bigint {
  const [byte, ...rest] = bytes;
  if (byte === undefined) throw new Error("ends within a number");
  if (byte >= 0x80) return 128n * decode(rest, signed) + BigInt(byte - 128);
  if (rest.length > 0) throw new Error("goes on after its end");
  return BigInt(signed && byte >= 64 ? byte - 128 : byte);
}

/** Whether a byte fewer would not do. */
function shortest(value: bigint, length: number, signed: boolean): boolean {
  const bits = BigInt(7 * (length - 1));
  if (bits === 0n) return true;
  return signed ? value >= 1n << (bits - 1n) || value < -(1n << (bits - 1n)) : value >= 1n << bits;
}

describe("LEB128", () => {
  test("u32", () => {
    const check = (value: number) => {
      const bytes = written((w) => w.u32(value));
      expect(decode(bytes, false)).toBe(BigInt(value));
      expect(shortest(BigInt(value), bytes.length, false)).toBe(true);
    };
    for (const value of [0, 1, 127, 128, 16383, 16384, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1]) check(value);
    fc.assert(fc.property(fc.nat({ max: 2 ** 32 - 1 }), check), RUNS);
  });

  test("s32", () => {
    const check = (value: number) => {
      const bytes = written((w) => w.s32(value));
      expect(decode(bytes, true)).toBe(BigInt(value));
      expect(shortest(BigInt(value), bytes.length, true)).toBe(true);
    };
    S32.forEach(check);
    fc.assert(fc.property(fc.integer(), check), RUNS);
    expect(written((w) => w.s32(2 ** 32 - 1))).toEqual(written((w) => w.s32(-1)));
  });

  test("s64 of bigints of either signedness", () => {
    const check = (value: bigint) => {
      const bytes = written((w) => w.s64(value));
      expect(decode(bytes, true)).toBe(value);
      expect(shortest(value, bytes.length, true)).toBe(true);
      expect(written((w) => w.s64(BigInt.asUintN(64, value)))).toEqual(bytes);
    };
    S64.forEach(check);
    fc.assert(fc.property(fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }), check), RUNS);
  });

  test("s64 of numbers is that of the same bigint", () => {
    const check = (value: number) => {
      expect(written((w) => w.s64(value))).toEqual(written((w) => w.s64(BigInt(value))));
    };
    for (const value of [...S32, -0, Number.MAX_SAFE_INTEGER, Number.MIN_SAFE_INTEGER, 2 ** 32, -(2 ** 32)])
      check(value);
    fc.assert(fc.property(fc.maxSafeInteger(), check), RUNS);
  });

  test.each([2 ** 53, -(2 ** 60), 0.5, Number.NaN, Number.POSITIVE_INFINITY])("s64 refuses %d", (value) => {
    expect(() => written((w) => w.s64(value))).toThrow(RangeError);
  });

  test("constants are what the engine reads back", () => {
    const constants = compile(
      [],
      S32.map(() => "i32" as const),
      (f) => {
        for (const value of S32) f.i32(value);
      },
    );
    expect(constants()).toEqual(S32);
    const longs = compile(
      [],
      S64.map(() => "i64" as const),
      (f) => {
        for (const value of S64) f.i64(value);
      },
    );
    expect(longs()).toEqual(S64);
    const doubles = [0, -0, 0.1, -1e300, Number.MIN_VALUE, Number.NEGATIVE_INFINITY];
    expect(
      compile(
        [],
        doubles.map(() => "f64" as const),
        (f) => {
          for (const value of doubles) f.f64(value);
        },
      )(),
    ).toEqual(doubles);
  });
});

test("what is written survives growth, in order", () => {
  const content = Uint8Array.from({ length: 1000 }, (_, n) => n & 0xff);
  const inner = new Writer(3);
  inner.bytes(content);
  inner.byte(7);
  const bytes = written((w) => {
    w.byte(1);
    w.sized(inner);
    w.name("é");
    w.bytes(new Uint8Array());
  });
  expect(bytes).toEqual([1, 0xe9, 0x07, ...content, 7, 2, 0xc3, 0xa9]);
});
