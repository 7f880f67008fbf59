// Single steps, instruction breakpoints, data breakpoints.

import { describe, expect, test } from "vitest";
import { type Addr, offset, toWord } from "../../src/base/addr.ts";
import { FLAG } from "../../src/x86/register.ts";
import {
  KERNEL_DATA,
  reset,
  resetToUser,
  type SystemGuest,
  setGate,
  stepAll,
  systemGuest,
  USER_DATA,
} from "./systemGuest.ts";

const MODES: Record<string, (guest: SystemGuest) => unknown> = {
  run: ({ vcpu }) => vcpu.run({ budget: 50_000 }),
  stepped: (guest) => stepAll(guest, 50_000),
};
const SET_TF = "pushfq; orl $0x100,(%rsp); popfq";
const CLEAR_TF = "pushfq; andl $~0x100,(%rsp); popfq";
const dr6 = ({ vcpu }: SystemGuest): bigint => vcpu.system.getWord("dr", 6);

function arm(guest: SystemGuest, n: number, at: Addr, control: number): void {
  guest.vcpu.system.setWord("dr", toWord(at), n);
  guest.vcpu.system.setWord(
    "dr",
    0x400n | (1n << BigInt(2 * n)) | (BigInt(control) << BigInt(16 + 4 * n)),
    7,
  );
}

