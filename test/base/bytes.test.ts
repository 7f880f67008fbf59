import fc from "fast-check";
import { expect, test } from "vitest";
import { hexBytes, parseHexBytes, sameBytes } from "../../src/base/bytes.ts";

test("bytes are written as two digits each, and read back", () => {
  expect(hexBytes(Uint8Array.of(0x0f, 0x1f, 0x44, 0, 0))).toBe("0f 1f 44 00 00");
  expect(hexBytes(new Uint8Array())).toBe("");
  fc.assert(
    fc.property(fc.uint8Array(), (bytes) => {
      expect(parseHexBytes(hexBytes(bytes))).toEqual(bytes);
    }),
    { seed: 1 },
  );
});

test("blanks and case do not matter", () => {
  expect(parseHexBytes(" 0F1f\n44 ")).toEqual(Uint8Array.of(0x0f, 0x1f, 0x44));
  expect(parseHexBytes("")).toEqual(new Uint8Array());
});

test.each(["0", "0g", "0x10", "1 2 3", "-1"])("'%s' is no bytes", (text) => {
  expect(() => parseHexBytes(text)).toThrow(SyntaxError);
});

test("same bytes are the same in length and content", () => {
  const bytes = Uint8Array.of(1, 2, 3);
  expect(sameBytes(bytes, Uint8Array.of(1, 2, 3))).toBe(true);
  expect(sameBytes(bytes, Uint8Array.of(1, 2))).toBe(false);
  expect(sameBytes(Uint8Array.of(1, 2), bytes)).toBe(false);
  expect(sameBytes(bytes, Uint8Array.of(1, 2, 4))).toBe(false);
});
