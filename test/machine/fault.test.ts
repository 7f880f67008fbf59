// What guest code does wrong is a value that says where, and nothing of the instruction has happened: met for
// the first time, or in code that was compiled long ago.

import { describe, expect, test } from "vitest";
import { type Addr, addr, offset, PAGE_SIZE } from "../../src/base/addr.ts";
import { sameBytes } from "../../src/base/bytes.ts";
import { describeExit, type Fault, PAGE_FAULT } from "../../src/machine/exit.ts";
import {
  counted,
  DATA,
  DATA_PAGES,
  type Guest,
  loopOf,
  makeGuest,
  type Registers,
  RO,
  RW,
  RX,
  restart,
  STACK,
  STACK_TOP,
  setRegisters,
  stateOf,
  TEXT,
  TEXT_PAGES,
} from "./guest.ts";

const END = offset(DATA, DATA_PAGES * PAGE_SIZE);
const READ_ONLY = addr(0xffff_8881_0000_0000n);
const NOT_CANONICAL = 0x8000_0000_0000_0000n;
const { present, write, fetch } = PAGE_FAULT;

const pf = (errorCode: number, address: Addr, size: number): Fault => ({
  vector: "#PF",
  errorCode,
  address,
  size,
});

function guestOf(code: string): Guest {
  const guest = makeGuest(code);
  guest.machine.memory.map(READ_ONLY, PAGE_SIZE, RO);
  return guest;
}

interface Case {
  readonly what: string;
  readonly body: string;
  /** Makes the body fault; `fine` makes it not. */
  readonly bad: Registers;
  readonly fine: Registers;
  readonly fault: Fault;
}

const CASES: readonly Case[] = [
  {
    what: "mov (%rbx),%rax, unmapped",
    body: "48 8b 03",
    bad: { rbx: END },
    fine: { rbx: DATA },
    fault: pf(0, END, 8),
  },
  {
    what: "mov (%rbx),%rax, null",
    body: "48 8b 03",
    bad: { rbx: 0 },
    fine: { rbx: DATA },
    fault: pf(0, addr(0), 8),
  },
  {
    what: "mov (%rbx),%rax, not canonical",
    body: "48 8b 03",
    bad: { rbx: NOT_CANONICAL },
    fine: { rbx: DATA },
    fault: { vector: "#GP", errorCode: 0 },
  },
  {
    what: "mov (%rbx),%rax, into the hole",
    body: "48 8b 03",
    bad: { rbx: 0x7fff_ffff_fffcn },
    fine: { rbx: DATA },
    fault: { vector: "#GP", errorCode: 0 },
  },
  {
    what: "mov %rax,(%rbx), half unmapped",
    body: "48 89 03",
    bad: { rbx: END - 4 },
    fine: { rbx: DATA },
    fault: pf(write, END, 8),
  },
  {
    what: "mov (%rbx),%eax, half unmapped",
    body: "8b 03",
    bad: { rbx: END - 1 },
    fine: { rbx: DATA },
    fault: pf(0, END, 4),
  },
  {
    what: "mov %al,(%rbx), read-only",
    body: "88 03",
    bad: { rbx: READ_ONLY },
    fine: { rbx: DATA },
    fault: pf(present | write, READ_ONLY, 1),
  },
  {
    what: "add %rax,(%rbx), read-only",
    body: "48 01 03",
    bad: { rbx: READ_ONLY + 8 },
    fine: { rbx: DATA },
    fault: pf(present | write, offset(READ_ONLY, 8), 8),
  },
  {
    what: "push %rax, below the stack",
    body: "50",
    bad: { rsp: STACK },
    fine: {},
    fault: pf(write, offset(STACK, -8), 8),
  },
  {
    what: "pop %rax, above the stack",
    body: "58",
    bad: {},
    fine: { rsp: STACK },
    fault: pf(0, STACK_TOP, 8),
  },
  {
    what: "push (%rbx), source unmapped",
    body: "ff 33",
    bad: { rbx: END },
    fine: { rbx: DATA },
    fault: pf(0, END, 8),
  },
  {
    what: "pop (%rbx), destination unmapped",
    body: "8f 03",
    bad: { rbx: END, rsp: STACK },
    fine: { rbx: DATA, rsp: STACK },
    fault: pf(write, END, 8),
  },
  {
    what: "movsq, destination unmapped",
    body: "48 a5",
    bad: { rsi: DATA, rdi: END },
    fine: { rsi: DATA, rdi: DATA },
    fault: pf(write, END, 8),
  },
  {
    what: "cmpsb, second unmapped",
    body: "a6",
    bad: { rsi: DATA, rdi: END },
    fine: { rsi: DATA, rdi: DATA },
    fault: pf(0, END, 1),
  },
  { what: "leave, frame unmapped", body: "c9", bad: { rbp: END }, fine: { rbp: DATA }, fault: pf(0, END, 8) },
  {
    what: "xchg %rax,(%rbx), half unmapped",
    body: "48 87 03",
    bad: { rbx: END - 7 },
    fine: { rbx: DATA },
    fault: pf(write, END, 8),
  },
  {
    what: "cmpxchg %rdx,(%rbx), read-only",
    body: "48 0f b1 13",
    bad: { rbx: READ_ONLY },
    fine: { rbx: DATA },
    fault: pf(present | write, READ_ONLY, 8),
  },
  { what: "div %rbx by zero", body: "48 f7 f3", bad: {}, fine: { rbx: 1 }, fault: { vector: "#DE" } },
];

