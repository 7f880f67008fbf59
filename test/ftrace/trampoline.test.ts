// The trampoline's contract, held against what is executed: what the handler gets, and that the
// redirected call leaves every register, the flags and the stack as if the call had gone there directly.

import fc from "fast-check";
import { beforeAll, describe, expect, test } from "vitest";
import { type Addr, addr, offset, toWord } from "../../src/base/addr.ts";
import { SITE_SIZE } from "../../src/ftrace/site.ts";
import { CONSTANTS } from "../../src/kernel/layout.ts";
import { Lab } from "../../src/lab.ts";
import type { Redirect } from "../../src/livepatch/redirect.ts";
import { PT_REGS } from "../../src/machine/ptRegs.ts";
import { StructView } from "../../src/machine/struct.ts";
import type { Vcpu } from "../../src/machine/vcpu.ts";
import { FLAG, FLAGS_ALWAYS_ONE, GPR, type RegisterName, STATUS_FLAGS } from "../../src/x86/register.ts";

let lab: Lab;
let vcpu: Vcpu;
let redirect: Redirect;
let stack: { low: Addr; high: Addr };

beforeAll(async () => {
  lab = await Lab.open({ recordCalls: true });
  vcpu = lab.machine.vcpus[0]!;
  redirect = lab.redirect("leaf", lab.symbol("leaf_new").address);
  redirect.enable();
  stack = lab.kernel.tasks[0]!.stack;
  lab.begin(lab.symbol("leaf").address, []); // the task is current on the vCPU
});

const address = (name: string) => lab.symbol(name).address;
const FREE_REGISTERS = GPR.filter((name) => name !== "rsp");
/** What a kernel may have in its flags; a trap flag would be another subject. */
const FLAGS = STATUS_FLAGS | FLAG.DF | FLAG.IF | FLAG.IOPL | FLAG.NT | FLAG.AC | FLAG.ID;

interface Entry {
  readonly registers: Record<RegisterName, bigint>;
  readonly rflags: bigint;
  readonly stack: Uint8Array;
}

const word = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });
const entries: fc.Arbitrary<Entry> = fc
  .record({
    values: fc.array(word, { minLength: FREE_REGISTERS.length, maxLength: FREE_REGISTERS.length }),
    // Words below the top that the caller has on the stack; room for what the trampoline pushes.
    used: fc.integer({ min: 1, max: 1900 }),
    flags: word,
    seed: fc.integer({ min: 1, max: 2 ** 31 }),
  })
  .map(({ values, used, flags, seed }) => {
    const registers = Object.fromEntries(FREE_REGISTERS.map((name, n) => [name, values[n]!]));
    const rsp = toWord(offset(stack.high, -8 * used));
    return {
      registers: { ...registers, rsp } as Record<RegisterName, bigint>,
      rflags: (flags & FLAGS) | FLAGS_ALWAYS_ONE,
      stack: noise(stack.high - stack.low, seed),
    };
  });

function noise(size: number, seed: number): Uint8Array {
  let state = seed;
  return Uint8Array.from({ length: size }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    return state >>> 24;
  });
}

/** The return address into whoever called the traced function; any word does, as nobody returns. */
function enter(entry: Entry, at: Addr): void {
  lab.machine.memory.write(stack.low, entry.stack);
  lab.machine.calls.forget(stack.low);
  for (const name of GPR) vcpu.set(name, entry.registers[name]);
  vcpu.rflags = entry.rflags;
  vcpu.rip = at;
}

function runTo(at: Addr): void {
  expect(vcpu.run({ until: at, budget: 1000 })).toEqual({ kind: "reached", ip: at });
}

const stackNow = () => lab.machine.memory.read(stack.low, stack.high - stack.low);
/** pushed by the site's call, pushfq, two frame records, pt_regs; the call of the handler and its frame. */
const USED = 8 + 8 + 16 + 16 + PT_REGS.size + 8 + 8;

