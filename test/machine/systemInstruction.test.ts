// System instructions, one by one: what they read and write, and how they fault.

import { describe, expect, test } from "vitest";
import { offset, toWord } from "../../src/base/addr.ts";
import { systemMnemonics } from "../../src/machine/system/systemInstruction.ts";
import { Mnemonic } from "../../src/x86/decode.ts";
import { system } from "../../src/x86/lift/system.ts";
import {
  GDT,
  IDT,
  KERNEL_DATA,
  reset,
  resetToUser,
  type SystemGuest,
  systemGuest,
  TSS,
} from "./systemGuest.ts";

const at = toWord(KERNEL_DATA);

/** Runs `code` in the kernel, rdi at data; ends at vmcall, or says which fault came first. */
async function ran(
  code: string,
  before: (guest: SystemGuest) => void = () => {},
  user = false,
): Promise<SystemGuest> {
  const text = `movabs $${at},%rdi\n ${code.replaceAll("; ", "\n")}\n vmcall`;
  const guest = await systemGuest(user ? { user: text } : { kernel: text });
  (user ? resetToUser : reset)(guest);
  before(guest);
  guest.vcpu.run({ budget: 200 });
  return guest;
}

async function faultOf(code: string, before: (guest: SystemGuest) => void = () => {}): Promise<unknown> {
  const [first] = (await ran(code, before)).log();
  return first === undefined ? undefined : [first.vector, first.error];
}

async function reg(code: string, name: "rax" | "rbx" | "rcx" | "rdx" = "rax", user = false): Promise<bigint> {
  const guest = await ran(code, undefined, user);
  expect(guest.log(), code).toEqual([]);
  return guest.vcpu.get(name);
}

test("what lifted code leaves to TypeScript, TypeScript has, and no more", () => {
  const partly = ["Mov", "Push", "Pop", "Cli", "Sti", "Popf", "Popfq", "Enter"];
  const left = [...Object.keys(system), ...partly].sort();
  expect(
    systemMnemonics()
      .map((mnemonic) => Mnemonic[mnemonic])
      .sort(),
  ).toEqual(left);
});

describe("descriptor tables", () => {
  test("sgdt, sidt give what lgdt, lidt took", async () => {
    const guest = await ran(
      "sgdt (%rdi); sidt 16(%rdi); movw $0x123,32(%rdi); mov %rdi,34(%rdi); lidt 32(%rdi); lgdt 32(%rdi); sgdt 48(%rdi); sidt 64(%rdi)",
    );
    const { memory } = guest.machine;
    const pair = (n: number) => [
      memory.readWord(offset(KERNEL_DATA, n)) & 0xffffn,
      memory.readWord(offset(KERNEL_DATA, n + 2)),
    ];
    expect([0, 16, 48, 64].map(pair)).toEqual([
      [0x4fn, toWord(GDT)],
      [0xfffn, toWord(IDT)],
      [0x123n, at],
      [0x123n, at],
    ]);
    expect(await faultOf("movl $-1,38(%rdi); movw $1,40(%rdi); lgdt 32(%rdi)")).toEqual([13, 0n]);
  });

  test("ltr takes an available TSS and makes it busy; str, lldt, sldt", async () => {
    const available = (guest: SystemGuest) => {
      const { memory } = guest.machine;
      memory.writeWord(offset(GDT, 0x40), memory.readWord(offset(GDT, 0x40)) & ~(2n << 40n));
      guest.vcpu.system.setWord("tssBase", 0n);
    };
    const guest = await ran(
      "mov $0x40,%eax; ltr %ax; xor %eax,%eax; str %eax; mov $0,%ecx; lldt %cx; sldt %ebx",
      available,
    );
    expect(guest.log()).toEqual([]);
    expect(guest.vcpu.get("rax")).toBe(0x40n);
    expect(guest.vcpu.system.getWord("tssBase")).toBe(toWord(TSS));
    expect((guest.machine.memory.readWord(offset(GDT, 0x40)) >> 40n) & 15n).toBe(11n);
    expect(await faultOf("mov $0x40,%eax; ltr %ax")).toEqual([13, 0x40n]);
    expect(await faultOf("xor %eax,%eax; ltr %ax")).toEqual([13, 0n]);
    expect(await faultOf("mov $0x10,%eax; ltr %ax")).toEqual([13, 0x10n]);
  });

  test("lar, lsl, verr, verw", async () => {
    const RIGHTS: [number, bigint | undefined, bigint | undefined][] = [
      [0x10, 0xa09b00n, 0xffffffffn],
      [0x18, 0xc09300n, 0xffffffffn],
      [0x33, 0xa0fb00n, 0xffffffffn],
      [0x40, 0x008b00n, 0x67n],
      [0, undefined, undefined],
      [0x100, undefined, undefined],
      [0x1b, undefined, undefined], // RPL 3 of data for level 0
    ];
    for (const [selector, rights, limit] of RIGHTS) {
      const code = (name: string) => `mov $${selector},%ecx; mov $-1,%eax; ${name} %ecx,%eax; setz %bl`;
      for (const [name, expected] of [
        ["lar", rights],
        ["lsl", limit],
      ] as const) {
        const guest = await ran(code(name));
        const [found, value] = [guest.vcpu.get("rbx") & 0xffn, guest.vcpu.get("rax")];
        expect([selector, found, value]).toEqual([
          selector,
          expected === undefined ? 0n : 1n,
          expected ?? 0xffffffffn,
        ]);
      }
    }
    const verdict = async (name: string, selector: number) =>
      reg(`mov $${selector},%ecx; ${name} %cx; setz %bl`, "rbx");
    expect(await Promise.all([0x10, 0x18, 0x40, 0].map((selector) => verdict("verr", selector)))).toEqual([
      1n,
      1n,
      0n,
      0n,
    ]);
    expect(await Promise.all([0x10, 0x18, 0x40, 0].map((selector) => verdict("verw", selector)))).toEqual([
      0n,
      1n,
      0n,
      0n,
    ]);
  });
});

