// What user code may not do, what the kernel may not do to users' pages, and the ways between the two.

import { describe, expect, test } from "vitest";
import { offset, PAGE_SIZE, toWord } from "../../src/base/addr.ts";
import { parseHexBytes } from "../../src/base/bytes.ts";
import { CR0, CR4, FLAG, RFLAGS_AT_REST } from "../../src/x86/register.ts";
import {
  KERNEL_DATA,
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
  USER_TEXT,
} from "./systemGuest.ts";

/** Runs until the first exception: [vector, error code, cr2 if it is #PF], or the exit's kind. */
function outcome(guest: SystemGuest): unknown[] {
  const exit = guest.vcpu.run({ budget: 60 });
  const [first] = guest.log();
  if (first === undefined) return [exit.kind];
  return [first.vector, first.error, ...(first.vector === 14 ? [first.cr2] : [])];
}

describe("user code and the kernel's pages", () => {
  const at = toWord(offset(KERNEL_DATA, 8));
  const ACCESSES: [string, bigint][] = [
    ["mov (%rdi),%eax", 5n],
    ["movb $1,(%rdi)", 7n],
    ["lock incl (%rdi)", 7n],
    ["mov %rdi,%rsp\n pop %rax", 5n],
    ["mov %rdi,%rsp\n popfq", 5n],
    ["sgdt (%rdi)", 7n],
    ["verr (%rdi)", 5n],
  ];
  test.each(ACCESSES)("%s", async (code, error) => {
    const guest = await systemGuest({ user: `movabs $${at},%rdi\n ${code}` });
    resetToUser(guest);
    expect(outcome(guest)).toEqual([14, error, at]);
  });

  test("also when the kernel has just touched them, and its TLB entries would do", async () => {
    const guest = await systemGuest({
      kernel: `movabs $${at},%rdi\n incl (%rdi)\n vmcall`,
      user: `movabs $${at},%rdi\n incl (%rdi)`,
    });
    guest.vcpu.run();
    resetToUser(guest);
    expect(outcome(guest)).toEqual([14, 7n, at]);
  });

  test("jumps into the kernel's text, hot or not, and near enough for one region", async () => {
    const near = offset(USER_TEXT, 2 * PAGE_SIZE);
    for (const hot of [false, true]) {
      const guest = await systemGuest({
        user: `mov $${hot ? 1000 : 1},%ecx\n again: dec %ecx\n jne again\n jmp .+${near - USER_TEXT - (5 + 2 + 2)}`,
      });
      const { memory } = guest.machine;
      memory.map(near, PAGE_SIZE, { write: false, execute: true, user: false });
      memory.write(near, parseHexBytes("ff c8 75 fc 0f 01 c1")); // dec %eax; jne; vmcall
      if (hot) {
        reset(guest);
        guest.vcpu.rip = near;
        guest.vcpu.set("rax", 2000n);
        expect(guest.vcpu.run().kind).toBe("hypercall");
      }
      resetToUser(guest);
      guest.vcpu.run({ budget: 5000 });
      expect(guest.log()[0]).toMatchObject({ vector: 14, error: 0x15n, cr2: toWord(near), rip: near });
    }
  });

  test("falls off a users' page onto one of the kernel's, in the middle of an instruction and at its end", async () => {
    const next = offset(USER_TEXT, 2 * PAGE_SIZE);
    for (const [code, at] of [
      ["90", 1],
      ["b8 01", 2],
    ] as const) {
      const guest = await systemGuest({});
      guest.machine.memory.map(next, PAGE_SIZE, { write: false, execute: true, user: false });
      guest.machine.memory.write(offset(next, -at), parseHexBytes(code));
      resetToUser(guest);
      guest.vcpu.rip = offset(next, -at);
      guest.vcpu.run({ budget: 60 });
      expect(guest.log()[0]).toMatchObject({
        vector: 14,
        error: 0x15n,
        cr2: toWord(next),
        rip: code === "90" ? next : offset(next, -at),
      });
    }
  });
});

