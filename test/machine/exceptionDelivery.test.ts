// What goes wrong while an exception is delivered: another one, the double fault, the end.

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { addr, offset, toWord } from "../../src/base/addr.ts";
import { RFLAGS_AT_REST } from "../../src/x86/register.ts";
import {
  type GateOptions,
  GDT,
  IDT,
  KERNEL_DATA,
  KERNEL_STACK_TOP,
  onReturn,
  reset,
  resetToUser,
  SELECTOR,
  type SystemGuest,
  setGate,
  stepAll,
  systemGuest,
  TSS,
  USER_TEXT,
} from "./systemGuest.ts";

const IST_STACK = 3;

/** A kernel and a user that raise #UD at once. */
async function guestWith(gate: Partial<GateOptions> | "cut", user = false): Promise<SystemGuest> {
  const guest = await systemGuest({ kernel: "ud2\n vmcall", user: "ud2\n vmcall" });
  setGate(guest, 8, { handler: guest.at("vector8"), ist: IST_STACK });
  if (gate === "cut") guest.vcpu.system.setWord("idtLimit", 16n * 6n + 14n);
  else setGate(guest, 6, { handler: guest.at("vector6"), ...gate });
  for (const n of [10, 11, 12, 13, 14]) onReturn(guest, n, { skip: 2 });
  (user ? resetToUser : reset)(guest);
  return guest;
}

describe("a gate that cannot be used is another exception at the same instruction", () => {
  const BAD: Record<string, [Partial<GateOptions>, number, bigint]> = {
    "not present": [{ present: false }, 11, 0x33n],
    "no gate": [{ type: 5 }, 13, 0x33n],
    "null selector": [{ selector: 0 }, 13, 1n],
    "selector past the table": [{ selector: 0x1000 }, 13, 0x1001n],
    "selector of data": [{ selector: SELECTOR.kernelData }, 13, 0x19n],
    "selector of user code in the kernel": [{ selector: SELECTOR.userCode }, 13, 0x31n],
    "selector of a TSS": [{ selector: SELECTOR.tss }, 13, 0x41n],
    "handler not canonical": [{ handler: 0x8000_0000_0000n }, 13, 1n],
  };
  test.each(Object.keys(BAD))("%s", async (name) => {
    const [gate, vector, error] = BAD[name]!;
    const guest = await guestWith(gate);
    expect(guest.vcpu.run({ budget: 200 }).kind).toBe("hypercall");
    expect(guest.log()).toMatchObject([{ vector, error, rip: guest.at("kernel"), rsp: KERNEL_STACK_TOP }]);
  });

  test("a code segment that is not present", async () => {
    const guest = await guestWith({ selector: 0x20 });
    guest.machine.memory.writeWord(offset(GDT, 0x20), 0x00af_1b00_0000_ffffn);
    expect(guest.vcpu.run({ budget: 200 }).kind).toBe("hypercall");
    expect(guest.log()).toMatchObject([{ vector: 11, error: 0x21n }]);
  });

  test("a stack that is not canonical, or that the TSS does not have", async () => {
    const guest = await guestWith({ ist: 1 });
    guest.machine.memory.writeWord(offset(TSS, 0x24), 1n << 50n);
    expect(guest.vcpu.run({ budget: 200 }).kind).toBe("hypercall");
    expect(guest.log()).toMatchObject([{ vector: 12, error: 1n }]);
    reset(guest);
    guest.vcpu.system.setWord("tssLimit", 0x2an);
    expect(guest.vcpu.run({ budget: 200 }).kind).toBe("hypercall");
    expect(guest.log()).toMatchObject([{ vector: 10, error: 0x41n }]);
  });

  test("a stack that is not mapped: the page fault on another one, with cr2, as the kernel's write", async () => {
    const guest = await guestWith({ ist: 1 });
    guest.machine.memory.writeWord(offset(TSS, 0x24), 0x7000_0000n);
    expect(guest.vcpu.run({ budget: 200 }).kind).toBe("hypercall");
    expect(guest.log()).toMatchObject([
      { vector: 14, error: 2n, cr2: 0x7000_0000n - 40n, rip: guest.at("kernel") },
    ]);
  });

  test("int n from user code against the gate's level: #GP at the instruction, which has not retired", async () => {
    const guest = await systemGuest({ user: "nop\n here: int $50\n int3\n vmcall\n.globl here" });
    onReturn(guest, 13, { skip: 2 });
    resetToUser(guest);
    setGate(guest, 3, { handler: guest.at("vector3"), dpl: 3 });
    for (const run of [() => guest.vcpu.run({ budget: 300 }), () => stepAll(guest)]) {
      resetToUser(guest);
      expect(run().kind).toBe("hypercall");
      expect(guest.log()).toMatchObject([
        { vector: 13, error: 50n * 8n + 2n, rip: guest.at("here") },
        { vector: 3, rip: offset(guest.at("here"), 3) },
      ]);
    }
    setGate(guest, 3, { handler: guest.at("vector3"), dpl: 0 });
    onReturn(guest, 13, { skip: 1 });
    resetToUser(guest);
    guest.vcpu.rip = offset(guest.at("here"), 2);
    const before = guest.vcpu.instructions;
    expect(guest.vcpu.run({ until: guest.at("vector13") }).kind).toBe("reached");
    expect(guest.vcpu.instructions).toBe(before);
    expect(guest.vcpu.run({ budget: 300 }).kind).toBe("hypercall");
    expect(guest.log()).toMatchObject([{ vector: 13, error: 26n, rip: offset(guest.at("here"), 2) }]);
  });
});