describe.each(CASES)("$what", ({ body, bad, fine, fault }) => {
  // Flags and rax are set before, so that what the instruction would change shows: stc; body; the loop's end.
  const code = loopOf(`f9 ${body}`);
  const ip = offset(TEXT, 1);

  function expectFault(guest: Guest, act: (guest: Guest) => unknown): void {
    restart(guest, { rax: 0x1234n, ...bad, rcx: 77 });
    guest.vcpu.step();
    const before = stateOf(guest);
    const data = guest.machine.memory.read(DATA, END - DATA);
    const { result, instructions } = counted(guest, () => act(guest));
    expect(result).toEqual({ kind: "fault", ip, fault });
    expect(instructions).toBe(0);
    expect(stateOf(guest)).toEqual(before);
    expect(sameBytes(guest.machine.memory.read(DATA, END - DATA), data)).toBe(true);
    expect(act(guest)).toEqual(result); // and again, if nobody helps
  }

  test("stepped", () => expectFault(guestOf(code), ({ vcpu }) => vcpu.step()));

  test("run", () => expectFault(guestOf(code), ({ vcpu }) => vcpu.run()));

  test("in a region, with the rest of it retired exactly", () => {
    const guest = guestOf(code);
    for (let n = 0; n < 250; n++) {
      setRegisters(guest, { ...fine, rcx: 1 });
      guest.vcpu.run({ budget: 3 });
    }
    expect(guest.machine.regions.activeCount).toBeGreaterThan(0);
    expectFault(guest, ({ vcpu }) => vcpu.run());
    restart(guest, { rax: 0x1234n, ...bad, rcx: 77 });
    const { result, instructions } = counted(guest, () => guest.vcpu.run());
    expect([result, instructions]).toEqual([{ kind: "fault", ip, fault }, 1]);
    expect([guest.vcpu.get("rcx"), guest.vcpu.rflags & 1n]).toEqual([77n, 1n]);
  });
});

