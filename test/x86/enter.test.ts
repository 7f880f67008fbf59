// Where a nested enter faults: at the push or the read that the processor faults at, whichever comes first.
//
// No cases, because the processor has stored by then what it had pushed; this engine stores nothing. The
// addresses are what a processor reported for these very programs.

import { describe, expect, test } from "vitest";
import { regionEngine, steppedEngine } from "./cases-engine.ts";
import { DATA } from "./cases-model.ts";
import { parseCase } from "./cases-text.ts";

const FAULTS = [
  { text: "c8 10 00 03", before: "rbp=data+0x1000 rsp=data+0x18", offset: -8, access: "write" }, // the last push
  { text: "c8 10 00 03", before: "rbp=data+0x1000 rsp=data+0x1c", offset: -4, access: "write" }, // half of it
  { text: "c8 10 00 03", before: "rbp=data+0x1000 rsp=data+0x24", offset: -0xc, access: "write" }, // the new top
  { text: "c8 00 20 00", before: "", offset: -0x1008, access: "write" },
  { text: "c8 f9 0f 00", before: "", offset: -1, access: "write" },
  { text: "c8 10 00 03", before: "rbp=data+0xc", offset: -4, access: "read" }, // the second frame pointer
  { text: "c8 10 00 03", before: "rbp=data+0x2014", offset: 0x200c, access: "read" }, // the first
] as const;

describe.each([
  ["stepped", steppedEngine()],
  ["regions", regionEngine()],
])("%s", (_, engine) => {
  test.each(FAULTS)("$text with $before", ({ text, before, offset, access }) => {
    const program = parseCase(`${text} | enter | ${before} =>`, "enter", 1)!;
    const { fault, changed, registers } = engine(program);
    expect(fault).toEqual({ name: "#PF", address: BigInt(DATA + offset), access });
    expect(changed.size).toBe(0);
    expect(registers).toEqual(program.before.registers);
  });
});