describe("segments", () => {
  test("moves, pushes, pops; bases of fs and gs", async () => {
    expect(await reg("mov $0x18,%ecx; mov %ecx,%ds; mov %ds,%eax")).toBe(0x18n);
    expect(await reg("mov $0x2b,%ecx; mov %ecx,%es; mov $-1,%rax; mov %es,%ax")).toBe(0xffff_ffff_ffff_002bn);
    expect(await reg("pushq $0x18; pop %fs; mov %rsp,%rbx; push %fs; sub %rsp,%rbx; pop %rax")).toBe(0x18n);
    expect(await reg("mov %rsp,%rbx; .byte 0x66,0x0f,0xa0; sub %rsp,%rbx", "rbx")).toBe(2n); // pushw %fs
    expect(await reg("mov %rsp,%rbx; sub $2,%rsp; .byte 0x66,0x0f,0xa1; sub %rsp,%rbx", "rbx")).toBe(0n);
    expect(await reg("mov $0x12345,%eax; wrfsbase %rax; rdfsbase %rbx", "rbx")).toBe(0x12345n);
    expect(await reg("mov $-1,%rax; wrgsbase %eax; rdgsbase %rbx", "rbx")).toBe(0xffffffffn);
    expect(await faultOf("movabs $0x800000000000,%rax; wrfsbase %rax")).toEqual([13, 0n]);
    expect(await faultOf("mov $0x40,%eax; mov %eax,%ds")).toEqual([13, 0x40n]);
    expect(await faultOf("mov $0x33,%eax; mov %eax,%ss")).toEqual([13, 0x30n]);
    expect(await faultOf(".byte 0x8e,0xc8")).toEqual([6, 0n]); // mov %eax,%cs
    const absent = (guest: SystemGuest) =>
      guest.machine.memory.writeWord(offset(GDT, 0x20), 0x00cf_1300_0000_ffffn);
    expect(await faultOf("mov $0x20,%eax; mov %eax,%ds", absent)).toEqual([11, 0x20n]);
    expect(await faultOf("mov $0x20,%eax; mov %eax,%ss", absent)).toEqual([12, 0x20n]);
  });

  test("lretq inside the kernel and to user code; lretl; with bytes to release", async () => {
    expect(await reg("pushq $0x10; lea 1f(%rip),%rax; push %rax; lretq; ud2; 1: mov $7,%eax")).toBe(7n);
    expect(
      await reg(
        "mov %rsp,%rbx; push %rax; push %rax; pushq $0x10; lea 1f(%rip),%rax; push %rax; lretq $16; 1: sub %rsp,%rbx",
        "rbx",
      ),
    ).toBe(0n);
    const guest = await systemGuest({
      kernel: "pushq $0x2b\n movabs $0x7ffff0004000,%rax\n push %rax\n pushq $0x33\n pushq $0x400000\n lretq",
      user: "vmcall",
    });
    expect(guest.vcpu.run().kind).toBe("hypercall");
    expect(guest.vcpu.system.user).toBe(true);
    expect(await faultOf("pushq $0x18; push %rax; lretq")).toEqual([13, 0x18n]);
    expect(await faultOf("pushq $0; push %rax; lretq")).toEqual([13, 0n]);
  });
});

describe("model-specific registers", () => {
  test("what is written is read; unknown ones and bad values are #GP(0)", async () => {
    for (const number of [0xc0000081, 0xc0000082, 0xc0000083, 0xc0000100, 0xc0000102, 0x175, 0x176]) {
      const guest = await ran(
        `mov $${number},%ecx; mov $0x89abcdef,%eax; mov $0xffff8123,%edx; wrmsr; xor %eax,%eax; xor %edx,%edx; rdmsr`,
      );
      expect([guest.vcpu.get("rax"), guest.vcpu.get("rdx"), guest.log()]).toEqual([
        0x89abcdefn,
        0xffff8123n,
        [],
      ]);
    }
    for (const number of [0xc0000082, 0xc0000100, 0xc0000101, 0xc0000102, 0x176]) {
      expect(await faultOf(`mov $${number},%ecx; xor %eax,%eax; mov $0x8000,%edx; wrmsr`)).toEqual([13, 0n]);
    }
    for (const name of ["rdmsr", "wrmsr"])
      expect(await faultOf(`mov $0x12345,%ecx; ${name}`)).toEqual([13, 0n]);
    expect(await faultOf("mov $0xc0000080,%ecx; rdmsr; or $2,%eax; wrmsr")).toEqual([13, 0n]);
    expect(await faultOf("mov $0xc0000080,%ecx; rdmsr; and $~0x100,%eax; wrmsr")).toEqual([13, 0n]);
    expect(await reg("mov $0xc0000080,%ecx; rdmsr; and $~0x400,%eax; wrmsr; rdmsr")).toBe(0xd01n);
  });
});