describe("a loop that runs off its memory faults at the very element", () => {
  const elements = (END - DATA) / 8;

  test.each([
    // 0: mov (%rbx),%rax; add $8,%rbx; dec %rcx; jne 0
    ["reading", "48 8b 03 48 83 c3 08", 0],
    // 0: mov %rcx,(%rbx); add $8,%rbx; dec %rcx; jne 0
    ["writing", "48 89 0b 48 83 c3 08", write],
  ])("%s", (_, body, errorCode) => {
    const guest = makeGuest(loopOf(body));
    restart(guest, { rbx: DATA, rcx: 100_000 });
    const { result, instructions } = counted(guest, () => guest.vcpu.run());
    expect(result).toEqual({ kind: "fault", ip: TEXT, fault: pf(errorCode, END, 8) });
    expect(guest.vcpu.getNumber("rbx")).toBe(END);
    expect(guest.vcpu.getNumber("rcx")).toBe(100_000 - elements);
    expect(instructions).toBe(4 * elements);
  });

  test("pushing, and goes on when the page is mapped", () => {
    const guest = makeGuest("50 48 ff c0 eb fa"); // 0: push %rax; inc %rax; jmp 0
    const below = offset(STACK, -PAGE_SIZE);
    expect(guest.vcpu.run()).toEqual({ kind: "fault", ip: TEXT, fault: pf(write, offset(STACK, -8), 8) });
    expect([guest.vcpu.rsp, guest.vcpu.get("rax")]).toEqual([STACK, 2048n]);
    guest.machine.memory.map(below, PAGE_SIZE, RW);
    expect(guest.vcpu.run()).toEqual({ kind: "fault", ip: TEXT, fault: pf(write, offset(below, -8), 8) });
    expect(guest.machine.memory.readWord(below)).toBe(2048n + 511n);
  });

  test("repeating: the iterations before it are done", () => {
    const guest = makeGuest("f3 48 ab"); // rep stosq
    restart(guest, { rdi: END - 40, rcx: 9, rax: 3 });
    const { result, instructions } = counted(guest, () => guest.vcpu.run());
    expect(result).toEqual({ kind: "fault", ip: TEXT, fault: pf(write, END, 8) });
    expect([instructions, guest.vcpu.get("rcx"), guest.vcpu.getNumber("rdi")]).toEqual([5, 4n, END]);
  });
});

describe("permissions that change are seen at once, by compiled code too", () => {
  const code = loopOf("48 89 03"); // mov %rax,(%rbx)

  test("protect, unmap, map", () => {
    const guest = makeGuest(code);
    const { memory } = guest.machine;
    const run = () => {
      setRegisters(guest, { rbx: DATA, rcx: 1000 });
      return guest.vcpu.run();
    };
    for (let round = 0; round < 3; round++) {
      expect(run().kind).toBe("hypercall");
      memory.protect(DATA, PAGE_SIZE, RO);
      expect(run()).toMatchObject({ fault: pf(present | write, DATA, 8) });
      memory.unmap(DATA, PAGE_SIZE);
      expect(run()).toMatchObject({ fault: pf(write, DATA, 8) });
      memory.map(DATA, PAGE_SIZE, RW);
    }
  });
});

