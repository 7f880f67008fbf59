// What an exception pushes, where, and with which flags; and that its handler's iretq goes on where it must.

import { describe, expect, test } from "vitest";
import { type Addr, addr, offset, toWord } from "../../src/base/addr.ts";
import { FLAG } from "../../src/x86/register.ts";
import {
  ENTRY_STACK_TOP,
  istTop,
  KERNEL_STACK_TOP,
  KERNEL_TEXT,
  onReturn,
  reset,
  resetToUser,
  SELECTOR,
  type SystemGuest,
  setGate,
  stepAll,
  systemGuest,
  USER_DATA,
  USER_STACK_TOP,
} from "./systemGuest.ts";

interface Case {
  readonly vector: number;
  /** Raises it, at `here`; what follows sets rbx. */
  readonly code: string;
  /** Bytes of the instruction at `here`. */
  readonly length: number;
  readonly trap?: boolean;
  readonly error?: bigint;
  readonly cr2?: bigint;
}

const UNMAPPED = 0x12345678;
const CASES: Record<string, Case> = {
  "#DE": { vector: 0, code: "xor %ecx,%ecx; here: div %ecx", length: 2 },
  "#DB by int1": { vector: 1, code: "here: .byte 0xf1", length: 1, trap: true },
  "#BP": { vector: 3, code: "here: int3", length: 1, trap: true },
  "int 4": { vector: 4, code: "here: int $4", length: 2, trap: true },
  "#UD": { vector: 6, code: "here: ud2", length: 2 },
  "#GP by int n without a gate": { vector: 13, code: "here: int $100", length: 2, error: (100n << 3n) | 2n },
  "#GP by an address": {
    vector: 13,
    code: "movabs $0x800000000000,%rcx; here: mov (%rcx),%eax",
    length: 2,
    error: 0n,
  },
  "#SS by an address": {
    vector: 12,
    code: "movabs $0x800000000000,%rbp; here: mov (%rbp),%eax",
    length: 3,
    error: 0n,
  },
  "#GP by a selector": { vector: 13, code: "mov $0x78,%ecx; here: mov %ecx,%ds", length: 2, error: 0x78n },
  "#PF read": { vector: 14, code: `here: mov ${UNMAPPED},%eax`, length: 7, error: 0n, cr2: BigInt(UNMAPPED) },
  "#PF write": { vector: 14, code: `here: movb $1,${UNMAPPED}`, length: 8, error: 2n, cr2: BigInt(UNMAPPED) },
  "int 200": { vector: 200, code: "here: int $200", length: 2, trap: true },
};

const body = (code: string, end: string) => `mov $0x11,%r8d\n nop\n ${code}\n mov $0x22,%ebx\n ${end}`;

async function guestOf({ code, vector, length, trap }: Case, user: boolean): Promise<SystemGuest> {
  const guest = await systemGuest(
    user
      ? { user: `${body(code, "vmcall")}\n.globl here` }
      : { kernel: `${body(code, "vmcall")}\n.globl here` },
  );
  for (const n of [1, 3, 4, 200]) setGate(guest, n, { handler: guest.at(`vector${n}`), dpl: 3 });
  onReturn(guest, vector, { skip: trap ? 0 : length });
  return guest;
}

const MODES: Record<string, (guest: SystemGuest) => unknown> = {
  run: ({ vcpu }) => vcpu.run({ budget: 1000 }),
  stepped: (guest) => stepAll(guest, 1000),
};

describe.each(Object.keys(MODES))("%s", (mode) => {
  test.each(Object.keys(CASES))("%s in the kernel, on its own stack", async (name) => {
    const theCase = CASES[name]!;
    const guest = await guestOf(theCase, false);
    for (const rsp of [KERNEL_STACK_TOP, offset(KERNEL_STACK_TOP, -5)]) {
      reset(guest);
      guest.vcpu.rsp = rsp;
      guest.vcpu.rflags = 2n | FLAG.CF | FLAG.DF | FLAG.IF;
      expect(MODES[mode]!(guest)).toMatchObject({ kind: "hypercall" });
      expect(guest.vcpu.get("rbx")).toBe(0x22n);
      expect(guest.vcpu.rsp).toBe(rsp);
      const [frame, ...more] = guest.log();
      expect(more).toEqual([]);
      expect(frame).toMatchObject({
        vector: theCase.vector,
        error: theCase.error ?? 0n,
        rip: offset(guest.at("here"), theCase.trap ? theCase.length : 0),
        cs: BigInt(SELECTOR.kernelCode),
        rsp,
        ss: BigInt(SELECTOR.kernelData),
        frame: offset((Math.floor(rsp / 16) * 16) as Addr, -48),
      });
      if (theCase.cr2 !== undefined) expect(frame!.cr2).toBe(theCase.cr2);
      expect(frame!.rflags & (FLAG.RF | FLAG.IF | FLAG.DF)).toBe(
        FLAG.IF | FLAG.DF | (theCase.trap ? 0n : FLAG.RF),
      );
    }
  });

  test.each(Object.keys(CASES))("%s in user code, on the kernel's stack", async (name) => {
    const theCase = CASES[name]!;
    const guest = await guestOf(theCase, true);
    resetToUser(guest);
    guest.vcpu.rflags = 2n | FLAG.IF;
    expect(MODES[mode]!(guest)).toMatchObject({ kind: "hypercall" });
    expect(guest.vcpu.get("rbx")).toBe(0x22n);
    expect(guest.vcpu.system.user).toBe(true);
    const [frame, ...more] = guest.log();
    expect(more).toEqual([]);
    expect(frame).toMatchObject({
      vector: theCase.vector,
      error: theCase.vector === 14 ? theCase.error! | 4n : (theCase.error ?? 0n),
      rip: offset(guest.at("here"), theCase.trap ? theCase.length : 0),
      cs: BigInt(SELECTOR.userCode),
      rsp: USER_STACK_TOP,
      ss: BigInt(SELECTOR.userData),
      frame: offset(ENTRY_STACK_TOP, -48),
    });
  });
});