/** What an uninvolved engine would see at the replacement's first instruction. */
function expectUntouched(entry: Entry): void {
  expect(vcpu.registers()).toEqual(entry.registers);
  expect(vcpu.rflags).toBe(entry.rflags);
  const rsp = addr(entry.registers.rsp) - stack.low;
  const now = stackNow();
  expect(Buffer.compare(now.subarray(rsp), entry.stack.subarray(rsp)), "above rsp").toBe(0);
  expect(Buffer.compare(now.subarray(0, rsp - USED), entry.stack.subarray(0, rsp - USED)), "below").toBe(0);
}

describe("at the body's first instruction, everything is as at the site", () => {
  const cases = [
    { name: "the replacement", body: () => address("leaf_new"), state: "KLP_UNDEFINED", transition: false },
    {
      name: "the replacement, in transition",
      body: () => address("leaf_new"),
      state: "KLP_PATCHED",
      transition: true,
    },
    {
      name: "the original",
      body: () => offset(address("leaf"), SITE_SIZE),
      state: "KLP_UNPATCHED",
      transition: true,
    },
  ] as const;

  test.for(cases)("$name", ({ body, state, transition }) => {
    lab.kernel.setPatchState(lab.kernel.tasks[0]!, state);
    redirect.transition = transition;
    fc.assert(
      fc.property(entries, (entry) => {
        enter(entry, redirect.site.ip);
        runTo(body());
        expectUntouched(entry);
        expect(lab.trueReturns(vcpu)).toEqual([]); // the site's call was undone
      }),
      { numRuns: 60, seed: 1 },
    );
    redirect.transition = false;
  });

  test("every single flag, set and clear", () => {
    const [entry] = fc.sample(entries, { numRuns: 1, seed: 2 });
    for (let bit = 1n; bit <= FLAGS; bit <<= 1n) {
      if ((FLAGS & bit) === 0n) continue;
      for (const rflags of [bit | FLAGS_ALWAYS_ONE, (FLAGS & ~bit) | FLAGS_ALWAYS_ONE]) {
        enter({ ...entry!, rflags }, redirect.site.ip);
        runTo(address("leaf_new"));
        expect(vcpu.rflags).toBe(rflags);
      }
    }
  });
});