describe("double faults", () => {
  /** What raises the first, and what is wrong with the gates: vectors whose gates cannot be used. */
  const FIRST: Record<string, string> = {
    "#DE": "xor %ecx,%ecx; here: div %ecx",
    "#UD": "here: ud2",
    "#GP": "movabs $0x800000000000,%rcx; here: mov (%rcx),%eax",
    "#PF": "here: mov 0x1000,%eax",
    "int 13": "here: int $13",
    "int 14": "here: int $14",
  };
  const NUMBER: Record<string, number> = {
    "#DE": 0,
    "#UD": 6,
    "#GP": 13,
    "#PF": 14,
    "int 13": 13,
    "int 14": 14,
  };
  // Rows: the first; columns: #NP of a gate, #PF of its stack (SDM vol. 3, table 6-5).
  const DOUBLE: Record<string, [boolean, boolean]> = {
    "#DE": [true, false],
    "#UD": [false, false],
    "#GP": [true, false],
    "#PF": [true, true],
    "int 13": [false, false],
    "int 14": [false, false],
  };
  for (const first of Object.keys(FIRST)) {
    test.each([0, 1])(`${first}, then #NP or #PF: %i`, async (column) => {
      const guest = await systemGuest({ kernel: `nop\n ${FIRST[first]}\n vmcall\n.globl here` });
      setGate(guest, 8, { handler: guest.at("vector8"), ist: IST_STACK });
      // A page fault must find a gate of its own; so the first #PF's stack is bad only for that.
      const handler = guest.at(`vector${NUMBER[first]}`);
      guest.machine.memory.writeWord(offset(TSS, 0x24), 0x7000_0000n);
      if (column === 0) setGate(guest, NUMBER[first]!, { handler, present: false });
      else setGate(guest, NUMBER[first]!, { handler, ist: 1 });
      reset(guest);
      guest.vcpu.run({ budget: 60 });
      const second = column === 0 ? 11 : 14;
      const [logged] = guest.log();
      if (first === "int 14" && column === 1) {
        // Its own page fault has the same bad stack.
        expect(logged).toMatchObject({ vector: 8, error: 0n });
        return;
      }
      expect(logged).toMatchObject({ vector: DOUBLE[first]![column] ? 8 : second, rip: guest.at("here") });
    });
  }

  test("the double fault's own fault is the end", async () => {
    const guest = await guestWith({ present: false });
    for (const n of [8, 11]) setGate(guest, n, { handler: guest.at(`vector${n}`), present: false });
    setGate(guest, 13, { handler: guest.at("vector13"), present: false });
    expect(guest.vcpu.run({ budget: 200 })).toEqual({ kind: "shutdown", ip: guest.at("kernel") });
    expect(guest.log()).toEqual([]);
    reset(guest);
    expect(stepAll(guest)).toEqual({ kind: "shutdown", ip: guest.at("kernel") });
  });

  test("no table worth the name: a limit of 1", async () => {
    const guest = await guestWith({});
    guest.vcpu.system.setWord("idtLimit", 1n);
    expect(guest.vcpu.run()).toMatchObject({ kind: "shutdown" });
  });

  test("a table that ends early", async () => {
    const guest = await guestWith("cut");
    expect(guest.vcpu.run()).toMatchObject({ kind: "shutdown" });
  });

  test("user code with a bad RSP0, kept from #DF by an interrupt stack", async () => {
    const guest = await guestWith({}, true);
    guest.machine.memory.writeWord(offset(TSS, 4), 0x7000_0000n);
    guest.vcpu.run({ budget: 60 });
    // #UD: #PF of the stack; #PF in turn: #DF, which has a stack.
    expect(guest.log()).toMatchObject([{ vector: 8, cs: BigInt(SELECTOR.userCode), rip: USER_TEXT }]);
  });
});

