// In lockstep with native Unicorn: registers and defined flags after every instruction, memory at the end.
// Skips where Unicorn is not.

import fc from "fast-check";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { addr, offset, PAGE_SIZE, pageOf, toWord } from "../../src/base/addr.ts";
import { Machine } from "../../src/machine/machine.ts";
import { FLAGS_ALWAYS_ONE, GPR, STATUS_FLAGS } from "../../src/x86/register.ts";
import { CALLS, type FixtureGuest, openFixtureGuest } from "./fixtureGuest.ts";
import { type Lockstep, stepBoth } from "./lockstep.ts";
import { programs } from "./programs.ts";
import { openUnicornMachine } from "./unicornMachine.ts";

const unicorn = await openUnicornMachine();
beforeEach((ctx) => {
  if ("missing" in unicorn) ctx.skip(unicorn.missing);
});
afterAll(() => {
  if (!("missing" in unicorn)) unicorn.close();
});

function reference() {
  return "missing" in unicorn ? expect.fail(unicorn.missing) : unicorn;
}

describe("what gcc made of the fixtures", () => {
  /** Of the recorded calls, every so manieth, and of each no more than so many instructions. */
  const EVERY = 12;
  const STEPS = 500;
  let guest: FixtureGuest;
  beforeAll(async () => {
    guest = await openFixtureGuest();
  });

  const sample = CALLS.filter((_, n) => n % EVERY === 0);

  test(`one in ${EVERY} of the recorded calls`, () => {
    const { machine, kernel, image, module, imageOf } = guest;
    const [vcpu, task] = [machine.vcpus[0]!, kernel.tasks[0]!];
    const areas = [image, module].flatMap(({ segments }) => segments);
    const [text, ...more] = areas
      .filter(({ execute }) => execute)
      .map(({ address: at, size }) => ({ at, size }));
    const data = areas.filter(({ execute }) => !execute).map(({ address: at, size }) => ({ at, size }));
    const stack = { at: offset(task.stack.high, -PAGE_SIZE), size: PAGE_SIZE };
    const lockstep: Lockstep = {
      ...{ machine, vcpu, unicorn: reference(), more },
      code: { at: text!.at, size: text!.size },
      data: [...data, stack].map(({ at, size }) => ({ at: pageOf(at), size: at + size - pageOf(at) })),
    };
    const end = image.symbol("lab_call_return").address;
    let steps = 0;
    let ended = 0;
    for (const call of sample) {
      kernel.begin(vcpu, task, imageOf(call).symbol(call.function).address, call.args.map(BigInt));
      steps += stepBoth(lockstep, end, STEPS);
      if (vcpu.rip !== end) continue;
      ended++;
      expect(`0x${vcpu.get("rax").toString(16)}`).toBe(call.result);
    }
    expect(ended).toBeGreaterThan(sample.length / 2);
    expect(steps).toBeGreaterThan(5000);
  });
});

test("random programs", () => {
  const [TEXT, DATA] = [addr(0xffffffff81000000n), addr(0xffff888000000000n)];
  const machine = new Machine();
  const vcpu = machine.vcpus[0]!;
  machine.memory.map(TEXT, PAGE_SIZE, { write: true, execute: true, user: false });
  machine.memory.map(DATA, PAGE_SIZE, { write: true, execute: false, user: false });
  const word = fc.oneof(
    fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
    fc.constantFrom(0n, 1n, 0x7fn, 0x80n, 0xffn, 0x7fffn, 0x8000n, 0x7fff_ffffn, 0x8000_0000n, 0xffff_ffffn),
    fc.constantFrom(2n ** 63n - 1n, 2n ** 63n, 2n ** 64n - 1n),
  );
  const registers = fc.array(word, { minLength: 16, maxLength: 16 });
  fc.assert(
    fc.property(programs, registers, word, (code, values, flags) => {
      machine.memory.write(TEXT, code);
      machine.memory.write(
        DATA,
        Uint8Array.from({ length: PAGE_SIZE }, (_, n) => (n * 167 + Number(flags & 0xffn)) & 0xff),
      );
      for (const [n, name] of GPR.entries()) vcpu.set(name, values[n]!);
      vcpu.set("rsi", toWord(offset(DATA, 0x100)));
      vcpu.rsp = offset(DATA, 0x800);
      vcpu.rflags = (flags & STATUS_FLAGS) | FLAGS_ALWAYS_ONE;
      vcpu.rip = TEXT;
      const lockstep: Lockstep = {
        ...{ machine, vcpu, unicorn: reference() },
        code: { at: TEXT, size: code.length },
        data: [{ at: DATA, size: PAGE_SIZE }],
      };
      stepBoth(lockstep, offset(TEXT, code.length), 1000);
      expect(vcpu.rip).toBe(TEXT + code.length);
    }),
    { numRuns: 250, seed: 1 },
  );
});