describe("fetches", () => {
  test.each([
    ["unmapped", addr(0x1000), pf(fetch, addr(0x1000), 1)],
    ["not executable", DATA, pf(fetch | present, DATA, 1)],
  ])("%s", (_, at, fault) => {
    const guest = makeGuest("ff e0"); // jmp *%rax
    restart(guest, { rax: at });
    expect(guest.vcpu.run()).toEqual({ kind: "fault", ip: at, fault });
    expect(guest.vcpu.rip).toBe(at);
  });

  test("of an instruction that ends beyond its page name the page that is missing", () => {
    const guest = makeGuest("90");
    const last = offset(TEXT, TEXT_PAGES * PAGE_SIZE - 2);
    guest.machine.memory.write(last, Uint8Array.of(0x48, 0xb8)); // movabs
    guest.vcpu.rip = last;
    const next = offset(last, 2);
    expect(guest.vcpu.step()).toEqual({ kind: "fault", ip: last, fault: pf(fetch, next, 1) });
    guest.machine.memory.map(next, PAGE_SIZE, RO);
    expect(guest.vcpu.step()).toEqual({ kind: "fault", ip: last, fault: pf(fetch | present, next, 1) });
    guest.machine.memory.protect(next, PAGE_SIZE, RX);
    expect(guest.vcpu.step()).toBeUndefined();
  });

  test("of a branch to an address that is not canonical fault before it happens", () => {
    const guest = makeGuest("50 c3"); // push %rax; ret
    restart(guest, { rax: NOT_CANONICAL });
    expect(guest.vcpu.run()).toEqual({
      kind: "fault",
      ip: offset(TEXT, 1),
      fault: { vector: "#GP", errorCode: 0 },
    });
    expect(guest.vcpu.rsp).toBe(STACK_TOP - 8);
  });

  test("at either end of the address space do not throw", () => {
    for (const page of [addr(2 ** 47 - PAGE_SIZE), addr(-PAGE_SIZE)]) {
      const guest = makeGuest("90");
      guest.machine.memory.map(page, PAGE_SIZE, RX);
      guest.machine.memory.write(offset(page, 4094), Uint8Array.of(0x90, 0x48)); // nop; half an instruction
      guest.vcpu.rip = offset(page, 4094);
      expect(guest.vcpu.run()).toMatchObject({ kind: "fault", ip: page + 4095 });
    }
  });
});

describe("what stops the machine", () => {
  test.each([
    ["0f 01 c1", { kind: "hypercall" }, 3, 1, "hypercall at 0xffffffff81000000"],
    ["f4", { kind: "halt" }, 1, 1, "halted at 0xffffffff81000000"],
    ["cc", { kind: "fault", fault: { vector: "#BP" } }, 1, 1, "#BP at 0xffffffff81000000"],
    ["0f 0b", { kind: "fault", fault: { vector: "#UD" } }, 0, 0, "#UD at 0xffffffff81000000"],
    ["0f 04 00", { kind: "fault", fault: { vector: "#UD" } }, 0, 0, "#UD at 0xffffffff81000000"],
    ["f0 90", { kind: "fault", fault: { vector: "#UD" } }, 0, 0, "#UD at 0xffffffff81000000"],
    [
      "0f 58 c1",
      { kind: "unimplemented", bytes: Uint8Array.of(0x0f, 0x58, 0xc1), text: "addps %xmm1,%xmm0" },
      0,
      0,
      "unimplemented instruction at 0xffffffff81000000: addps %xmm1,%xmm0 (0f 58 c1)",
    ],
  ])("%s", (code, exit, length, retired, line) => {
    for (const act of ["step", "run"] as const) {
      const guest = makeGuest(code);
      const before = stateOf(guest);
      const { result, instructions } = counted(guest, () => guest.vcpu[act]());
      expect(result).toEqual({ ...exit, ip: TEXT });
      expect(describeExit(result!)).toBe(line);
      expect(instructions).toBe(retired);
      expect(stateOf(guest)).toEqual({ ...before, rip: TEXT + length });
    }
  });

  test.each(["0f 01 c1", "f4", "cc", "0f 0b", "0f 58 c1"])(
    "%s also inside a loop that is compiled",
    (stop) => {
      // 0: add %rcx,%rax; test %rdx,%rdx; je over; stop; over: dec %rcx; jne 0; vmcall
      const size = stop.split(" ").length;
      const guest = makeGuest(loopOf(`48 01 c8 48 85 d2 74 0${size} ${stop}`));
      restart(guest, { rcx: 5000 });
      expect(guest.vcpu.run()).toMatchObject({ kind: "hypercall", ip: TEXT + 8 + size + 5 });
      restart(guest, { rcx: 5000, rdx: 1 });
      const { result, instructions } = counted(guest, () => guest.vcpu.run());
      expect(result.ip).toBe(TEXT + 8);
      expect([guest.vcpu.get("rcx"), guest.vcpu.get("rax")]).toEqual([5000n, 5000n]);
      expect(instructions).toBe(guest.vcpu.rip === TEXT + 8 ? 3 : 4);
    },
  );
});
