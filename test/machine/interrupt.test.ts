// External interrupts: taken at the first boundary that allows them, whichever way the code there is executed.

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { toWord } from "../../src/base/addr.ts";
import { FLAG, RFLAGS_AT_REST } from "../../src/x86/register.ts";
import {
  ENTRY_STACK_TOP,
  istTop,
  KERNEL_DATA,
  reset,
  resetToUser,
  SELECTOR,
  type SystemGuest,
  setGate,
  stepAll,
  systemGuest,
  USER_STACK_TOP,
} from "./systemGuest.ts";

const vectors = (guest: SystemGuest): number[] => guest.log().map(({ vector }) => vector);

test("several pending: the highest first; a vector that is not one is refused", async () => {
  const guest = await systemGuest({ kernel: "nop\n sti\n nop\n here: nop\n nop\n vmcall" });
  for (const vector of [33, 200, 40, 255, 32, 63]) guest.vcpu.interrupt(vector);
  guest.vcpu.interrupt(33); // is one request still
  expect(guest.vcpu.run().kind).toBe("hypercall");
  expect(vectors(guest)).toEqual([255, 200, 63, 40, 33, 32]);
  for (const { rip, rflags } of guest.log()) {
    expect(rip).toBe(guest.at("here"));
    expect(rflags & (FLAG.RF | FLAG.IF)).toBe(FLAG.IF);
  }
  for (const bad of [-1, 256, 1.5]) expect(() => guest.vcpu.interrupt(bad)).toThrow(/vector/);
});

test("from user code, through RSP0 and through an interrupt stack", async () => {
  const guest = await systemGuest({ user: "nop\n here: nop\n vmcall\n.globl here" });
  for (const ist of [0, 4]) {
    setGate(guest, 50, { handler: guest.at("vector50"), ist });
    resetToUser(guest);
    guest.vcpu.rflags = RFLAGS_AT_REST;
    guest.vcpu.step();
    guest.vcpu.interrupt(50);
    expect(guest.vcpu.run().kind).toBe("hypercall");
    expect(guest.log()).toMatchObject([
      {
        vector: 50,
        rip: guest.at("here"),
        cs: BigInt(SELECTOR.userCode),
        rsp: USER_STACK_TOP,
        frame: (ist === 0 ? ENTRY_STACK_TOP : istTop(ist)) - 48,
      },
    ]);
  }
});

describe("the shadow", () => {
  const cases: [string, string][] = [
    ["sti; a: nop; b: vmcall", "b"],
    ["sti; a: cli; b: vmcall", ""],
    ["sti; a: jmp b; b: vmcall", "b"],
    ["sti; nop; sti; a: nop; b: vmcall", "early"],
    ["mov $0x18,%ecx; sti; nop; b: vmcall", "b"],
    ["pushq $0x202; popfq; b: nop; vmcall", "b"],
  ];
  test.each(cases)("%s: taken at %s", async (code, where) => {
    for (const step of [false, true]) {
      const guest = await systemGuest({ kernel: code.split("; ").join("\n") });
      guest.vcpu.interrupt(50);
      expect((step ? stepAll(guest) : guest.vcpu.run()).kind).toBe("hypercall");
      if (where === "") expect(vectors(guest)).toEqual([]);
      else if (where === "early") expect(guest.log()[0]!.rip).toBe(guest.at("a") - 1);
      else expect(guest.log()).toMatchObject([{ vector: 50, rip: guest.at(where) }]);
    }
  });

  test("of a load of ss, for NMI too", async () => {
    const guest = await systemGuest({ kernel: "mov $0x18,%ecx\n mov %ecx,%ss\n nop\n a: vmcall" });
    guest.vcpu.step();
    guest.vcpu.step();
    guest.vcpu.nmi();
    expect(guest.vcpu.run().kind).toBe("hypercall");
    expect(guest.log()).toMatchObject([{ vector: 2, rip: guest.at("a") }]);
  });

  test("holds for a request that comes after sti, cold and hot", async () => {
    const guest = await systemGuest({
      kernel: "mov $300,%ecx\n 1: cli\n sti\n a: inc %eax\n b: dec %ecx\n jne 1b\n vmcall",
    });
    for (const rounds of [0, 250]) {
      reset(guest);
      guest.vcpu.run({ budget: 3 + 5 * rounds });
      expect(guest.vcpu.rip).toBe(guest.at("a"));
      guest.vcpu.interrupt(50);
      expect(guest.vcpu.run().kind).toBe("hypercall");
      expect(guest.log()).toMatchObject([{ vector: 50, rip: guest.at("b") }]);
    }
  });

  test("is over after one instruction, even if that leads to itself", async () => {
    const guest = await systemGuest({ kernel: "sti\n 1: jmp 1b" });
    guest.vcpu.run({ budget: 1000 });
    guest.vcpu.interrupt(50);
    guest.vcpu.run({ budget: 5 });
    guest.vcpu.run({ budget: 50 });
    expect(vectors(guest)).toEqual([50]);
  });
});

