// Every entry of the table of Unicorn's faults: its example is right by this engine and by the processor, Unicorn gets
// it wrong, and lockstep says that it is that, and no difference. And nothing that Unicorn is said to lack is known to it.

import { afterAll, beforeEach, describe, expect, test } from "vitest";
import { addr, offset, PAGE_SIZE } from "../../src/base/addr.ts";
import { Machine } from "../../src/machine/machine.ts";
import { lockstep } from "../../src/reference/lockstep.ts";
import { isAmdHost, makersDifference } from "../../src/reference/makers.ts";
import { openUnicorn } from "../../src/reference/unicorn.ts";
import { UNICORN_FAULTS, UNICORN_LACKS } from "../../src/reference/unicornFaults.ts";
import { loadUnicorn, PROT } from "../../src/reference/unicornLibrary.ts";
import { nativeSkipReason, runNative } from "../native/oracle.ts";
import { loadCases } from "../x86/cases.ts";
import { steppedEngine } from "../x86/cases-engine.ts";
import { decodeAll } from "../x86/cases-flags.ts";
import { missingFeature } from "../x86/cases-host.ts";
import {
  type Case,
  CODE,
  CODE_PAGE,
  codePageOf,
  DATA,
  DATA_SIZE,
  FS_BASE,
  GS_BASE,
  REGISTERS,
  RFLAGS_BASE,
  windowOf,
} from "../x86/cases-model.ts";
import { parseCase } from "../x86/cases-text.ts";
import { differences } from "../x86/cases-verdict.ts";

const unicorn = await openUnicorn();
if ("missing" in unicorn) console.log(`Unicorn's faults are not tested: ${unicorn.missing}`);
const native = await nativeSkipReason();
if (native !== undefined) console.log(`Unicorn's faults are not held against the processor: ${native}`);
afterAll(() => {
  if (!("missing" in unicorn)) unicorn.close();
});

const engine = steppedEngine();
const examples = UNICORN_FAULTS.map(({ reason, example }) => ({
  reason,
  theCase: parseCase(example, "unicornFaults.ts", 1)!,
}));

/** In steps, flags between the iterations of a repeated instruction go from here to there. */
const NOT_IN_STEPS: ReadonlySet<string> = new Set([
  "repeated cmps and scas that fault leave the last comparison's flags, as on AMD's processors",
]);

describe.each(examples)("$reason", ({ reason, theCase }) => {
  test("the example is right", async () => {
    // What an enter that faults has pushed before is the one thing that this engine does not do as processors do.
    const isEnter = theCase.text.startsWith("enter") && theCase.after!.fault !== null;
    if (!isEnter) expect(differences(theCase, engine(theCase))).toEqual([]);
    const own = isAmdHostHere() ? makersDifference(theCase.bytes) : undefined;
    if (native !== undefined || missingFeature(theCase) !== undefined || own !== undefined) return;
    const [outcome] = await runNative([theCase]);
    expect(differences(theCase, outcome!)).toEqual([]);
  });

  test("is what is wrong with it in Unicorn", async (ctx) => {
    if ("missing" in unicorn) return ctx.skip(unicorn.missing);
    const machine = machineOf(theCase);
    const until = offset(addr(CODE), theCase.bytes.length);
    const result = await lockstep(machine, machine.vcpus[0]!, unicorn, { until, limit: 20 });
    expect(result.difference).toBeUndefined();
    expect([...result.referenceFaults.keys()]).toEqual(NOT_IN_STEPS.has(reason) ? [] : [reason]);
  });
});

/** As the cases have it. */
function machineOf(theCase: Case): Machine {
  const machine = new Machine();
  machine.memory.map(addr(DATA), DATA_SIZE, { write: true, execute: false, user: false });
  machine.memory.map(addr(CODE_PAGE), PAGE_SIZE, { write: true, execute: true, user: false });
  machine.memory.write(addr(DATA), windowOf(theCase));
  machine.memory.write(addr(CODE_PAGE), codePageOf(theCase));
  const vcpu = machine.vcpus[0]!;
  for (const name of REGISTERS) vcpu.set(name, theCase.before.registers[name]);
  vcpu.rflags = BigInt(RFLAGS_BASE | theCase.before.rflags);
  vcpu.gsBase = BigInt(GS_BASE);
  vcpu.fsBase = BigInt(FS_BASE);
  vcpu.rip = addr(CODE);
  return machine;
}

function isAmdHostHere(): boolean {
  return native === undefined && isAmdHost();
}

describe("what Unicorn is said not to know", () => {
  beforeEach((ctx) => {
    if ("missing" in unicorn) ctx.skip(unicorn.missing);
  });

  /** Of the instruction cases, one for each mnemonic that needs what it lacks. */
  const lacking = new Map<string, Case>();
  for (const theCase of loadCases()) {
    const instructions = decodeAll(theCase.bytes);
    const [first] = instructions;
    const lacks =
      first !== undefined && [...first.cpuidFeatures()].some((feature) => UNICORN_LACKS.has(feature));
    const name = theCase.text.split(/\s/)[0]!;
    if (lacks && instructions.length === 1 && !lacking.has(name)) lacking.set(name, theCase);
    for (const instruction of instructions) instruction.free();
  }

  test.each([...lacking])("%s", async (_, theCase) => {
    const library = await loadUnicorn();
    if ("missing" in library) return;
    const bare = library.open();
    bare.mapMemory(addr(CODE_PAGE), PAGE_SIZE, PROT.ALL);
    bare.writeMemory(addr(CODE_PAGE), codePageOf(theCase));
    expect(bare.step(addr(CODE))).toBe("UC_ERR_INSN_INVALID");
    bare.close();
  });

  test("all of it is tried", () => expect(lacking.size).toBeGreaterThanOrEqual(20));
});