describe.each([
  ["unmapped", undefined],
  ["the kernel's", false],
  ["a user's", true],
])("at the end of a page, before one that is %s", (_name, kind) => {
  const next = offset(USER_TEXT, 2 * PAGE_SIZE);
  // mov %eax,%cs; and opcodes that are nothing in 64-bit mode, which have no byte to wait for.
  test.each(["8e c8", "06", "66 1e", "48 37", "0f 04", "f3 0f 3c"])(
    "%s is #UD, whatever that is",
    async (hex) => {
      const guest = await systemGuest({});
      const { memory } = guest.machine;
      if (kind !== undefined) memory.map(next, PAGE_SIZE, { write: false, execute: true, user: kind });
      const bytes = parseHexBytes(hex);
      const at = offset(next, -bytes.length);
      memory.write(at, bytes);
      for (let n = 0; n < 2; n++) {
        resetToUser(guest);
        guest.vcpu.rip = at;
        guest.vcpu.run({ budget: 60 });
        expect(guest.log()[0]).toMatchObject({ vector: 6, rip: at });
      }
    },
  );

  test.each(["82", "0f", "0f 38 0c", "48"])("%s wants a byte more", async (hex) => {
    const guest = await systemGuest({});
    const { memory } = guest.machine;
    if (kind !== undefined) memory.map(next, PAGE_SIZE, { write: false, execute: true, user: kind });
    const bytes = parseHexBytes(hex);
    memory.write(offset(next, -bytes.length), bytes);
    resetToUser(guest);
    guest.vcpu.rip = offset(next, -bytes.length);
    guest.vcpu.run({ budget: 60 });
    const fault = { vector: 14, error: kind === undefined ? 0x14n : 0x15n, cr2: toWord(next) };
    if (kind !== true) expect(guest.log()[0]).toMatchObject(fault);
    else expect(guest.log()[0]?.cr2).not.toBe(toWord(next));
  });
});

test("kernel code that got hot while it left to user code each time is not there for the user", async () => {
  const guest = await systemGuest({
    kernel: `mov $0xc0000082,%ecx\n lea entry(%rip),%rax\n mov %rax,%rdx\n shr $32,%rdx\n wrmsr
      mov $0xc0000081,%ecx\n xor %eax,%eax\n mov $0x00230010,%edx\n wrmsr
      mov $${USER_TEXT},%ecx\n mov $2,%r11d\n sysretq\n entry: inc %rax\n nop\n sysretq`,
    user: "xor %r15d,%r15d\n 1: syscall\n inc %r15\n cmp %r14,%r15\n jne 1b\n jmp *%r13",
  });
  const entry = guest.at("entry");
  // Around the count at which it is compiled, among others.
  for (let count = 180; count < 230; count++) {
    reset(guest);
    guest.vcpu.set("r14", BigInt(count));
    guest.vcpu.set("r13", toWord(entry));
    guest.vcpu.run({ until: guest.at("vector14"), budget: 20_000 });
    guest.vcpu.run({ budget: 60 });
    expect(guest.log()[0]).toMatchObject({ vector: 14, error: 0x15n, rip: entry });
  }
});

describe("code on a user's page that both levels execute, hot at each", () => {
  const LOOP = "mov $700,%ecx\n 1: mov (%rdi),%rax\n dec %ecx\n jne 1b\n vmcall";
  async function made(): Promise<(user: boolean, at: number, hot: boolean) => unknown[]> {
    const guest = await systemGuest({ user: LOOP });
    return (user, at, hot) => {
      (user ? resetToUser : reset)(guest);
      guest.vcpu.rip = guest.at("user");
      guest.vcpu.setNumber("rdi", at);
      if (!hot) return outcome(guest);
      expect(guest.vcpu.run().kind).toBe("hypercall");
      expect(guest.machine.regions.find(offset(guest.at("user"), 5), user)).toBeDefined();
      if (!user) guest.vcpu.system.setWord("cr4", CR4.FSGSBASE | CR4.SMAP);
      return [];
    };
  }

  test("the kernel's access is not the user's", async () => {
    const run = await made();
    run(false, KERNEL_DATA, true);
    expect(run(true, KERNEL_DATA, false)).toEqual([14, 5n, toWord(KERNEL_DATA)]);
  });

  test("the user's is not the kernel's, where that is prevented", async () => {
    const run = await made();
    run(true, USER_DATA, true);
    run(false, KERNEL_DATA, true);
    expect(run(false, USER_DATA, false)).toEqual([14, 1n, toWord(USER_DATA)]);
    expect(run(true, USER_DATA, true)).toEqual([]);
  });
});

