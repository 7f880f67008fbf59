// Signals at the boundary to user mode, as user code sees them; and the fake one, of which it sees nothing.

import { describe, expect, test } from "vitest";
import { THREAD_FLAG } from "../../src/kernel/layout.ts";
import { Userland } from "./userland.ts";

const COMMON = `
program count
	incq handled(%rip)
	mov %rdi, signal(%rip)
	ret
done count
.macro handle signal, action
	mov $\\signal, %edi
	lea \\action(%rip), %rsi
	xor %edx, %edx
	sys NR_rt_sigaction
.endm
.macro send signal
	sys NR_getpid
	mov %rax, %rdi
	mov $\\signal, %esi
	sys NR_kill
.endm
.macro finish
	xor %edi, %edi
	sys NR_exit
.endm
.data
.p2align 3
counted: .quad count, 0, restorer, 0
handled: .quad 0
signal: .quad 0
result: .quad 0x7777, 0x7777, 0x7777, 0x7777
.text
`;

async function run(source: string, budget?: number): Promise<Userland> {
  const userland = await Userland.open(COMMON + source);
  userland.start("main");
  expect(userland.run(budget)).toMatchObject({ kind: "idle" });
  return userland;
}

describe("a signal to oneself", () => {
  test("is handled before the call that sent it returns", async () => {
    const userland = await run(`
program main
	handle SIGUSR1, counted
	send SIGUSR1
	mov %rax, result(%rip)
	mov handled(%rip), %rax
	mov %rax, result + 8(%rip)
	finish
done main`);
    expect([0, 1].map((n) => userland.word("result", n))).toEqual([0n, 1n]);
    expect(userland.word("signal")).toBe(10n);
  });

  test("waits while it is blocked, and comes once for all", async () => {
    const userland = await run(`
program main
	handle SIGUSR1, counted
	xor %edi, %edi				# SIG_BLOCK
	lea usr1(%rip), %rsi
	xor %edx, %edx
	sys NR_rt_sigprocmask
	send SIGUSR1
	send SIGUSR1
	mov handled(%rip), %rax
	mov %rax, result(%rip)
	mov $1, %edi				# SIG_UNBLOCK
	lea usr1(%rip), %rsi
	xor %edx, %edx
	sys NR_rt_sigprocmask
	mov handled(%rip), %rax
	mov %rax, result + 8(%rip)
	finish
done main
.data
usr1: .quad 1 << 9`);
    expect([0, 1].map((n) => userland.word("result", n))).toEqual([0n, 1n]);
  });

  test("is blocked in its own handler, and what the handler blocks comes behind it", async () => {
    const userland = await run(`
program main
	handle SIGUSR1, outer
	handle SIGUSR2, inner
	send SIGUSR1
	mov trail(%rip), %rax
	mov %rax, result(%rip)
	finish
done main
# Each writes a digit as it begins and another as it ends.
program on_usr1
	call digit1
	send SIGUSR1
	send SIGUSR2
	call digit2
	ret
done on_usr1
program digit1
	mov again(%rip), %rdi
	add $1, %rdi
	call digit
	ret
done digit1
program digit2
	mov again(%rip), %rdi
	add $2, %rdi
	movq $4, again(%rip)			# the second time is another
	call digit
	handle SIGUSR1, counted
	ret
done digit2
program on_usr2
	mov $9, %edi
	call digit
	ret
done on_usr2
program digit
	imul $10, trail(%rip), %rax
	add %rdi, %rax
	mov %rax, trail(%rip)
	ret
done digit
.data
.p2align 3
outer: .quad on_usr1, 0, restorer, 1 << 11
inner: .quad on_usr2, 0, restorer, 0
trail: .quad 0
again: .quad 0`);
    // on_usr1 from its beginning to its end, then what waited: USR1, by number, to the handler that it has by then, and
    // USR2, whose handler is the last set up and so the first to run.
    expect(userland.word("result")).toBe(129n);
    expect(userland.word("handled")).toBe(1n);
  });
});

describe("clone, where a signal comes while it is under way", () => {
  const program = `
program main
	handle SIGUSR1, counted
	mov $CLONE_VM, %edi
	lea -2048(%rsp), %rsi
	sys NR_clone
	test %eax, %eax
	jz 2f
	mov %rax, result(%rip)
	reap %rax
	mov %rax, result + 8(%rip)
	finish
2:	mov $7, %edi
	sys NR_exit
done main`;

  test.each([
    ["a real one", 1n << 9n, THREAD_FLAG.TIF_SIGPENDING, 1n],
    ["the fake one", 0n, THREAD_FLAG.TIF_NOTIFY_SIGNAL, 0n],
  ])("%s, is begun again, whatever flags its handler has", async (_, pending, flag, handled) => {
    const userland = await Userland.open(COMMON + program);
    const [vcpu] = userland.lab.machine.vcpus;
    const entry = userland.lab.symbol("sys_clone").address;
    const { struct } = userland.start("main");
    let times = 0;
    const watch = () => {
      if (vcpu!.rip !== entry || times++ > 0) return undefined;
      struct.set("pending", pending);
      struct.set("thread_flags", struct.getNumber("thread_flags") | flag);
      return undefined;
    };
    expect(userland.run(undefined, { slices: [1] }, watch)).toMatchObject({ kind: "idle" });
    expect(times).toBe(2);
    expect(userland.word("result")).toBeGreaterThan(1n);
    expect(userland.word("result", 1)).toBe(0x700n);
    expect(userland.word("handled")).toBe(handled);
  });
});

