// The trampolines' contract, held against what is executed: what the handler gets, and that the redirected call leaves
// the stack and what each kind promises of registers and flags as if the call had gone there directly.

import fc from "fast-check";
import { beforeAll, describe, expect, test } from "vitest";
import { type Addr, addr, offset, toWord } from "../../src/base/addr.ts";
import type { FtraceOps } from "../../src/ftrace/ftrace.ts";
import { callBytes, SITE_SIZE } from "../../src/ftrace/site.ts";
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
/** The redirect's own, and one with the same handler that saves all registers. */
let ops: Record<Kind, FtraceOps>;
let stack: { low: Addr; high: Addr };

type Kind = "plain" | "regs";
const KINDS: readonly Kind[] = ["plain", "regs"];

beforeAll(async () => {
  lab = await Lab.open({ recordCalls: true });
  vcpu = lab.machine.vcpus[0]!;
  redirect = lab.redirect("leaf", lab.symbol("leaf_new").address);
  const regs = lab.ftrace.makeOps({
    name: "redirect with registers",
    handler: address("klp_ftrace_handler"),
    own: redirect.ops.struct.getNumber("private"),
    saveRegs: true,
    ipmodify: true,
  });
  ops = { plain: redirect.ops, regs };
  stack = lab.kernel.tasks[0]!.stack;
  lab.begin(lab.symbol("leaf").address, []); // the task is current on the vCPU
});

const address = (name: string) => lab.symbol(name).address;

/** Directs the site to the ops of that kind for as long as `act` runs. */
function directed(kind: Kind, act: () => void): void {
  lab.ftrace.enable(redirect.site, ops[kind]);
  try {
    act();
  } finally {
    lab.ftrace.disable(redirect.site);
  }
}

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
/** Pushed by the site's call, a word for a direct call, two frame records, pt_regs; the call of the handler. */
const USED = 8 + 8 + 2 * 16 + PT_REGS.size + 8;

/** What is anybody's at a function's beginning (System V ABI, 3.2): not kept by the plain one, nor are status flags. */
const SCRATCH: readonly RegisterName[] = ["r10", "r11"];

/** What an uninvolved engine would see at the replacement's first instruction. */
function expectUntouched(kind: Kind, entry: Entry): void {
  const kept = (registers: Record<RegisterName, bigint>) =>
    kind === "regs" ? registers : { ...registers, ...Object.fromEntries(SCRATCH.map((name) => [name, 0n])) };
  expect(kept(vcpu.registers())).toEqual(kept(entry.registers));
  const flags = kind === "regs" ? -1n : ~STATUS_FLAGS;
  expect(vcpu.rflags & flags).toBe(entry.rflags & flags);
  const rsp = addr(entry.registers.rsp) - stack.low;
  const now = stackNow();
  expect(Buffer.compare(now.subarray(rsp), entry.stack.subarray(rsp)), "above rsp").toBe(0);
  expect(Buffer.compare(now.subarray(0, rsp - USED), entry.stack.subarray(0, rsp - USED)), "below").toBe(0);
}

describe.each(KINDS)("%s: at the body's first instruction, everything is as at the site", (kind) => {
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
    directed(kind, () => {
      fc.assert(
        fc.property(entries, (entry) => {
          enter(entry, redirect.site.ip);
          runTo(body());
          expectUntouched(kind, entry);
          expect(lab.trueReturns(vcpu)).toEqual([]); // the site's call was undone
        }),
        { numRuns: 60, seed: 1 },
      );
    });
    redirect.transition = false;
  });
});