test("a page that is protected while the kernel runs is protected for user code that had it", async () => {
  const guest = await systemGuest({
    kernel: `int3\n vmcall`,
    user: `mov $${USER_DATA},%edi\n mov $700,%ecx\n 1: incq (%rdi)\n dec %ecx\n jne 1b\n int $50\n here: incq (%rdi)\n.globl here`,
  });
  setGate(guest, 50, { handler: guest.at("vector50"), dpl: 3 });
  resetToUser(guest);
  expect(guest.vcpu.run({ until: guest.at("vector50") }).kind).toBe("reached");
  guest.machine.memory.protect(USER_DATA, PAGE_SIZE, { write: false, execute: false, user: true });
  guest.vcpu.run({ until: guest.at("vector14"), budget: 100 });
  guest.vcpu.run({ budget: 50 });
  expect(guest.log()[1]).toMatchObject({ vector: 14, error: 7n, rip: guest.at("here") });
});

test("cr0 and cr4 that are set from outside hold for hot code at once", async () => {
  const guest = await systemGuest({
    kernel: `movabs $${USER_TEXT},%rdi\n mov $500,%ecx\n 1: mov (%rdi),%al\n mov %al,(%rdi)\n dec %ecx\n jne 1b\n vmcall`,
  });
  const { system } = guest.vcpu;
  const go = (): unknown[] => {
    reset(guest);
    const exit = guest.vcpu.run({ until: guest.at("vector14") });
    return [exit.kind, system.getWord("cr2")];
  };
  system.setWord("cr0", CR0.PE | CR0.PG);
  expect(go()[0]).toBe("hypercall");
  system.setWord("cr0", CR0.PE | CR0.PG | CR0.WP);
  expect(go()).toEqual(["reached", toWord(USER_TEXT)]);
  system.setWord("cr0", CR0.PE | CR0.PG);
  expect(go()[0]).toBe("hypercall");
  system.setWord("cr4", CR4.FSGSBASE | CR4.SMAP);
  expect(go()).toEqual(["reached", toWord(USER_TEXT)]);
});