describe("NMI", () => {
  test("waits for no flag, comes first, and once until iretq", async () => {
    const guest = await systemGuest({ kernel: "nop\n sti\n nop\n vmcall" });
    guest.vcpu.interrupt(50);
    guest.vcpu.nmi();
    guest.vcpu.run({ until: guest.at("vector2") });
    guest.vcpu.nmi();
    guest.vcpu.nmi();
    expect(guest.vcpu.run().kind).toBe("hypercall");
    expect(vectors(guest)).toEqual([2, 2, 50]);
    expect(guest.log()[0]!.rip).toBe(guest.at("kernel"));
    expect(guest.log()[1]!.rip).toBe(guest.at("kernel"));
  });

  test("int 2 blocks none", async () => {
    const guest = await systemGuest({ kernel: "int $2\n vmcall" });
    guest.vcpu.run({ until: guest.at("vector2") });
    guest.vcpu.nmi();
    expect(guest.vcpu.run().kind).toBe("hypercall");
    expect(vectors(guest)).toEqual([2, 2]);
    expect(guest.log().map(({ rip }) => rip)).toContain(guest.at("vector2"));
  });
});

describe("hlt", () => {
  test("ends by an interrupt, whether that came before or comes after", async () => {
    const guest = await systemGuest({ kernel: "sti\n hlt\n a: vmcall" });
    expect(guest.vcpu.run()).toMatchObject({ kind: "halt" });
    guest.vcpu.interrupt(50);
    expect(guest.vcpu.run().kind).toBe("hypercall");
    expect(guest.log()).toMatchObject([{ vector: 50, rip: guest.at("a") }]);
    for (const step of [false, true]) {
      reset(guest);
      guest.vcpu.interrupt(51);
      // Between sti and hlt nothing is taken; behind hlt it is, without a halt.
      expect((step ? stepAll(guest) : guest.vcpu.run()).kind).toBe("hypercall");
      expect(guest.log()).toMatchObject([{ vector: 51, rip: guest.at("a") }]);
    }
  });

  test("with interrupts off, goes on halting; an NMI ends it", async () => {
    const guest = await systemGuest({ kernel: "hlt\n a: vmcall" });
    guest.vcpu.interrupt(50);
    expect(guest.vcpu.run().kind).toBe("halt");
    guest.vcpu.nmi();
    expect(guest.vcpu.run().kind).toBe("hypercall");
    expect(vectors(guest)).toEqual([2]);
  });
});

test("between the iterations of a repeated instruction, which goes on", async () => {
  const guest = await systemGuest({
    kernel: `movabs $${toWord(KERNEL_DATA)},%rdi\n mov $0x5a,%eax\n mov $1000,%ecx\n here: rep stosb\n vmcall`,
  });
  guest.vcpu.rflags = RFLAGS_AT_REST;
  for (let n = 0; n < 20; n++) {
    guest.vcpu.run({ budget: 31 + n });
    guest.vcpu.interrupt(40 + n);
  }
  expect(guest.vcpu.run().kind).toBe("hypercall");
  // Some came while a handler ran, and waited.
  expect(vectors(guest).sort()).toEqual(Array.from({ length: 20 }, (_, n) => 40 + n));
  expect(
    guest
      .log()
      .slice(1)
      .every(({ rip }) => rip === guest.at("here")),
  ).toBe(true);
  expect(new Set(guest.machine.memory.read(KERNEL_DATA, 1001))).toEqual(new Set([0x5a, 0]));
  expect(guest.machine.memory.read(KERNEL_DATA, 1000).every((byte) => byte === 0x5a)).toBe(true);
});

