// The tour's text shows the facts it is given, and no others.

import { expect, test } from "vitest";
import { type CallFact, renderTour, type Tour } from "../../src/report/tour.ts";

const CALL: CallFact = {
  function: "fn",
  via: "caller",
  task: 3,
  patchState: "KLP_PATCHED",
  site: "in transition",
  version: "new",
  result: "0x2a",
  instructions: 5,
};

const TOUR: Tour = {
  sites: [
    {
      symbol: "fn",
      from: "fn.S",
      address: "0x10",
      bytesBefore: "90",
      bytesAfter: "cc",
      listingBefore: ["0x10: 90  nop"],
      listingAfter: ["0x10: cc  int3"],
    },
  ],
  calls: [CALL],
  stacks: [
    { where: "here", address: "0x10", walked: ["a+1"], true: ["b+2", "a+1"], equal: false, remark: "Why." },
  ],
  cost: {
    function: "fn",
    instructionsUnpatched: 3,
    instructionsRedirected: 70,
    parts: [{ where: "fn", instructions: 70 }],
  },
  machine: { instructions: 999, vcpus: 1, tasks: 4, sites: 6 },
};

test("every fact is there", () => {
  const text = renderTour(TOUR);
  for (const part of [
    "fn at 0x10 (fn.S)",
    "off  0x10: 90  nop",
    "on   0x10: cc  int3",
    "here: NOT equal. Why.\n    walked  true\n    a+1     b+2\n            a+1\n",
    "fn() takes 3 instructions unpatched, 70 redirected",
    "999 instructions on 1 vCPUs, 4 tasks, 6 call sites.",
  ]) {
    expect(text).toContain(part);
  }
  expect(text).toMatch(/^ {2}fn +caller +task 3 KLP_PATCHED +in transition +new +42$/m);
  expect(text).toMatch(/\n$/);
  expect(text).not.toMatch(/[ \t]$/m);
});

test.each([
  ["0x0", "0"],
  ["0xffffffffffffffea", "-22"],
  ["0xfffffffffffff000", "-4096"],
  ["0xffffffffffffefff", "0xffffffffffffefff"],
  ["0xffffffff", "4294967295"],
  ["0x100000000", "0x100000000"],
  ["0xdeadbeefcafef00d", "0xdeadbeefcafef00d"],
])("the result %s is shown as %s", (result, shown) => {
  expect(renderTour({ ...TOUR, calls: [{ ...CALL, result }] })).toContain(`new   ${shown}\n`);
});

test("what a call left is quoted, so that control characters show", () => {
  expect(renderTour({ ...TOUR, calls: [{ ...CALL, output: "a\nb\u0007" }] })).toContain('"a\\nb\\u0007"\n');
});