describe("bounded", () => {
  test("a handler that faults for ever runs out of budget, run and stepped", async () => {
    const guest = await guestWith({});
    setGate(guest, 6, { handler: guest.at("kernel"), ist: 1 });
    const before = guest.vcpu.instructions;
    expect(guest.vcpu.run({ budget: 10_000 }).kind).toBe("budget");
    expect(guest.vcpu.instructions).toBe(before);
    expect(guest.vcpu.run({ budget: 1 }).kind).toBe("budget");
  });

  test("10,000 tables of anything, faults of any kind: always an exit", async () => {
    const guest = await systemGuest({
      kernel: "int $33; mov 0x1000,%rax; iretq; ud2; lretq; vmcall",
      user: "mov 0x1000,%rax; int $33; syscall; ud2; hlt",
    });
    const { memory } = guest.machine;
    const word = fc.oneof(
      fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
      fc.constantFrom(
        0n,
        toWord(KERNEL_DATA),
        toWord(guest.at("kernel")),
        0x00af_9b00_0000_ffffn,
        0x00af_fb00_0000_ffffn,
      ),
      // A gate's low word that may well work.
      fc
        .tuple(
          fc.constantFrom(0x10n, 0x30n, 0x33n, 0x18n),
          fc.nat(7),
          fc.constantFrom(0x8en, 0x8fn, 0xeen, 0x0en),
        )
        .map(
          ([selector, ist, type]) =>
            (toWord(guest.at("vector6")) & 0xffffn) |
            (selector << 16n) |
            (BigInt(ist) << 32n) |
            (type << 40n) |
            (0x8100n << 48n),
        ),
    );
    const KINDS = ["budget", "hypercall", "halt", "fault", "interrupt", "shutdown", "unimplemented"];
    const place = fc.oneof(
      fc.nat(9).map((n) => offset(GDT, 8 * n)),
      fc.nat(40).map((n) => offset(IDT, 8 * n)),
      fc.constantFrom(66, 67).map((n) => offset(IDT, 8 * n)),
      fc.nat(13).map((n) => offset(TSS, 8 * n)),
    );
    fc.assert(
      fc.property(
        fc.array(fc.tuple(place, word), { minLength: 1, maxLength: 8 }),
        fc.boolean(),
        fc.nat(5),
        fc.record({ vector: fc.nat(255), rflags: fc.bigInt({ min: 0n, max: 2n ** 22n - 1n }), rsp: word }),
        (changes, user, skip, { vector, rflags, rsp }) => {
          const kept = changes.map(([at]) => [at, memory.readWord(at)] as const);
          for (const [at, value] of changes) memory.writeWord(at, value);
          (user ? resetToUser : reset)(guest);
          guest.vcpu.rflags = rflags | 2n;
          if (skip > 3) guest.vcpu.set("rsp", rsp);
          if (skip === 2) guest.vcpu.interrupt(vector);
          if (skip === 3) guest.vcpu.nmi();
          guest.vcpu.rip = offset(guest.vcpu.rip, skip % 3);
          const exit = guest.vcpu.run({ budget: 40 });
          expect(KINDS).toContain(exit.kind);
          for (const [at, value] of kept.reverse()) memory.writeWord(at, value);
        },
      ),
      { numRuns: 10_000, seed: 7 },
    );
  }, 60_000);
});

test("without a table, faults are the laboratory's", async () => {
  const guest = await guestWith({});
  guest.vcpu.system.setWord("idtLimit", 0n);
  expect(guest.vcpu.run()).toEqual({ kind: "fault", ip: guest.at("kernel"), fault: { vector: "#UD" } });
  guest.vcpu.rip = offset(guest.at("kernel"), 2);
  guest.vcpu.rflags = RFLAGS_AT_REST;
  guest.vcpu.interrupt(77);
  expect(guest.vcpu.run()).toEqual({ kind: "interrupt", ip: addr(guest.at("kernel") + 2), vector: 77 });
  expect(guest.vcpu.run().kind).toBe("hypercall");
});