describe.each(Object.keys(MODES))("%s", (mode) => {
  const go = MODES[mode]!;

  test.each([false, true])(
    "straight code, branches, calls: a trap behind each instruction (user: %s)",
    async (user) => {
      const text =
        `${SET_TF}; s1: nop; s2: jmp s4; s3: ud2; s4: xor %eax,%eax; s5: jnz s3; s6: call s9; s7: ${CLEAR_TF}; s8: vmcall; s9: ret`.replaceAll(
          "; ",
          "\n",
        );
      const names = ["s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9"]
        .map((name) => `.globl ${name}`)
        .join("\n");
      const guest = await systemGuest(user ? { user: `${text}\n${names}` } : { kernel: text });
      (user ? resetToUser : reset)(guest);
      expect(go(guest)).toMatchObject({ kind: "hypercall" });
      const at = (name: string, plus = 0) => offset(guest.at(name), plus);
      // Popfq sets it: the first trap is behind the next one. The last is behind the popfq that clears it.
      const expected = [
        at("s2"),
        at("s4"),
        at("s5"),
        at("s6"),
        at("s9"),
        at("s7"),
        at("s7", 1),
        at("s7", 8),
        at("s8"),
      ];
      expect(guest.log().map(({ rip }) => rip)).toEqual(expected);
      expect(guest.log().every(({ vector }) => vector === 1)).toBe(true);
      expect(guest.log().map(({ rflags }) => rflags & (FLAG.TF | FLAG.RF))).toEqual([
        ...Array(8).fill(FLAG.TF),
        0n,
      ]);
      expect(dr6(guest)).toBe(0xffff4ff0n);
    },
  );

  test("rep: a trap behind each iteration, with RF but for the last", async () => {
    const guest = await systemGuest({
      kernel: `mov $3,%ecx\n movabs $${toWord(KERNEL_DATA)},%rdi\n ${SET_TF}\n here: rep stosb\n there: ${CLEAR_TF}\n vmcall`,
    });
    expect(go(guest)).toMatchObject({ kind: "hypercall" });
    const [here, there] = [guest.at("here"), guest.at("there")];
    expect(
      guest
        .log()
        .slice(0, 3)
        .map(({ rip, rflags }) => [rip, rflags & FLAG.RF]),
    ).toEqual([
      [here, FLAG.RF],
      [here, FLAG.RF],
      [there, 0n],
    ]);
    expect(guest.machine.memory.readWord(KERNEL_DATA)).toBe(0n);
  });

  test("iretq that sets TF: a trap behind the first instruction; int n is not stepped into; syscall by its mask", async () => {
    const guest = await systemGuest({
      kernel: `mov $0xc0000082,%ecx\n lea target(%rip),%rax\n mov %rax,%rdx\n shr $32,%rdx\n wrmsr
        mov $0xc0000084,%ecx\n mov $0x100,%eax\n xor %edx,%edx\n wrmsr
        mov $0xc0000081,%ecx\n xor %eax,%eax\n mov $0x00230010,%edx\n wrmsr
        pushq $0x2b\n movabs $0x7ffff0004000,%rax\n push %rax\n pushq $0x102\n pushq $0x33\n pushq $0x400000\n iretq
        target: nop\n vmcall`,
      user: "nop\n a: int $50\n b: syscall\n c: ud2\n.globl a\n.globl b\n.globl c",
    });
    setGate(guest, 50, { handler: guest.at("vector50"), dpl: 3 });
    expect(go(guest)).toMatchObject({ kind: "hypercall" });
    expect(guest.log().map(({ vector, rip }) => [vector, rip])).toEqual([
      [1, guest.at("a")],
      [50, guest.at("b")],
    ]);
    expect(guest.vcpu.get("r11") & FLAG.TF).toBe(FLAG.TF);
    expect(guest.vcpu.rflags & FLAG.TF).toBe(0n);
  });

  test("a load of ss puts the trap off by one instruction", async () => {
    const guest = await systemGuest({
      kernel: `mov $0x18,%ecx\n ${SET_TF}\n mov %ecx,%ss\n a: nop\n b: ${CLEAR_TF}\n vmcall`,
    });
    expect(go(guest)).toMatchObject({ kind: "hypercall" });
    expect(guest.log()[0]).toMatchObject({ vector: 1, rip: guest.at("b") });
  });

  test("an instruction breakpoint, in a hot loop, as often as it is met, and RF to pass it", async () => {
    const guest = await systemGuest({
      kernel: "mov $600,%ecx\n again: inc %eax\n here: inc %ebx\n dec %ecx\n jne again\n vmcall",
    });
    go(guest); // hot by now
    reset(guest);
    arm(guest, 2, guest.at("here"), 0);
    expect(go(guest)).toMatchObject({ kind: "hypercall" });
    expect(guest.log().length).toBe(600);
    expect(
      guest.log().every(({ rip, rflags }) => rip === guest.at("here") && (rflags & FLAG.RF) !== 0n),
    ).toBe(true);
    expect([guest.vcpu.get("rbx"), guest.vcpu.get("rax")]).toEqual([600n, 600n]);
    expect(dr6(guest) & 0xfn).toBe(4n);
  });

  test("an instruction breakpoint at a repeated instruction is met once", async () => {
    const guest = await systemGuest({
      kernel: `mov $5,%ecx\n movabs $${toWord(KERNEL_DATA)},%rdi\n here: rep stosb\n vmcall`,
    });
    arm(guest, 0, guest.at("here"), 0);
    expect(go(guest)).toMatchObject({ kind: "hypercall" });
    expect(guest.log().length).toBe(1);
  });

  // Control: RW in bits 0 and 1, LEN in bits 2 and 3.
  const WATCHED: [string, number, string, boolean][] = [
    ["write of the very bytes", 0b1101, "movl $1,16(%rdi)", true],
    ["read, where writes are watched", 0b1101, "mov 16(%rdi),%eax", false],
    ["read, where both are", 0b1111, "mov 16(%rdi),%eax", true],
    ["write of the last byte", 0b1101, "movb $1,19(%rdi)", true],
    ["write behind it", 0b1101, "movb $1,20(%rdi)", false],
    ["write across its start", 0b1101, "movq $1,9(%rdi)", true],
    ["write that ends before it", 0b1101, "movq $1,8(%rdi)", false],
    ["one byte", 0b0001, "movb $1,16(%rdi)", true],
    ["one byte, next to it", 0b0001, "movb $1,17(%rdi)", false],
    ["two bytes", 0b0101, "movb $1,17(%rdi)", true],
    ["eight bytes", 0b1001, "movb $1,23(%rdi)", true],
    ["read and written", 0b1101, "incl 16(%rdi)", true],
    ["pushed to", 0b1101, "mov %rsp,%rsi; lea 24(%rdi),%rsp; push %rax; mov %rsi,%rsp", true],
    [
      "popped from by a system instruction",
      0b1111,
      "mov %rsp,%rsi; lea 16(%rdi),%rsp; pop %fs; mov %rsi,%rsp",
      true,
    ],
    ["on another page", 0b1101, "movb $1,4112(%rdi)", false],
  ];
  test.each(WATCHED)("a data breakpoint: %s", async (_name, control, code, hit) => {
    const guest = await systemGuest({
      user: `movabs $${USER_DATA},%rdi\n movl $0,(%rdi)\n${code.replaceAll("; ", "\n")}\nbehind: nop\n vmcall\n.globl behind`,
    });
    go(guest);
    resetToUser(guest);
    arm(guest, 1, offset(USER_DATA, 16), control);
    expect(go(guest)).toMatchObject({ kind: "hypercall" });
    const pushed = code.includes("%rsi,%rsp"); // one instruction more
    const traps = hit ? [{ vector: 1, rip: offset(guest.at("behind"), pushed ? -3 : 0) }] : [];
    expect(guest.log()).toMatchObject(traps);
    expect(dr6(guest)).toBe(hit ? 0xffff0ff2n : 0xffff0ff0n);
  });

  test("a watched variable in a loop: each write is seen, its effect too; and nothing once dr7 is clear", async () => {
    const guest = await systemGuest({
      kernel: `movabs $${toWord(KERNEL_DATA)},%rdi\n lea 0x100(%rdi),%rax\n mov %rax,%dr3\n mov $0xd0000440,%eax\n mov %rax,%dr7
        mov $300,%ecx\n 1: incl 0x100(%rdi)\n incl 0x104(%rdi)\n mov 0x100(%rdi),%edx\n dec %ecx\n jne 1b
        xor %eax,%eax\n mov %rax,%dr7\n mov $300,%ecx\n 1: incl 0x100(%rdi)\n dec %ecx\n jne 1b\n vmcall`,
    });
    expect(go(guest)).toMatchObject({ kind: "hypercall" });
    expect(guest.log().length).toBe(300);
    expect(guest.machine.memory.readWord(offset(KERNEL_DATA, 0x100))).toBe((300n << 32n) | 600n);
  });
});