describe("random programs, random boundaries", () => {
  const LINES = [
    "add $3,%rax",
    "imul $7,%rax,%rbx",
    "mov %rax,(%rdi)",
    "add (%rdi),%rdx",
    "push %rax\n pop %rsi",
    "call 2f\n jmp 3f\n 2: inc %r10\n ret\n 3:",
    "cli\n inc %r8\n sti",
    "pushfq\n popfq",
    "cmp %rax,%rbx\n jb 2f\n inc %r9\n 2:",
    "std\n cld",
    "mov $4,%ecx\n push %rdi\n rep stosb\n pop %rdi",
    "mov $0x18,%r11d\n mov %r11d,%ss",
    "rdfsbase %r12",
    "xchg %rax,8(%rdi)",
  ];

  test("run and stepped take the same interrupts at the same places, with the same outcome", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.constantFrom(...LINES), { minLength: 1, maxLength: 8 }),
        fc.array(fc.tuple(fc.integer({ min: 1, max: 900 }), fc.integer({ min: 32, max: 63 })), {
          maxLength: 12,
        }),
        fc.boolean(),
        async (lines, requests, on) => {
          const source = `movabs $${toWord(KERNEL_DATA)},%rdi\n mov $120,%r15d\n 1: ${lines.join("\n")}\n dec %r15\n jne 1b\n sti\n nop\n vmcall`;
          const outcomes = [];
          for (const step of [false, true]) {
            const guest = await systemGuest({ kernel: source });
            const { vcpu, machine } = guest;
            vcpu.rflags = on ? RFLAGS_AT_REST : 2n;
            for (const [count, vector] of requests) {
              const target = vcpu.instructions + count;
              let ended = false;
              while (vcpu.instructions < target && !ended) {
                const exit = step ? vcpu.step() : vcpu.run({ budget: target - vcpu.instructions });
                ended = exit !== undefined && exit.kind !== "budget";
              }
              if (ended) return; // shorter than the boundaries that were drawn
              vcpu.interrupt(vector);
            }
            if (step) stepAll(guest);
            else vcpu.run();
            outcomes.push({
              registers: vcpu.registers(),
              flags: vcpu.rflags,
              count: vcpu.instructions,
              log: guest.log(),
              data: machine.memory.readWord(KERNEL_DATA),
            });
          }
          expect(outcomes[0]).toEqual(outcomes[1]);
        },
      ),
      { numRuns: 40, seed: 11 },
    );
  }, 120_000);
});

test("an interrupt at every boundary of a program changes nothing of what it computes", async () => {
  const guest = await systemGuest({
    user: "mov $9,%ecx\n 1: add %rcx,%rax\n push %rax\n pop %rbx\n imul %rbx,%rdx\n lea 1(%rdx),%rdx\n call 2f\n dec %ecx\n jne 1b\n vmcall\n 2: ret",
  });
  resetToUser(guest);
  stepAll(guest);
  const expected = guest.vcpu.registers();
  const total = guest.vcpu.instructions;
  for (let boundary = 0; boundary < total - 1; boundary++) {
    resetToUser(guest);
    guest.vcpu.rflags = RFLAGS_AT_REST;
    if (boundary > 0) guest.vcpu.run({ budget: boundary });
    const rip = guest.vcpu.rip;
    guest.vcpu.interrupt(50);
    expect(guest.vcpu.run().kind).toBe("hypercall");
    expect(guest.log()).toMatchObject([{ vector: 50, rip }]);
    expect(guest.vcpu.registers()).toEqual(expected);
  }
});
