// In lockstep with native Unicorn, at kernel addresses: what gcc made of the fixtures, the laboratory's own functions
// with their sites off and redirected, random programs, and an exception that the guest handles. Skips where Unicorn is not.

import fc from "fast-check";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { type Addr, addr, offset, PAGE_SIZE, toWord } from "../../src/base/addr.ts";
import { Lab } from "../../src/lab.ts";
import { Machine } from "../../src/machine/machine.ts";
import type { Vcpu } from "../../src/machine/vcpu.ts";
import { type LockstepResult, lockstep } from "../../src/reference/lockstep.ts";
import { openUnicorn, type UnicornReference } from "../../src/reference/unicorn.ts";
import { FLAGS_ALWAYS_ONE, GPR, STATUS_FLAGS } from "../../src/x86/register.ts";
import { beginWorkload, WORKLOADS } from "../lab/workloads.ts";
import { DATA as GUEST_DATA, makeGuest, setRegisters, TEXT } from "../machine/guest.ts";
import { bodies, NAMES, program, seeds } from "../machine/randomProgram.ts";
import { onReturn, systemGuest } from "../machine/systemGuest.ts";
import { CALLS, type FixtureGuest, openFixtureGuest } from "./fixtureGuest.ts";
import { programs } from "./programs.ts";

const opened = await openUnicorn();
if ("missing" in opened) console.log(`not compared with Unicorn: ${opened.missing}`);
beforeEach((ctx) => {
  if ("missing" in opened) ctx.skip(opened.missing);
});
afterAll(() => {
  if (!("missing" in opened)) opened.close();
});
const unicorn = opened as UnicornReference;

/** In lockstep to `until`, without a difference. */
async function agree(
  { machine, vcpu }: { machine: Machine; vcpu: Vcpu },
  until: Addr,
  limit = 100_000,
): Promise<LockstepResult> {
  const result = await lockstep(machine, vcpu, unicorn, { until, limit });
  expect(result.difference).toBeUndefined();
  expect(result.ended.kind).not.toBe("lost");
  return result;
}

describe("what gcc made of the fixtures", () => {
  /** Of the recorded calls, every so manieth, and of each no more than so many instructions. */
  const EVERY = 9;
  const STEPS = 1500;
  let guest: FixtureGuest;
  beforeAll(async () => {
    guest = await openFixtureGuest();
  });

  const sample = CALLS.filter((_, n) => n % EVERY === 0);

  test(`one in ${EVERY} of the recorded calls`, async () => {
    const { lab, machine, kernel, imageOf } = guest;
    const vcpu = machine.vcpus[0]!;
    const end = lab.image.symbol("lab_call_return").address;
    let agreed = 0;
    let returned = 0;
    for (const call of sample) {
      const target = imageOf(call).symbol(call.function).address;
      kernel.begin(vcpu, kernel.tasks[0]!, target, call.args.map(BigInt));
      const result = await agree({ machine, vcpu }, end, STEPS);
      expect([...result.notJudged.keys()].filter((name) => name !== "popcnt")).toEqual([]);
      agreed += result.agreed;
      if (result.ended.kind !== "reached") continue;
      returned++;
      expect(`0x${vcpu.get("rax").toString(16)}`).toBe(call.result);
    }
    expect(returned).toBeGreaterThan(sample.length / 2);
    expect(agreed).toBeGreaterThan(15_000);
  });
});

describe("the laboratory's functions", () => {
  test.each([false, true])("with their sites redirected: %s", async (redirected) => {
    const lab = await Lab.open();
    if (redirected) {
      lab.redirect("leaf", lab.symbol("leaf_new").address).enable();
      lab.redirect("mem_read", lab.symbol("mem_read_upper").address).enable();
    }
    let agreed = 0;
    for (const workload of WORKLOADS) {
      const vcpu = beginWorkload(lab, workload);
      const result = await agree({ machine: lab.machine, vcpu }, lab.symbol("lab_call_return").address);
      expect(result.ended, workload.name).toEqual({ kind: "reached" });
      expect(result.steps, workload.name).toBe(result.agreed);
      if (!redirected) expect(vcpu.get("rax"), workload.name).toBe(workload.result);
      agreed += result.agreed;
    }
    expect(agreed).toBeGreaterThan(redirected ? 800 : 350);
  });
});