describe("the kernel and users' pages", () => {
  const READ = `movabs $${USER_DATA},%rdi\n mov (%rdi),%eax\n vmcall`;
  const WRITE_RO = `movabs $${USER_TEXT},%rdi\n movb $1,(%rdi)\n vmcall`;
  const FETCH = `movabs $${USER_TEXT},%rdi\n jmp *%rdi`;
  const rows: [string, string, bigint, bigint, bigint, unknown[]][] = [
    ["reads without SMAP", READ, CR0.WP, 0n, 0n, ["hypercall"]],
    ["reads with SMAP", READ, CR0.WP, CR4.SMAP, 0n, [14, 1n, BigInt(USER_DATA)]],
    ["reads with SMAP and AC", READ, CR0.WP, CR4.SMAP, FLAG.AC, ["hypercall"]],
    ["writes to read-only with WP", WRITE_RO, CR0.WP, 0n, 0n, [14, 3n, BigInt(USER_TEXT)]],
    ["writes to read-only without WP", WRITE_RO, 0n, 0n, 0n, ["hypercall"]],
    ["fetches without SMEP", FETCH, CR0.WP, 0n, 0n, ["hypercall"]],
    ["fetches with SMEP", FETCH, CR0.WP, CR4.SMEP, 0n, [14, 0x11n, BigInt(USER_TEXT)]],
    ["fetches with SMAP alone", FETCH, CR0.WP, CR4.SMAP, 0n, ["hypercall"]],
  ];
  test.each(rows)("%s", async (_name, kernel, cr0, cr4, flags, expected) => {
    const guest = await systemGuest({ kernel, user: "vmcall" });
    guest.vcpu.system.setWord("cr0", CR0.PE | CR0.PG | cr0);
    guest.vcpu.system.setWord("cr4", CR4.FSGSBASE | cr4);
    guest.vcpu.rflags = 2n | flags;
    expect(outcome(guest)).toEqual(expected);
  });

  test("stac, clac, popfq and iretq change what may be touched from the next instruction on, hot too", async () => {
    const loop = (open: string, close: string) => `mov %cr4,%rax\n or $0x200000,%rax\n mov %rax,%cr4
      movabs $${USER_DATA},%rdi\n mov $700,%ecx\n 1: ${open}\n incl (%rdi)\n ${close}\n dec %ecx\n jne 1b\n here: incl (%rdi)\n vmcall`;
    const popf = (bits: string) => `pushfq\n ${bits},(%rsp)\n popfq`;
    for (const [open, close] of [
      ["stac", "clac"],
      [popf("orl $0x40000"), popf("andl $~0x40000")],
    ] as const) {
      for (const step of [false, true]) {
        const guest = await systemGuest({ kernel: loop(open, close) });
        onReturn(guest, 14, { skip: 2 });
        expect((step ? stepAll(guest) : guest.vcpu.run()).kind).toBe("hypercall");
        expect(guest.log()).toMatchObject([{ vector: 14, error: 3n, rip: guest.at("here") }]);
        expect(guest.machine.memory.readWord(USER_DATA)).toBe(700n);
      }
    }
  });
});

test("privileged instructions in user code are #GP(0), and change nothing", async () => {
  const PRIVILEGED = [
    ...[
      "hlt",
      "cli",
      "sti",
      "mov %cr0,%rax",
      "mov %rax,%cr3",
      "mov %rax,%cr8",
      "mov %dr7,%rax",
      "mov %rax,%dr0",
    ],
    ...["rdmsr", "wrmsr", "swapgs", "invlpg (%rax)", "wbinvd", "invd", "clts", "lgdt (%rsp)", "lidt (%rsp)"],
    ...["ltr %ax", "lldt %ax", "sysretq"],
  ];
  const source = await systemGuest({
    user: `${PRIVILEGED.map((_, n) => `.globl l${n}`).join("\n")}\n.globl end\n ${PRIVILEGED.map((text, n) => `l${n}: ${text}`).join("\n")}\nend: vmcall`,
  });
  resetToUser(source);
  for (const n of PRIVILEGED.keys()) {
    resetToUser(source);
    source.vcpu.rip = source.at(`l${n}`);
    const before = source.vcpu.registers();
    expect(source.vcpu.run({ until: source.at("vector13"), budget: 5 }).kind, PRIVILEGED[n]).toBe("reached");
    expect({ ...source.vcpu.registers(), rsp: before.rsp }).toEqual(before);
    source.vcpu.run({ budget: 40 });
    expect(source.log()[0]).toMatchObject({ vector: 13, error: 0n, rip: source.at(`l${n}`) });
  }
  for (const [text, vector] of [
    ["stac", 6],
    ["clac", 6],
  ] as const) {
    const other = await systemGuest({ user: text });
    resetToUser(other);
    expect(outcome(other)[0]).toBe(vector);
  }
});

