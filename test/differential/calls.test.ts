// What gcc's code returns here is what it returned on silicon: every recorded call, stepped, interpreted and run
// in regions, again and again on one image that is never reloaded.

import { beforeAll, describe, expect, test } from "vitest";
import type { Exit } from "../../src/machine/exit.ts";
import type { Vcpu } from "../../src/machine/vcpu.ts";
import { CALLS, type Call, type FixtureGuest, MODULE, openFixtureGuest } from "./fixtureGuest.ts";

let guest: FixtureGuest;
const LIMIT = 1_000_000;

beforeAll(async () => {
  guest = await openFixtureGuest();
});

interface Outcome {
  readonly result: string;
  readonly instructions: number;
}

function perform(call: Call, drive: (vcpu: Vcpu) => Exit | undefined): Outcome {
  const { kernel, machine, imageOf } = guest;
  const vcpu = machine.vcpus[0]!;
  const target = imageOf(call).symbol(call.function).address;
  kernel.begin(vcpu, kernel.tasks[0]!, target, call.args.map(BigInt));
  const before = vcpu.instructions;
  const exit = drive(vcpu);
  const result =
    exit !== undefined && kernel.returned(exit) ? `0x${vcpu.get("rax").toString(16)}` : JSON.stringify(exit);
  return { result, instructions: vcpu.instructions - before };
}

const run = (vcpu: Vcpu) => vcpu.run({ budget: LIMIT });

function step(vcpu: Vcpu): Exit | undefined {
  for (let n = 0; n < LIMIT; n++) {
    const exit = vcpu.step();
    if (exit !== undefined) return exit;
  }
  return undefined;
}

const performAll = (drive: (vcpu: Vcpu) => Exit | undefined) => CALLS.map((call) => perform(call, drive));
const shown = (outcomes: readonly Outcome[]) =>
  CALLS.map(({ object, function: name, args }, n) => ({
    object,
    function: name,
    args,
    result: outcomes[n]!.result,
  }));

describe("every recorded call", () => {
  test("returns what silicon returned, and takes as many instructions each way", () => {
    const stepped = performAll(step);
    expect(shown(stepped)).toEqual(CALLS);
    expect(guest.machine.regions.activeCount).toBe(0);
    const first = performAll(run);
    expect(shown(first)).toEqual(CALLS);
    const again = performAll(run);
    expect(shown(again)).toEqual(CALLS);
    expect(guest.machine.regions.activeCount).toBeGreaterThan(0);
    expect(first).toEqual(stepped);
    expect(again).toEqual(stepped);
  });

  test("does so with all its code compiled beforehand", () => {
    const { machine } = guest;
    const before = machine.regions.activeCount;
    for (const image of [guest.image, guest.module])
      for (const { kind, address, name } of image.symbols)
        if (kind === "func" && name.startsWith("test_")) machine.regions.compile(address);
    expect(machine.regions.activeCount).toBeGreaterThan(before + 30);
    expect(shown(performAll(run))).toEqual(CALLS);
  });

  test("is stopped by its budget at any instruction, and goes on from there", () => {
    // Slices of prime lengths, so that every kind of boundary is met.
    for (const [n, slice] of [1, 2, 3, 7, 31].entries()) {
      const calls = CALLS.filter((_, at) => at % 5 === n);
      const outcomes = calls.map((call) =>
        perform(call, (vcpu) => {
          for (let left = LIMIT; left > 0; left -= slice) {
            const before = vcpu.instructions;
            const exit = vcpu.run({ budget: slice });
            if (exit.kind !== "budget") return exit;
            expect(vcpu.instructions - before).toBe(slice);
          }
          return undefined;
        }),
      );
      expect(outcomes.map(({ result }) => result)).toEqual(calls.map(({ result }) => result));
    }
  });
});

test("the fixed module's lookup refuses what the kernel's gives away", () => {
  const fixed = CALLS.filter(({ object }) => object === MODULE);
  expect(fixed.length).toBeGreaterThan(0);
  const index = "0x4";
  const results = (name: string) =>
    CALLS.filter((call) => call.function === name && call.args[0] === index).map(
      (call) => perform(call, run).result,
    );
  expect(new Set(results("test_lookup"))).toEqual(new Set(["0xdeadbeefcafef00d"]));
  expect(new Set(results("test_fixed_lookup"))).toEqual(new Set(["0xffffffffffffffea"]));
});
