// Random programs, stepped on one machine and run hot in regions with random budgets on another: after every
// budget both must be in the same state. (What each instruction means is checked elsewhere; here, that all the
// engine's ways of executing it mean the same.)

import fc from "fast-check";
import { expect, test } from "vitest";
import { offset, PAGE_SIZE } from "../../src/base/addr.ts";
import { DATA, type Guest, makeGuest, restart, setRegisters, stateOf, TEXT } from "./guest.ts";
import { bodies, NAMES, program, seeds } from "./randomProgram.ts";

const ITERATIONS = 260; // more than it takes to be compiled
/** Data operands lie around a page boundary. */
const POINTER = offset(DATA, PAGE_SIZE - 64);

function begin(guest: Guest, bytes: Uint8Array, values: readonly bigint[]): void {
  guest.machine.memory.write(TEXT, bytes);
  restart(guest, {});
  const registers = Object.fromEntries(NAMES.map((name, n) => [name, values[n]!]));
  setRegisters(guest, { ...registers, rbx: POINTER, rcx: ITERATIONS });
}

test("random programs do the same stepped and run", () => {
  const [stepped, ran] = [makeGuest("90"), makeGuest("90")];
  let hot = 0;
  const sameState = () => {
    expect(stateOf(ran)).toEqual(stateOf(stepped));
    expect(ran.machine.memory.read(POINTER, 192)).toEqual(stepped.machine.memory.read(POINTER, 192));
  };
  fc.assert(
    fc.property(
      bodies,
      seeds,
      fc.array(fc.integer({ min: 1, max: 900 }), { minLength: 4, maxLength: 4 }),
      (instructions, values, budgets) => {
        const bytes = program(instructions);
        begin(stepped, bytes, values);
        begin(ran, bytes, values);
        for (let turn = 0; ; turn++) {
          const budget = budgets[turn % budgets.length]!;
          const start = ran.vcpu.instructions;
          const exit = ran.vcpu.run({ budget });
          const done = ran.vcpu.instructions - start;
          let stop: unknown;
          for (let n = 0; n < done; n++) stop = stepped.vcpu.step();
          sameState();
          if (exit.kind !== "budget") {
            expect(exit.kind).toBe("hypercall");
            expect(stop).toEqual(exit);
            break;
          }
          expect(done).toBe(budget);
        }
        if (ran.machine.regions.find(TEXT) !== undefined) hot++;
      },
    ),
    { seed: 1, numRuns: 100 },
  );
  expect(hot).toBeGreaterThan(95);
  expect(stepped.machine.regions.activeCount).toBe(0);
});