describe("IF and IOPL", () => {
  const image = (bits: bigint) => `pushq $${bits}\n popfq\n vmcall`;
  const rows: [string, boolean, bigint, bigint, bigint][] = [
    // user, flags before, image popped, flags after (IF and IOPL)
    ["kernel sets both", false, 0n, FLAG.IF | FLAG.IOPL, FLAG.IF | FLAG.IOPL],
    ["kernel clears both", false, FLAG.IF | FLAG.IOPL, 0n, 0n],
    ["user changes neither", true, FLAG.IF, FLAG.IOPL, FLAG.IF],
    ["user with IOPL 3 changes IF", true, FLAG.IF | FLAG.IOPL, 0n, FLAG.IOPL],
    ["user with IOPL 3 sets IF", true, FLAG.IOPL, FLAG.IF, FLAG.IF | FLAG.IOPL],
  ];
  test.each(rows)("popfq: %s", async (_name, user, before, popped, after) => {
    const guest = await systemGuest(user ? { user: image(popped) } : { kernel: image(popped) });
    (user ? resetToUser : reset)(guest);
    guest.vcpu.rflags = 2n | before;
    expect(guest.vcpu.run().kind).toBe("hypercall");
    expect(guest.vcpu.rflags).toBe(2n | after);
  });

  test("iretq inside user code: neither, without IOPL; cli and sti with it", async () => {
    const guest = await systemGuest({
      user: "mov %rsp,%rax\n pushq $0x2b\n push %rax\n pushq $0x3202\n pushq $0x33\n lea 1f(%rip),%rax\n push %rax\n iretq\n 1: cli\n vmcall",
    });
    resetToUser(guest);
    expect(outcome(guest)).toEqual([13, 0n]);
    expect(guest.log()[0]!.rflags & (FLAG.IF | FLAG.IOPL)).toBe(0n);
    resetToUser(guest);
    guest.vcpu.rflags = RFLAGS_AT_REST | FLAG.IOPL;
    expect(outcome(guest)).toEqual(["hypercall"]);
    expect(guest.vcpu.rflags & (FLAG.IF | FLAG.IOPL)).toBe(FLAG.IOPL);
  });
});

test("syscall and sysretq with swapgs, thousands of times, run and stepped", async () => {
  const kernel = `mov $0xc0000082,%ecx\n lea entry(%rip),%rax\n mov %rax,%rdx\n shr $32,%rdx\n wrmsr
    mov $0xc0000084,%ecx\n mov $0x700,%eax\n xor %edx,%edx\n wrmsr
    mov $0xc0000081,%ecx\n xor %eax,%eax\n mov $0x00230010,%edx\n wrmsr
    mov $0xc0000102,%ecx\n mov $${KERNEL_DATA & 0xffffffff},%eax\n mov $0xffff8890,%edx\n wrmsr
    mov $0xc0000101,%ecx\n mov $${USER_DATA},%eax\n xor %edx,%edx\n wrmsr
    movabs $${USER_STACK_TOP},%rsp\n movabs $${USER_TEXT},%rcx\n mov $0x202,%r11d\n xor %eax,%eax\n sysretq
    entry: swapgs\n body: incl %gs:0\n add $2,%rax\n swapgs\n sysretq`;
  const user = "mov $3000,%r15d\n loop: incl %gs:4\n syscall\n dec %r15\n jne loop\n vmcall\n.globl loop";
  const outcomes = [];
  for (const step of [false, true]) {
    const guest = await systemGuest({ kernel, user });
    expect((step ? stepAll(guest) : guest.vcpu.run()).kind).toBe("hypercall");
    const { vcpu, machine } = guest;
    expect(vcpu.get("rax")).toBe(6000n);
    expect(machine.memory.readWord(KERNEL_DATA)).toBe(3000n);
    expect(machine.memory.readWord(USER_DATA)).toBe(3000n << 32n);
    expect(vcpu.system.user).toBe(true);
    expect([vcpu.system.getWord("cs"), vcpu.system.getWord("ss")]).toEqual([
      BigInt(SELECTOR.userCode),
      BigInt(SELECTOR.userData),
    ]);
    expect(guest.log()).toEqual([]);
    // The kernel's part got hot as well, though it always leaves before it comes round.
    const hot = [machine.regions.find(guest.at("body")), machine.regions.find(guest.at("loop"), true)];
    expect(hot.map((found) => found !== undefined)).toEqual([!step, !step]);
    outcomes.push([vcpu.registers(), vcpu.rflags, vcpu.instructions]);
  }
  expect(outcomes[0]).toEqual(outcomes[1]);
});