test("a breakpoint of a snapshot is armed again when that is restored, on a page that was in use since", async () => {
  const guest = await systemGuest({
    kernel: `movabs $${toWord(KERNEL_DATA)},%rdi\n mov $500,%ecx\n 1: incq (%rdi)\n dec %ecx\n jne 1b\n incq (%rdi)\n vmcall`,
  });
  guest.vcpu.step();
  arm(guest, 0, KERNEL_DATA, 0b1001);
  const armed = guest.machine.snapshot();
  guest.vcpu.system.setWord("dr", 0x400n, 7);
  expect(guest.vcpu.run().kind).toBe("hypercall");
  expect(guest.log()).toEqual([]);
  guest.machine.restore(armed);
  expect(guest.vcpu.run({ budget: 100_000 }).kind).toBe("hypercall");
  expect(guest.log().length).toBe(501);
});

test("hlt and vmcall with TF: the trap ends the halt, and comes behind the hypercall", async () => {
  const guest = await systemGuest({ kernel: `${SET_TF}\n hlt\n a: vmcall\n b: ${CLEAR_TF}\n hlt` });
  expect(guest.vcpu.run().kind).toBe("hypercall");
  expect(guest.log()).toMatchObject([{ vector: 1, rip: guest.at("a") }]);
  expect(guest.vcpu.rip).toBe(guest.at("b"));
  expect(guest.vcpu.run().kind).toBe("halt");
  expect(guest.log()[1]).toMatchObject({ vector: 1, rip: guest.at("b") });
});
