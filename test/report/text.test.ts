// Columns for terminals.

import { expect, test } from "vitest";
import { sideBySide, table } from "../../src/report/text.ts";

test("columns are as wide as their widest cell, two blanks apart, nothing behind the last", () => {
  expect(table([["a", "bbb", "c"], ["aaaa", "b"], [], ["", "", "end"]])).toEqual([
    "a     bbb  c",
    "aaaa  b",
    "",
    "           end",
  ]);
  expect(table([])).toEqual([]);
});

test("lists of different length beside each other", () => {
  expect(sideBySide(["walked", "x"], ["true"])).toEqual(["walked  true", "x"]);
  expect(sideBySide(["w"], ["t", "only here"])).toEqual(["w  t", "   only here"]);
});