test("regs: every single flag, set and clear", () => {
  directed("regs", () => {
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

type Field = keyof typeof PT_REGS.fields;
/** What the plain one fills in. */
const PLAIN_FIELDS: readonly Field[] = ["di", "si", "dx", "cx", "r8", "r9", "ax", "bp", "ip", "sp"];

describe.each(KINDS)("%s: at the handler's first instruction", (kind) => {
  const within = (act: () => void) => () => directed(kind, act);

  test(
    "rdi, rsi, rdx and rcx are ip, parent ip, ops and registers, and each saved register is in its field",
    within(() => {
      const handler = address("klp_ftrace_handler");
      const fields = kind === "regs" ? (Object.keys(PT_REGS.fields) as Field[]) : PLAIN_FIELDS;
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
            ops: toWord(ops[kind].struct.at),
          });
          const saved = new StructView(lab.machine.memory, PT_REGS, addr(regs));
          const { rax, rbx, rcx, rdx, rsi, rdi, rbp, ...numbered } = entry.registers;
          const expected: Record<Field, bigint> = {
            ...numbered,
            ...{ ax: rax, bx: rbx, cx: rcx, dx: rdx, si: rsi, di: rdi, bp: rbp },
            ip: toWord(offset(redirect.site.ip, SITE_SIZE)),
            sp: toWord(rsp),
            flags: entry.rflags,
            orig_ax: 0n,
            cs: BigInt(CONSTANTS.KERNEL_CS),
            ss: BigInt(CONSTANTS.KERNEL_DS),
          };
          for (const field of fields) expect(saved.get(field), field).toBe(expected[field]);
          if (kind === "regs") expect(vcpu.rflags & FLAG.DF, "DF").toBe(0n);
          // pt_regs lies on the stack, just above the return address into the trampoline.
          expect(regs).toBe(toWord(offset(vcpu.rsp, 8)));
        }),
        { numRuns: 50, seed: 3 },
      );
    }),
  );

  test(
    "the stack is aligned as the ABI has it, if it was at the traced function's entry",
    within(() => {
      lab.begin(address("leaf"), [1n]);
      runTo(address("leaf"));
      expect(mod16(vcpu.rsp)).toBe(8);
      runTo(address("klp_ftrace_handler"));
      expect(mod16(vcpu.rsp)).toBe(8); // 16-aligned where the trampoline calls
    }),
  );
});

test("regs: the handler's changes to pt_regs are the registers afterwards, but for sp", () => {
  directed("regs", () => {
    const [entry] = fc.sample(entries, { numRuns: 1, seed: 4 });
    enter(entry!, redirect.site.ip);
    runTo(address("klp_ftrace_handler"));
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

test("regs: what the handler puts in orig_ax is gone to first, as if the site had called it", () => {
  directed("regs", () => {
    const [entry] = fc.sample(entries, { numRuns: 1, seed: 5 });
    enter(entry!, redirect.site.ip);
    runTo(address("klp_ftrace_handler"));
    new StructView(lab.machine.memory, PT_REGS, addr(vcpu.get("rcx"))).set("orig_ax", address("tail"));
    runTo(address("tail"));
    const rsp = entry!.registers.rsp - 8n;
    expect(vcpu.registers()).toEqual({ ...entry!.registers, rsp });
    expect(vcpu.rflags).toBe(entry!.rflags);
    // It returns to where the handler would have sent us.
    expect(lab.machine.memory.readWord(addr(rsp))).toBe(toWord(address("leaf_new")));
  });
});

describe.each([
  ["plain", "ftrace_ipmodify_caller"],
  ["regs", "ftrace_regs_caller"],
] as const)("a %s trampoline", (kind, name) => {
  test("is a copy of its template in which only the ops and whom it calls differ, wherever it lies", () => {
    const template = lab.symbol(name);
    const linked = lab.image.functionBytes(template);
    const holes = ["ops", "call"].map((label) => address(`${name}_${label}`) - template.address);
    directed(kind, () => {
      const { trampoline, struct } = ops[kind];
      const copy = lab.machine.memory.read(trampoline!.address, trampoline!.size);
      const expected = linked.slice();
      new DataView(expected.buffer).setBigUint64(holes[0]! + 2, toWord(struct.at), true);
      expected.set(
        callBytes(offset(trampoline!.address, holes[1]!), address("klp_ftrace_handler")),
        holes[1]!,
      );
      expect(Buffer.compare(copy, expected)).toBe(0);
      expect(lab.code.describe(trampoline!.address)).toMatch(/^ftrace_trampoline_[0-9a-f]{8}\+0x0\//);
    });
  });

  test("can be executed, not written, by the guest", () => {
    directed(kind, () => {
      const { address: at } = ops[kind].trampoline!;
      expect(lab.machine.memory.find(at)!.access).toEqual({ write: false, execute: true, user: false });
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