test("a count of instructions is the same run and stepped, whatever is delivered", async () => {
  for (const theCase of Object.values(CASES)) {
    for (const user of [false, true]) {
      const counts = [];
      for (const mode of Object.values(MODES)) {
        const guest = await guestOf(theCase, user);
        (user ? resetToUser : reset)(guest);
        mode(guest);
        counts.push(guest.vcpu.instructions);
      }
      expect(counts[0]).toBe(counts[1]);
    }
  }
});

test("interrupt stacks, whatever the level and rsp; interrupt and trap gates", async () => {
  for (const user of [false, true]) {
    for (let ist = 1; ist <= 7; ist++) {
      const guest = await guestOf(CASES["#UD"]!, user);
      const type = 14 + (ist % 2);
      setGate(guest, 6, { handler: guest.at("vector6"), ist, type });
      (user ? resetToUser : reset)(guest);
      guest.vcpu.rsp = addr(0x1000);
      guest.vcpu.rflags = 2n | FLAG.IF | FLAG.NT | FLAG.AC;
      expect(guest.vcpu.run({ until: guest.at("vector6") }).kind).toBe("reached");
      expect(guest.vcpu.rsp).toBe(offset(istTop(ist), -40));
      expect(guest.vcpu.rflags).toBe(2n | FLAG.AC | (type === 15 ? FLAG.IF : 0n));
      expect(guest.vcpu.system.user).toBe(false);
      guest.vcpu.run({ budget: 1000 });
      expect(guest.log()).toMatchObject([{ vector: 6, rsp: 0x1000 }]);
      expect(guest.vcpu.rflags & (FLAG.NT | FLAG.IF)).toBe(FLAG.NT | FLAG.IF);
      expect(guest.vcpu.get("rbx")).toBe(0x22n);
    }
  }
});

test("a fault in a hot loop, at each place of it, every time or never again", async () => {
  const lines = ["add $1,%rax", "lea 3(%rax),%rcx", "xor %rcx,%rdx", "add $2,%rsi"];
  for (let place = 0; place <= lines.length; place++) {
    const code = [...lines.slice(0, place), "here: mov (%rdi),%r9", ...lines.slice(place)].join("\n");
    const loop = `mov $1000,%r15d\n movabs $${USER_DATA},%rdi\n.Lagain: cmp $500,%r15\n jne .Lfine\n movabs $0x5000000,%rdi
      .Lfine: ${code}\n dec %r15\n jne .Lagain\n vmcall\n .globl here`;
    const results = [];
    for (const mode of Object.values(MODES)) {
      const guest = await systemGuest({ user: loop });
      onReturn(guest, 14, { skip: 3 });
      resetToUser(guest);
      if (mode === MODES.run) guest.vcpu.run();
      else stepAll(guest);
      expect(guest.log().length).toBe(500);
      expect(guest.log()[3]).toMatchObject({ vector: 14, error: 4n, rip: guest.at("here"), cr2: 0x5000000n });
      results.push({ ...guest.vcpu.registers(), flags: guest.vcpu.rflags, count: guest.vcpu.instructions });
    }
    expect(results[0]).toEqual(results[1]);
    expect(results[0]!.rax).toBe(1000n);
  }
});

test("a fetch fault has rip and cr2 at the page; a fetch by user code of the kernel's text", async () => {
  const guest = await systemGuest({ user: `movabs $${toWord(KERNEL_TEXT)},%rax\n jmp *%rax` });
  resetToUser(guest);
  expect(guest.vcpu.run({ until: guest.at("vector14") }).kind).toBe("reached");
  guest.vcpu.run({ budget: 30 });
  expect(guest.log()[0]).toMatchObject({
    vector: 14,
    error: 0x15n,
    rip: KERNEL_TEXT,
    cr2: toWord(KERNEL_TEXT),
  });
});
