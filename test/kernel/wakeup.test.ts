// No wake-up is lost: whatever is waited for happens at every instruction of the wait, on another CPU, from where it is looked
// for to where its task sleeps; and what was waited for is seen, whenever it came.

import { describe, expect, test } from "vitest";
import type { ChoiceKind, Chooser } from "../../src/base/chooser.ts";
import { type Change, NO_GCC, partsWith } from "./compiled.ts";
import { Userland } from "./userland.ts";

interface Pair {
  readonly name: string;
  /** The waiter's call; what it returns goes to `result`. */
  readonly wait: string;
  /** What the waker does once it is told to. */
  readonly wake: string;
  readonly result: bigint;
}

const KILL = `mov waiter(%rip), %rdi
	mov $SIGUSR1, %esi
	sys NR_kill`;
const EINTR = -4n;
const PAIRS: readonly Pair[] = [
  {
    name: "a read, for a byte that is written before the pipe's end is closed",
    wait: `mov fds(%rip), %edi
	lea byte(%rip), %rsi
	mov $1, %edx
	sys NR_read`,
    wake: `mov fds + 4(%rip), %edi
	lea byte(%rip), %rsi
	mov $1, %edx
	sys NR_write
	mov fds + 4(%rip), %edi
	sys NR_close`,
    result: 1n,
  },
  {
    name: "a futex, whose word is changed",
    wait: `lea word(%rip), %rdi
	mov $FUTEX_WAIT, %esi
	xor %edx, %edx
	xor %r10d, %r10d
	sys NR_futex
	cmp $-EAGAIN, %rax			# the change was seen instead
	jne 1f
	xor %eax, %eax
1:`,
    wake: `movl $1, word(%rip)
	lea word(%rip), %rdi
	mov $FUTEX_WAKE, %esi
	mov $1, %edx
	sys NR_futex`,
    result: 0n,
  },
  { name: "a read, for a signal", wait: READ(), wake: KILL, result: EINTR },
  { name: "pause, for a signal", wait: "sys NR_pause", wake: KILL, result: EINTR },
  {
    name: "nanosleep, for a signal",
    wait: `lea hour(%rip), %rdi
	xor %esi, %esi
	sys NR_nanosleep`,
    wake: KILL,
    result: EINTR,
  },
  {
    name: "an exit of a child that is traced by nobody, for its parent: here of the waker",
    wait: `mov $-1, %rdi
	xor %esi, %esi
	xor %edx, %edx
	sys NR_wait4
	cmp child(%rip), %rax
	jne 1f
	mov $77, %eax
1:`,
    wake: "",
    result: 77n,
  },
];

function READ(): string {
  return `mov fds(%rip), %edi
	lea byte(%rip), %rsi
	mov $1, %edx
	sys NR_read`;
}

/** The waker is the waiter's child, on the other CPU; it spins until it is told. */
function program({ wait, wake }: Pair): string {
  return `
program main
	mov $SIGUSR1, %edi
	lea action(%rip), %rsi
	xor %edx, %edx
	sys NR_rt_sigaction
	lea fds(%rip), %rdi
	sys NR_pipe
	sys NR_getpid
	mov %rax, waiter(%rip)
	mov $CLONE_VM, %edi
	lea -2048(%rsp), %rsi
	sys NR_clone
	test %eax, %eax
	jz waker
	mov %rax, child(%rip)
	xor %edi, %edi
	mov $8, %esi
	lea first(%rip), %rdx
	sys NR_sched_setaffinity
2:	cmpq $0, there(%rip)
	je 2b
	movq $1, ready(%rip)
	${wait}
	mov %rax, result(%rip)
3:	doze 1000000
	jmp 3b
done main
program waker
	xor %edi, %edi
	mov $8, %esi
	lea second(%rip), %rdx
	sys NR_sched_setaffinity
	movq $1, there(%rip)
1:	cmpq $0, go(%rip)
	je 1b
	${wake}
	movq $1, woken(%rip)
	xor %edi, %edi
	sys NR_exit
done waker
program handler
	ret
done handler
.data
.p2align 3
action: .quad handler, 0, restorer, 0
first: .quad 1
second: .quad 2
hour: .quad 3600, 0
fds: .quad 0
byte: .quad 0
word: .quad 0
waiter: .quad 0
child: .quad 0
there: .quad 0
ready: .quad 0
go: .quad 0
woken: .quad 0
result: .quad 0x7777
`;
}

/** The waker runs as far as it can get, then both in turn. */
class WakerFirst implements Chooser {
  private patience = 200;
  private turn = 0;

  choose(kind: ChoiceKind, count: number): number {
    if (kind !== "vcpu") return 0;
    return this.patience-- > 0 ? 1 : this.turn++ % count;
  }
}

const QUIET = { interruptions: ["none"], tickEvery: 1e9 } as const;
const TRIES = 3000;

interface Outcome {
  /** Whether the waiter was in its call when the waker was told. */
  readonly entered: boolean;
  readonly result: bigint;
}

