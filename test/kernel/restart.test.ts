// What user code sees of a system call that a signal interrupts: signal(7) under "Interruption of system calls and
// library functions by signal handlers" and "... by stop signals", syscall(7), the pages of the calls themselves.

import { describe, expect, test } from "vitest";
import { ERROR, type SIGNAL } from "../../src/kernel/layout.ts";
import { Userland } from "./userland.ts";

const SA_RESTART = 0x10000000;

/** Calls that sleep: how each is made, and what its partner does at last so that it need sleep no longer. */
const CALLS = {
  read: {
    call: `mov fds(%rip), %edi
	lea byte(%rip), %rsi
	mov $1, %edx
	sys NR_read`,
    wake: "call write_byte",
  },
  futex: {
    call: `lea word(%rip), %rdi
	mov $FUTEX_WAIT, %esi
	xor %edx, %edx
	xor %r10d, %r10d
	sys NR_futex`,
    wake: `movl $1, word(%rip)
	lea word(%rip), %rdi
	mov $FUTEX_WAKE, %esi
	mov $1, %edx
	sys NR_futex`,
  },
  "futex with a timeout": {
    call: `lea word(%rip), %rdi
	mov $FUTEX_WAIT, %esi
	xor %edx, %edx
	lea long(%rip), %r10
	sys NR_futex`,
    wake: "nop",
  },
  nanosleep: {
    call: `lea long(%rip), %rdi
	lea left(%rip), %rsi
	sys NR_nanosleep`,
    wake: "nop",
  },
  pause: { call: "sys NR_pause", wake: "nop" },
  wait4: {
    call: `mov %r14, %rdi
	xor %esi, %esi
	xor %edx, %edx
	sys NR_wait4`,
    wake: "nop",
  },
  epoll_wait: {
    call: `mov fds(%rip), %edi
	mov $-1, %r10
	sys NR_epoll_wait`,
    wake: "call write_byte",
  },
} as const;
type Call = keyof typeof CALLS;

/** One task makes the call, another sends it signals; what the call returned, when, and how often a handler ran. */
function program(call: Call, flags: number | "none", send: string): string {
  return `
program main
	${flags === "none" ? "" : "mov $SIGUSR1, %edi\n\tlea action(%rip), %rsi\n\txor %edx, %edx\n\tsys NR_rt_sigaction"}
	lea fds(%rip), %rdi
	sys NR_pipe
	sys NR_getpid
	mov %rax, %r13
	mov $CLONE_VM, %edi
	lea -2048(%rsp), %rsi
	sys NR_clone
	test %eax, %eax
	jz partner
	mov %rax, %r14
	xor %edi, %edi
	lea before(%rip), %rsi
	sys NR_clock_gettime
	# The handler is to leave all of these alone.
	mov $0x1111, %rbx
	mov $0x2222, %r8
	mov $0x3333, %r9
	mov $0x4444, %r12
	${CALLS[call].call}
	mov %rax, result(%rip)
	cmp $0x1111, %rbx
	check 1
	cmp $0x2222, %r8
	check 2
	cmp $0x3333, %r9
	check 3
	cmp $0x4444, %r12
	check 4
	xor %edi, %edi
	lea after(%rip), %rsi
	sys NR_clock_gettime
	movq $1, finished(%rip)
1:	doze 1000000
	jmp 1b
done main
program partner
	doze 2000
	${send}
	doze 3000
	${CALLS[call].wake}
	doze 2000
	xor %edi, %edi
	sys NR_exit
done partner
program write_byte
	mov fds + 4(%rip), %edi
	lea byte(%rip), %rsi
	mov $1, %edx
	sys NR_write
	ret
done write_byte
program handler
	incq handled(%rip)
	mov %rdi, signal(%rip)
	mov $0, %rbx
	mov $0, %r8
	mov $0, %r9
	mov $0, %r12
	ret
done handler
.data
.p2align 3
action: .quad handler, ${flags === "none" ? 0 : flags}, restorer, 0
long: .quad 0, 20000
left: .quad 0, -1
result: .quad 0x7777
before: .quad 0, 0
after: .quad 0, 0
handled: .quad 0
signal: .quad 0
finished: .quad 0
fds: .long 0, 0
word: .long 0
byte: .quad 0
`;
}

const kill = (signal: keyof typeof SIGNAL) => `mov %r13, %rdi\n\tmov $${signal}, %esi\n\tsys NR_kill`;
const stopAndGo = `${kill("SIGSTOP")}\n\tdoze 1000\n\t${kill("SIGCONT")}`;