describe("a fault", () => {
  test("is a signal, and no system call is begun again because of what rax was", async () => {
    const userland = await run(`
program main
	handle SIGSEGV, mend
	xor %edi, %edi
	mov $-ERESTARTSYS, %rax
	mov $1, %ebx
fault:	mov (%rdi), %rcx
	mov %rax, result(%rip)
	mov %rcx, result + 8(%rip)
	finish
done main
# Gives rdi an address, in the frame that the kernel has left: restorer, mask, registers.
program on_fault
	lea word(%rip), %rax
	mov %rax, 16 + PT_REGS_DI(%rsp)
	mov 16 + PT_REGS_IP(%rsp), %rax
	mov %rax, result + 16(%rip)
	mov 16 + PT_REGS_ORIG_AX(%rsp), %rax
	mov %rax, result + 24(%rip)
	incq handled(%rip)
	ret
done on_fault
.globl fault
.data
.p2align 3
mend: .quad on_fault, 0, restorer, 0
word: .quad 0x5678`);
    expect([0, 1, 2, 3].map((n) => userland.word("result", n))).toEqual([
      -512n,
      0x5678n,
      BigInt(userland.at("fault")),
      -1n,
    ]);
    expect(userland.word("handled")).toBe(1n);
  });

  test("without a handler ends the task, and the log says where", async () => {
    const userland = await run(`
program main
	mov $0x1234, %edi
fault:	movb $1, (%rdi)
	ud2
done main
.globl fault`);
    const [line] = userland.lab.kernel.log.lines.filter((text) => text.includes("segfault"));
    const ip = userland.at("fault").toString(16).padStart(16, "0");
    expect(line).toContain(`main[3]: segfault at 1234 ip ${ip} sp `);
    expect(line).toMatch(/ error 6$/);
  });

  test("in a handler's frame that is not there ends the task", async () => {
    const userland = await run(`
program main
	handle SIGUSR1, counted
	mov $64, %esp
	send SIGUSR1
	movq $1, result(%rip)
	finish
done main`);
    expect(userland.word("result")).toBe(0x7777n);
    expect(userland.word("handled")).toBe(0n);
  });
});

describe("sigreturn", () => {
  test("believes nothing that would give user code more than it has", async () => {
    const userland = await run(`
program main
	handle SIGUSR1, greedy
	send SIGUSR1
	mov %cs, %eax
	mov %rax, result(%rip)
	pushfq
	popq result + 8(%rip)
	finish
done main
program on_signal
	movq $KERNEL_CS, 16 + PT_REGS_CS(%rsp)
	movq $KERNEL_DS, 16 + PT_REGS_SS(%rsp)
	movq $0x3000, 16 + PT_REGS_FLAGS(%rsp)	# IOPL 3, interrupts off
	incq handled(%rip)
	ret
done on_signal
.data
.p2align 3
greedy: .quad on_signal, 0, restorer, 0`);
    expect(userland.word("result")).toBe(0x33n);
    expect(userland.word("result", 1) & 0x3200n).toBe(0x200n);
    expect(userland.word("handled")).toBe(1n);
  });

  test("to the kernel's half is a fault of the task's", async () => {
    const userland = await run(`
program main
	handle SIGUSR1, lost
	send SIGUSR1
	movq $1, result(%rip)
	finish
done main
program on_signal
	movq $-4096, 16 + PT_REGS_IP(%rsp)
	ret
done on_signal
.data
.p2align 3
lost: .quad on_signal, 0, restorer, 0`);
    expect(userland.word("result")).toBe(0x7777n);
  });
});

describe("the fake signal", () => {
  const sleeper = `
program main
	lea fds(%rip), %rdi
	sys NR_pipe
	movq $1, sleeps(%rip)
	mov fds(%rip), %edi
	lea byte(%rip), %rsi
	mov $1, %edx
	sys NR_read
	mov %rax, result(%rip)
	finish
done main
program other
1:	doze 5000
	cmpq $0, sleeps(%rip)
	je 1b
	mov fds + 4(%rip), %edi
	lea byte(%rip), %rsi
	mov $1, %edx
	sys NR_write
	finish
done other
.data
.p2align 3
fds: .quad 0
byte: .quad 0
sleeps: .quad 0`;

  test("gets a sleeper to the boundary and back into its call, and nothing of it is seen", async () => {
    const userland = await Userland.open(COMMON + sleeper);
    const { lab } = userland;
    const task = userland.start("main");
    expect(userland.run()).toMatchObject({ kind: "idle" });
    expect(task.letter).toBe("S");
    const before = task.struct.getNumber("switches");
    const fake = { function: lab.symbol("fake_signal").address, argument: BigInt(task.struct.at) };
    lab.kernel.start(lab.kernel.createKthread({ comm: "fake", ...fake }));
    expect(userland.run()).toMatchObject({ kind: "idle" });
    expect(task.letter).toBe("S");
    expect(task.struct.getNumber("switches")).toBe(before + 1);
    expect(task.struct.getNumber("thread_flags")).toBe(0);
    expect(userland.word("result")).toBe(0x7777n);
    userland.start("other");
    userland.run();
    expect(userland.word("result")).toBe(1n);
    lab.dispose();
  });
});