test("random programs without jumps", async () => {
  const [CODE, DATA] = [addr(0xffffffff81000000n), addr(0xffff888000000000n)];
  const machine = new Machine();
  const vcpu = machine.vcpus[0]!;
  machine.memory.map(CODE, PAGE_SIZE, { write: true, execute: true, user: false });
  machine.memory.map(DATA, PAGE_SIZE, { write: true, execute: false, user: false });
  const word = fc.oneof(
    fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
    fc.constantFrom(0n, 1n, 0x7fn, 0x80n, 0xffn, 0x7fffn, 0x8000n, 0x7fff_ffffn, 0x8000_0000n, 0xffff_ffffn),
    fc.constantFrom(2n ** 63n - 1n, 2n ** 63n, 2n ** 64n - 1n),
  );
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
      const { ended } = await agree({ machine, vcpu }, offset(CODE, code.length));
      expect(ended).toEqual({ kind: "reached" });
    }),
    { numRuns: 250, seed: 1 },
  );
});

test("random loops", async () => {
  const guest = makeGuest("90");
  const { machine, vcpu } = guest;
  let agreed = 0;
  await fc.assert(
    fc.asyncProperty(bodies, seeds, async (instructions, values) => {
      const bytes = program(instructions);
      machine.memory.write(TEXT, bytes);
      const named = Object.fromEntries(NAMES.map((name, n) => [name, values[n]!]));
      setRegisters(guest, { ...named, rbx: offset(GUEST_DATA, PAGE_SIZE - 64), rcx: 60 });
      vcpu.rflags = 2n;
      const result = await agree(guest, offset(TEXT, bytes.length));
      expect(result.ended).toMatchObject({ kind: "exit", exit: { kind: "hypercall" } });
      agreed += result.agreed;
    }),
    { numRuns: 60, seed: 1 },
  );
  expect(agreed).toBeGreaterThan(20_000);
});

describe("an exception that the guest handles", () => {
  test("is agreed upon, delivered here, and gone on from", async () => {
    const source = `
        mov $3, %r12d
1:      add $5, %r13
        ud2
        mov (%r14), %rbx
        dec %r12d
        jnz 1b
        int3
        syscall_not: nop
        cli
        vmcall`;
    const guest = await systemGuest({ kernel: source });
    onReturn(guest, 6, { skip: 2 });
    onReturn(guest, 14, { skip: 3 });
    const { machine, vcpu } = guest;
    const result = await lockstep(machine, vcpu, unicorn, { limit: 10_000 });
    expect(result.difference).toBeUndefined();
    expect(result.ended).toMatchObject({ kind: "exit", exit: { kind: "hypercall" }, judged: false });
    expect(guest.log().map(({ vector }) => vector)).toEqual([6, 14, 6, 14, 6, 14, 3]);
    // The instruction after an iretq has RF set: that one, too, is executed here alone.
    expect(Object.fromEntries(result.notJudged)).toEqual({
      ...{ "(delivery of an exception)": 3, "(interrupt or trap)": 6, iretq: 7, int3: 1, vmcall: 1 },
      "mov of a control register": 7,
    });
    expect(result.agreed).toBeGreaterThan(7 * 20);
    // With its table back in place.
    expect(vcpu.system.getWord("idtLimit")).toBe(0xfffn);
  });

  test("one that this engine raises and Unicorn does not is a difference, and not delivered", async () => {
    const guest = await systemGuest({ kernel: "nop; nop; vmcall" });
    const { machine, vcpu } = guest;
    const step = vcpu.step.bind(vcpu);
    vcpu.step = () =>
      vcpu.rip === offset(guest.at("kernel"), 1)
        ? { kind: "fault", ip: vcpu.rip, fault: { vector: "#UD" } }
        : step();
    const { difference } = await lockstep(machine, vcpu, unicorn, { limit: 10 });
    expect(difference).toMatchObject({ step: 1, stops: { ours: "#UD", theirs: undefined } });
    expect(guest.log()).toEqual([]);
    expect(vcpu.system.getWord("idtLimit")).toBe(0xfffn);
  });
});