describe("at the handler's first instruction", () => {
  test("rdi, rsi, rdx and rcx are ip, parent ip, ops and registers, and each saved register is in its field", () => {
    const handler = address("klp_redirect_handler");
    fc.assert(
      fc.property(entries, (entry) => {
        const rsp = addr(entry.registers.rsp);
        enter(entry, redirect.site.ip);
        const parent = lab.machine.memory.readWord(rsp);
        runTo(handler);
        const regs = vcpu.get("rcx");
        expect({ ip: vcpu.get("rdi"), parent: vcpu.get("rsi"), ops: vcpu.get("rdx") }).toEqual({
          ip: toWord(redirect.site.ip),
          parent,
          ops: toWord(redirect.ops.struct.at),
        });
        const saved = new StructView(lab.machine.memory, PT_REGS, addr(regs));
        const { rax, rbx, rcx, rdx, rsi, rdi, rbp, ...numbered } = entry.registers;
        const expected: Record<keyof typeof PT_REGS.fields, bigint> = {
          ...numbered,
          ...{ ax: rax, bx: rbx, cx: rcx, dx: rdx, si: rsi, di: rdi, bp: rbp },
          ip: toWord(offset(redirect.site.ip, SITE_SIZE)),
          sp: toWord(rsp),
          flags: entry.rflags,
          orig_ax: 2n ** 64n - 1n,
          cs: BigInt(CONSTANTS.KERNEL_CS),
          ss: BigInt(CONSTANTS.KERNEL_DS),
        };
        for (const field of Object.keys(PT_REGS.fields) as (keyof typeof PT_REGS.fields)[])
          expect(saved.get(field), field).toBe(expected[field]);
        expect(vcpu.rflags & FLAG.DF, "DF").toBe(0n);
        // pt_regs lies on the stack, just above the return address into the trampoline.
        expect(regs).toBe(toWord(offset(vcpu.rsp, 8)));
      }),
      { numRuns: 50, seed: 3 },
    );
  });

  test("the stack is aligned as the ABI has it, if it was at the traced function's entry", () => {
    lab.begin(address("leaf"), [1n]);
    runTo(address("leaf"));
    expect(mod16(vcpu.rsp)).toBe(8);
    runTo(address("klp_redirect_handler"));
    expect(mod16(vcpu.rsp)).toBe(8); // 16-aligned where the trampoline calls
  });

  test("the handler's changes to pt_regs are the registers afterwards, but for sp", () => {
    const [entry] = fc.sample(entries, { numRuns: 1, seed: 4 });
    enter(entry!, redirect.site.ip);
    runTo(address("klp_redirect_handler"));
    const regs = new StructView(lab.machine.memory, PT_REGS, addr(vcpu.get("rcx")));
    const changed = [
      "r15",
      "r14",
      "r13",
      "r12",
      "bp",
      "bx",
      "r11",
      "r10",
      "r9",
      "r8",
      "ax",
      "cx",
      "dx",
      "si",
      "di",
    ] as const;
    changed.forEach((field, n) => {
      regs.set(field, 0x1111n * BigInt(n + 1));
    });
    regs.set("flags", FLAG.CF | FLAG.DF | FLAGS_ALWAYS_ONE);
    regs.set("sp", 0x1234n);
    regs.set("orig_ax", 0x1234n);
    runTo(address("leaf_new"));
    const after = Object.fromEntries(
      changed.map((field, n) => [
        field.length === 2 && !/^r\d/.test(field) ? `r${field}` : field,
        0x1111n * BigInt(n + 1),
      ]),
    );
    expect(vcpu.registers()).toEqual({ ...after, rsp: entry!.registers.rsp });
    expect(vcpu.rflags).toBe(FLAG.CF | FLAG.DF | FLAGS_ALWAYS_ONE);
  });
});

describe("a trampoline", () => {
  test("is a copy of its template in which only the ops differ, wherever it lies", () => {
    const template = lab.symbol("ftrace_regs_caller");
    const linked = lab.image.functionBytes(template);
    const hole = address("ftrace_regs_caller_ops") - template.address + 2;
    const others = [redirect, lab.redirect("tail", address("leaf")), lab.redirect("loop", address("leaf"))];
    for (const { ops } of others) {
      const { trampoline, struct } = ops;
      const copy = lab.machine.memory.read(trampoline.address, trampoline.size);
      const expected = linked.slice();
      new DataView(expected.buffer).setBigUint64(hole, toWord(struct.at), true);
      expect(Buffer.compare(copy, expected)).toBe(0);
      expect(lab.code.describe(trampoline.address)).toMatch(/^ftrace_trampoline_[0-9a-f]{8}\+0x0\//);
    }
    expect(new Set(others.map(({ ops }) => ops.trampoline.address)).size).toBe(others.length);
  });

  test("can be executed, not written, by the guest", () => {
    const { trampoline } = redirect.ops;
    expect(lab.machine.memory.find(trampoline.address)!.access).toEqual({
      write: false,
      execute: true,
      user: false,
    });
  });
});

test("two functions at once, each through its own trampoline, also one inside the other", async () => {
  const both = await Lab.open({ recordCalls: true });
  const to = (name: string) => both.symbol(name).address;
  const [leaf, tail] = [both.redirect("leaf", to("leaf_new")), both.redirect("tail", to("leaf"))];
  leaf.enable();
  tail.enable();
  // tail -> (its trampoline) leaf -> (leaf's trampoline) leaf_new, with the argument as it was.
  expect(both.call("tail", [3]).result).toBe(103n);
  leaf.disable();
  expect(both.call("tail", [3]).result).toBe(4n);
  leaf.enable();
  tail.disable();
  expect(both.call("tail", [3]).result).toBe(106n);
});

function mod16(at: Addr): number {
  return ((at % 16) + 16) % 16;
}