/** What the waker's part leads to at each instruction of the wait, up to where the waiter sleeps. */
async function outcomes(pair: Pair, change?: Change): Promise<Outcome[]> {
  const parts = change === undefined ? {} : { parts: partsWith(change) };
  const userland = await Userland.open(program(pair), { vcpus: 2, ...parts });
  const { machine, kernel } = userland.lab;
  const [first] = machine.vcpus;
  userland.start("main");
  const ready = () => (userland.word("ready") !== 0n ? "ready" : undefined);
  let turn = 0;
  const fair = { choose: (kind: ChoiceKind, count: number) => (kind === "vcpu" ? turn++ % count : 0) };
  expect(userland.run(100_000, { chooser: fair, slices: [1], ...QUIET }, ready).kind).toBe("stopped");
  const done = () => (userland.word("result") === 0x7777n ? undefined : "done");
  const found: Outcome[] = [];
  for (let tries = 0; tries < TRIES; tries++) {
    const here = machine.snapshot();
    const entered = !first!.system.user;
    const asleep = kernel.cpus[0]!.struct.getNumber("halted") !== 0;
    userland.set("go", 1n);
    userland.run(20_000, { chooser: new WakerFirst(), slices: [40], ...QUIET }, done);
    found.push({ entered, result: userland.word("result") });
    machine.restore(here);
    here.dispose();
    if (asleep) break;
    userland.run(1, { slices: [1], ...QUIET }); // the first CPU, which is awake
  }
  userland.lab.dispose();
  return found;
}

const wrong = (found: readonly Outcome[], { result }: Pair) => found.filter((one) => one.result !== result);

describe("at every instruction of", () => {
  test.each(PAIRS)("$name", async (pair) => {
    const found = await outcomes(pair);
    expect(found.length).toBeGreaterThan(60);
    // A signal that comes before the call is handled before it.
    const counted = pair.wake === KILL ? found.filter(({ entered }) => entered) : found;
    expect(counted.length).toBeGreaterThan(50);
    expect(wrong(counted, pair)).toEqual([]);
  });
});

describe.skipIf(NO_GCC !== undefined)(
  `a wake-up is seen to be lost where${NO_GCC ? ` (${NO_GCC})` : ""}`,
  () => {
    test.each<[string, number, Change]>([
      [
        "a pipe's reader looks behind its bytes whether anybody can write more",
        0,
        {
          file: "kernel/pipe.c",
          before: `		int writers = smp_load_acquire(&pipe->writers);

		taken = pipe_take(pipe, bytes, count);
		if (taken || !writers)`,
          after: `		taken = pipe_take(pipe, bytes, count);
		if (taken || !READ_ONCE(pipe->writers))`,
        },
      ],
      [
        "whoever waits on a futex is queued behind the look at its word",
        1,
        {
          file: "kernel/futex.c",
          before: `		if (!failed && now == value) {
			queue_waiter(current, address);
			set_current_state(TASK_INTERRUPTIBLE);
		}
		spin_unlock_irqrestore(&futex_lock, flags);`,
          after: `		spin_unlock_irqrestore(&futex_lock, flags);
		if (!failed && now == value) {
			flags = spin_lock_irqsave(&futex_lock);
			queue_waiter(current, address);
			set_current_state(TASK_INTERRUPTIBLE);
			spin_unlock_irqrestore(&futex_lock, flags);
		}`,
        },
      ],
      [
        "pause looks for signals only before it sleeps",
        3,
        {
          file: "kernel/signal.c",
          before: `		set_current_state(TASK_INTERRUPTIBLE);
		if (signal_pending(current))
			break;
		schedule();
	}
	set_current_state(TASK_RUNNING);
	return -ERESTARTNOHAND;`,
          after: `		set_current_state(TASK_UNINTERRUPTIBLE);
		WRITE_ONCE(current->state, TASK_INTERRUPTIBLE | 0x40);
		schedule();
	}
	set_current_state(TASK_RUNNING);
	return -ERESTARTNOHAND;`,
        },
      ],
      [
        "a parent looks for its children before it is in their queue",
        5,
        {
          file: "kernel/fork.c",
          before: `		prepare_to_wait(&child_wait, &entry, TASK_INTERRUPTIBLE);
		flags = spin_lock_irqsave(&tasklist_lock);
		task = find_waitable(pid, options, &relatives);`,
          after: `		flags = spin_lock_irqsave(&tasklist_lock);
		task = find_waitable(pid, options, &relatives);
		spin_unlock_irqrestore(&tasklist_lock, flags);
		prepare_to_wait(&child_wait, &entry, TASK_INTERRUPTIBLE);
		flags = spin_lock_irqsave(&tasklist_lock);`,
        },
      ],
    ])("%s", async (_, pair, change) => {
      const found = await outcomes(PAIRS[pair]!, change);
      expect(
        wrong(
          found.filter(({ entered }) => entered),
          PAIRS[pair]!,
        ),
      ).not.toEqual([]);
    });
  },
);
