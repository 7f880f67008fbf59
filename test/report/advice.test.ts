// Every way to stop has a next step, and different causes get different ones.

import { expect, test } from "vitest";
import { addr } from "../../src/base/addr.ts";
import { type Exit, type Fault, PAGE_FAULT } from "../../src/machine/exit.ts";
import { adviseExit } from "../../src/report/advice.ts";

const ip = addr(0x1000);
const pageFault = (errorCode: number): Fault => ({ vector: "#PF", errorCode, address: ip, size: 8 });
const faults: Fault[] = [
  { vector: "#DE" },
  { vector: "#UD" },
  { vector: "#BP" },
  { vector: "#GP", errorCode: 0 },
  pageFault(0),
  pageFault(PAGE_FAULT.present | PAGE_FAULT.write),
  pageFault(PAGE_FAULT.fetch),
];
const exits: Exit[] = [
  { kind: "reached", ip },
  { kind: "budget", ip },
  { kind: "hypercall", ip },
  { kind: "halt", ip },
  { kind: "unimplemented", ip, bytes: Uint8Array.of(0x0f), text: "?" },
  ...faults.map((fault): Exit => ({ kind: "fault", ip, fault })),
];

test("each has its own, one clause", () => {
  const advice = exits.map(adviseExit);
  expect(new Set(advice).size).toBe(exits.length);
  for (const clause of advice) expect(clause).toMatch(/^[a-z][^;\n]+[^.\n]$/);
});