interface Seen {
  readonly result: bigint | "never";
  readonly handled: bigint;
  /** Nanoseconds that it took. */
  readonly took: bigint;
  readonly left: bigint;
}

async function observe(call: Call, flags: number | "none", send: string): Promise<Seen> {
  const userland = await Userland.open(program(call, flags, send));
  userland.start("main");
  const watch = () => (userland.word("finished") !== 0n ? "finished" : undefined);
  const end = userland.run(300_000, {}, watch);
  const seen = {
    result: end.kind === "stopped" ? userland.word("result") : ("never" as const),
    handled: userland.word("handled"),
    took: userland.word("after", 1) - userland.word("before", 1),
    left: userland.word("left", 1),
  };
  userland.lab.dispose();
  return seen;
}

const EINTR = -BigInt(ERROR.EINTR);
/** The partner signals after 2 µs, and makes an end of it after 3 more. */
const SIGNALLED = 2_000n;

describe("a handler without SA_RESTART interrupts", () => {
  test.each(Object.keys(CALLS) as Call[])("%s, which fails with EINTR", async (call) => {
    const { result, handled } = await observe(call, 0, kill("SIGUSR1"));
    expect({ result, handled }).toEqual({ result: EINTR, handled: 1n });
  });
});

describe("with SA_RESTART", () => {
  test.each([
    ["read", 1n],
    ["futex", 0n],
  ] as const)("%s goes on behind the handler", async (call, result) => {
    expect(await observe(call, SA_RESTART, kill("SIGUSR1"))).toMatchObject({ result, handled: 1n });
  });

  test("so does wait4, until the child ends", async () => {
    const { result, handled } = await observe("wait4", SA_RESTART, kill("SIGUSR1"));
    expect(result).toBeGreaterThan(1n); // the child's number
    expect(handled).toBe(1n);
  });

  test.each(["pause", "nanosleep", "futex with a timeout", "epoll_wait"] as const)(
    "%s fails with EINTR all the same",
    async (call) => {
      expect(await observe(call, SA_RESTART, kill("SIGUSR1"))).toMatchObject({ result: EINTR, handled: 1n });
    },
  );
});

describe("nanosleep, interrupted", () => {
  test("says how much of its time is left", async () => {
    const { left, took } = await observe("nanosleep", 0, kill("SIGUSR1"));
    expect(took).toBeGreaterThan(SIGNALLED);
    expect(took).toBeLessThan(20_000n);
    expect(left).toBeGreaterThan(0n);
    expect(left).toBeLessThan(20_000n - SIGNALLED + 1n);
    expect(left + took).toBeGreaterThan(19_000n);
    expect(left + took).toBeLessThan(24_000n);
  });
});

describe("stopped and gone on with, without any handler,", () => {
  test.each([
    ["read", 1n],
    ["futex", 0n],
  ] as const)("%s goes on as if nothing had been", async (call, result) => {
    expect(await observe(call, "none", stopAndGo)).toMatchObject({ result, handled: 0n });
  });

  test("pause goes on for ever", async () => {
    expect(await observe("pause", "none", stopAndGo)).toMatchObject({ result: "never", handled: 0n });
  });

  test.each([
    ["nanosleep", 0n],
    ["futex with a timeout", -BigInt(ERROR.ETIMEDOUT)],
  ] as const)("%s ends when it would have ended, by restart_syscall", async (call, result) => {
    const seen = await observe(call, "none", stopAndGo);
    expect(seen.result).toBe(result);
    expect(seen.took).toBeGreaterThanOrEqual(20_000n);
    expect(seen.took).toBeLessThan(26_000n); // begun anew, it were 22,000 and what a stop takes
  });

  test("epoll_wait fails with EINTR, as Linux does", async () => {
    expect(await observe("epoll_wait", "none", stopAndGo)).toMatchObject({ result: EINTR, handled: 0n });
  });
});

describe("a signal that is ignored by default", () => {
  test.each(["read", "futex", "pause", "nanosleep", "epoll_wait"] as const)(
    "does not wake %s",
    async (call) => {
      const { result, handled } = await observe(call, "none", kill("SIGCHLD"));
      const undisturbed = await observe(call, "none", "nop");
      expect(result).toBe(undisturbed.result);
      expect(handled).toBe(0n);
    },
  );
});

describe("a signal that kills", () => {
  test.each(Object.keys(CALLS) as Call[])("ends %s and its task", async (call) => {
    const userland = await Userland.open(program(call, 0, kill("SIGKILL")));
    const task = userland.start("main");
    userland.run();
    expect(userland.word("result")).toBe(0x7777n);
    expect(userland.lab.kernel.tasks).not.toContain(task);
    userland.lab.dispose();
  });
});