describe("control and debug registers", () => {
  test("what is written is read", async () => {
    expect(await reg("mov $0x1234,%ecx; mov %rcx,%cr2; mov %cr2,%rax")).toBe(0x1234n);
    expect(await reg("mov $0x5000,%ecx; mov %rcx,%cr3; mov %cr3,%rax")).toBe(0x5000n);
    expect(await reg("mov $9,%ecx; mov %rcx,%cr8; mov %cr8,%rax")).toBe(9n);
    expect(await reg("mov $0x1234,%ecx; mov %rcx,%dr3; mov %dr3,%rax")).toBe(0x1234n);
    expect(await reg("mov $-1,%ecx; mov %rcx,%dr6; mov %dr6,%rax")).toBe(0xffffefffn);
    expect(await reg("mov $0xc000,%ecx; mov %rcx,%dr7; mov %dr7,%rax")).toBe(0x400n);
    expect(await reg("mov %cr0,%rax; or $8,%rax; mov %rax,%cr0; clts; smsw %ax; and $8,%eax")).toBe(0n);
    expect(await reg(".byte 0x0f,0x21,0xe0")).toBe(0xffff0ff0n); // mov %dr4,%rax: dr6
  });

  test("faults", async () => {
    expect(await faultOf("mov $16,%ecx; mov %rcx,%cr8")).toEqual([13, 0n]);
    expect(await faultOf("mov %cr0,%rax; and $0x7fffffff,%eax; mov %rax,%cr0")).toEqual([13, 0n]);
    expect(await faultOf("mov $-1,%rax; mov %rax,%cr4")).toEqual([13, 0n]);
    expect(await faultOf("mov $-1,%rax; mov %rax,%dr7")).toEqual([13, 0n]);
    expect(await faultOf(".byte 0x0f,0x20,0xc8")).toEqual([6, 0n]); // mov %cr1,%rax
    expect(await faultOf("mov %cr4,%rax; or $8,%rax; mov %rax,%cr4; .byte 0x0f,0x21,0xe0")).toEqual([6, 0n]);
    const guest = await ran("mov $0x2400,%eax; mov %rax,%dr7; mov %dr0,%rbx");
    expect(guest.log()).toMatchObject([{ vector: 1 }]); // general detect, which the handler is free of
    expect(guest.vcpu.system.getWord("dr", 6) & (1n << 13n)).toBe(1n << 13n);
  });
});

describe("what says who and when", () => {
  test("cpuid: the vendor, features that are there, nothing for unknown leaves", async () => {
    expect(await reg("xor %eax,%eax; cpuid", "rbx", true)).toBe(0x746e6546n);
    expect((await reg("mov $7,%eax; xor %ecx,%ecx; cpuid", "rbx")) & 1n).toBe(1n);
    expect(await reg("mov $7,%eax; mov $1,%ecx; cpuid", "rbx")).toBe(0n);
    expect(await reg("mov $0x80000001,%eax; cpuid; shr $29,%edx; and $1,%edx", "rdx")).toBe(1n);
    expect(await reg("mov $0x40000000,%eax; cpuid")).toBe(0n);
  });

  test("time is instructions; rdrand is a sequence; the same on every machine", async () => {
    const code = "rdtsc; mov %rax,%rsi; nop; nop; rdtsc; sub %rsi,%rax";
    expect(await reg(code)).toBe(4n);
    const random = "rdrand %rax; setc %cl; rdseed %rbx; shl $8,%ecx; setc %cl";
    const [one, two] = [await ran(random), await ran(random, undefined, true)];
    expect(one.vcpu.get("rax")).not.toBe(one.vcpu.get("rbx"));
    expect(two.vcpu.get("rax")).toBe(one.vcpu.get("rax"));
    expect(await reg("mov $0xc0000103,%ecx; mov $5,%eax; xor %edx,%edx; wrmsr; rdtscp", "rcx")).toBe(5n);
    expect(await reg("mov $-1,%rax; rdpid %rax")).toBe(0n);
  });

  test("xgetbv needs OSXSAVE and knows register 0", async () => {
    expect(await faultOf("xor %ecx,%ecx; xgetbv")).toEqual([6, 0n]);
    const on = "mov %cr4,%rax; or $0x40000,%rax; mov %rax,%cr4; ";
    expect(await reg(`${on}xor %ecx,%ecx; xgetbv`)).toBe(1n);
    expect(await faultOf(`${on}mov $1,%ecx; xgetbv`)).toEqual([13, 0n]);
  });
});
