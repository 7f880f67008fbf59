// In lockstep with the host's own processor: what gcc made of the fixtures and the laboratory's functions, as programs of
// a user's, and random programs. Skips where the host is none that can be asked.

import fc from "fast-check";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { addr, offset, PAGE_SIZE, toWord } from "../../src/base/addr.ts";
import { packagePath } from "../../src/base/file.ts";
import { Machine } from "../../src/machine/machine.ts";
import { type HostReference, openHost } from "../../src/reference/host.ts";
import { type LockstepResult, lockstep } from "../../src/reference/lockstep.ts";
import { RETURN, UserProgram } from "../../src/userProgram.ts";
import { FLAGS_ALWAYS_ONE, GPR, STATUS_FLAGS } from "../../src/x86/register.ts";
import { OBJECTS } from "../image/fixtures.ts";
import { bodies, NAMES, program, seeds } from "../machine/randomProgram.ts";
import { CALLS } from "./fixtureGuest.ts";
import { programs } from "./programs.ts";

const opened = await openHost();
if ("missing" in opened) console.log(`not compared with the host: ${opened.missing}`);
beforeEach((ctx) => {
  if ("missing" in opened) ctx.skip(opened.missing);
});
afterAll(() => {
  if (!("missing" in opened)) opened.close();
});
const host = opened as HostReference;

function expectAgreed({ difference, ended }: LockstepResult): void {
  expect(difference).toBeUndefined();
  expect(ended.kind).not.toBe("lost");
}

describe("what gcc made of the fixtures", () => {
  const EVERY = 20;
  const STEPS = 600;
  let user: UserProgram;
  beforeAll(async () => {
    // compute.o needs what string.o defines, lookup_fixed.o what lookup_buggy.o does.
    const paths = ["string.o", ...OBJECTS.filter((name) => name !== "string.o")];
    user = await UserProgram.open(
      paths.map((name) => ({ name: name.replace(".o", ""), path: packagePath(`fixtures/${name}`) })),
    );
  });

  const sample = CALLS.filter((_, n) => n % EVERY === 0);

  test(`one in ${EVERY} of the recorded calls`, async () => {
    const { machine, code } = user;
    let agreed = 0;
    let returned = 0;
    for (const call of sample) {
      const image = code.images.find(({ name }) => `${name}.o` === call.object)!;
      const vcpu = user.begin(image.symbol(call.function).address, call.args.map(BigInt));
      const result = await lockstep(machine, vcpu, host, { until: RETURN, limit: STEPS });
      expectAgreed(result);
      for (const name of result.notJudged.keys()) expect(name).toMatch(/^pushfq$|this processor has no/);
      agreed += result.agreed;
      if (result.ended.kind !== "reached") continue;
      returned++;
      expect(`0x${vcpu.get("rax").toString(16)}`).toBe(call.result);
    }
    expect(returned).toBeGreaterThan(sample.length / 3);
    expect(agreed).toBeGreaterThan(5_000);
  });
});

test("the laboratory's functions", async () => {
  const files = ["shapes", "read"].map((name) => ({ name, path: packagePath(`asm/${name}.S`) }));
  const user = await UserProgram.open(files);
  const buffer = toWord(user.image.symbol("read_buffer").address);
  for (const [name, args, result] of [
    ["leaf", [1n], 2n],
    ["tail", [20n], 41n],
    ["loop", [10n], 65n],
    ["through_pointer", [7n], 8n],
    ["sys_read", [0n, buffer, 64n], 25n],
    ["sys_read", [1n, buffer, 12n], 12n],
    ["sys_read", [9n, buffer, 12n], BigInt.asUintN(64, -9n)],
  ] as const) {
    const found = user.code.images.slice(1).find((image) => image.find(name) !== undefined)!;
    const vcpu = user.begin(found.symbol(name).address, args);
    const ran = await lockstep(user.machine, vcpu, host, { until: RETURN, limit: 10_000 });
    expectAgreed(ran);
    expect(ran, name).toMatchObject({ ended: { kind: "reached" }, notJudged: new Map() });
    expect(vcpu.get("rax"), name).toBe(result);
  }
});

const [CODE, DATA] = [addr(0x1000_0000), addr(0x2000_0000)];

/** Code and two pages of data. */
function lowMachine(): Machine {
  const machine = new Machine();
  machine.memory.map(CODE, PAGE_SIZE, { write: true, execute: true, user: true });
  machine.memory.map(DATA, 2 * PAGE_SIZE, { write: true, execute: false, user: true });
  return machine;
}

test("random programs without jumps", async () => {
  const machine = lowMachine();
  const vcpu = machine.vcpus[0]!;
  const word = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });
  const registers = fc.array(word, { minLength: 16, maxLength: 16 });
  await fc.assert(
    fc.asyncProperty(programs, registers, word, async (code, values, flags) => {
      machine.memory.write(CODE, code);
      machine.memory.write(
        DATA,
        Uint8Array.from({ length: PAGE_SIZE }, (_, n) => (n * 167 + Number(flags & 0xffn)) & 0xff),
      );
      for (const [n, name] of GPR.entries()) vcpu.set(name, values[n]!);
      vcpu.set("rsi", toWord(offset(DATA, 0x100)));
      vcpu.rsp = offset(DATA, 0x800);
      vcpu.rflags = (flags & STATUS_FLAGS) | FLAGS_ALWAYS_ONE;
      vcpu.rip = CODE;
      const end = offset(CODE, code.length);
      const result = await lockstep(machine, vcpu, host, { until: end, limit: 1000 });
      expectAgreed(result);
      expect(result.ended).toEqual({ kind: "reached" });
    }),
    { numRuns: 150, seed: 2 },
  );
});

test("random loops", async () => {
  const machine = lowMachine();
  const vcpu = machine.vcpus[0]!;
  let agreed = 0;
  await fc.assert(
    fc.asyncProperty(bodies, seeds, async (instructions, values) => {
      machine.memory.write(CODE, program(instructions));
      for (const [n, name] of NAMES.entries()) vcpu.set(name, values[n]!);
      vcpu.setNumber("rbx", offset(DATA, PAGE_SIZE - 64));
      vcpu.set("rcx", 12n);
      vcpu.rsp = offset(DATA, 2 * PAGE_SIZE);
      vcpu.rflags = FLAGS_ALWAYS_ONE;
      vcpu.rip = CODE;
      const result = await lockstep(machine, vcpu, host, { limit: 10_000 });
      expectAgreed(result);
      expect(result.ended).toMatchObject({ kind: "exit", exit: { kind: "hypercall" } });
      agreed += result.agreed;
    }),
    { numRuns: 40, seed: 2 },
  );
  expect(agreed).toBeGreaterThan(2_000);
});
