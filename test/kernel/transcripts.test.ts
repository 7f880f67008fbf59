// What the kernel says, as it is read: logs, task dumps, oopses.

import { describe, expect, test } from "vitest";
import { offset } from "../../src/base/addr.ts";
import { seeded } from "../../src/explore/chooser.ts";
import { DEFAULT_SETTINGS } from "../../src/explore/settings.ts";
import { Runner } from "../../src/run.ts";
import { compare } from "../transcript.ts";
import { Userland } from "./userland.ts";

describe("the log", () => {
  test("of a whole run of the patients", async () => {
    const runner = await Runner.open({ ...DEFAULT_SETTINGS, vcpus: 2 });
    expect(runner.run(seeded(1)).finding).toBeNull();
    compare("run-log", runner.patients.lab.kernel.log.lines);
  });
});

describe("the task dump", () => {
  test("in the middle of a run: sleepers, waiters, runners, in the kernel and in user mode", async () => {
    const runner = await Runner.open({ ...DEFAULT_SETTINGS, vcpus: 2, budget: 150_000 });
    expect(runner.run(seeded(3)).finding).toBeNull();
    compare("task-dump", runner.patients.lab.dumper.tasks());
  });

  test("of a CPU in an NMI in an interrupt, on three stacks", async () => {
    const userland = await Userland.open("program main\n1: jmp 1b\ndone main\n");
    const { lab } = userland;
    const [vcpu] = lab.machine.vcpus;
    userland.start("main");
    userland.run(2000);
    lab.kernel.interrupt(0, 0xec);
    vcpu!.run({ until: lab.symbol("timer_tick").address, budget: 1000 });
    lab.kernel.nmi(0);
    vcpu!.run({ until: lab.symbol("nmi_handler").address, budget: 1000 });
    compare("nmi-stack", lab.dumper.running(vcpu!));
  });
});

/** A module's function that goes wrong, called by a kthread of its. */
async function wrong(symbol: string, argument = 0n): Promise<string[]> {
  const userland = await Userland.open("program main\nret\ndone main\n");
  const { kernel } = userland.lab;
  const call = { function: userland.lab.symbol(symbol).address, argument };
  kernel.start(kernel.createKthread({ comm: "culprit", ...call }));
  expect(userland.run().kind).toMatch(/oops|hang/);
  return kernel.log.lines;
}

describe("what cannot go on", () => {
  test.each([
    ["oops-null", "fault_page"],
    ["oops-protection", "fault_protection"],
    ["oops-opcode", "fault_invalid"],
    ["oops-divide", "fault_divide"],
  ])("%s", async (name, symbol) => {
    compare(name, await wrong(symbol));
  });

  test("a mutex that somebody else owns: a panic", async () => {
    const userland = await Userland.open("program main\nret\ndone main\n");
    const { lab } = userland;
    const mutex = BigInt(lab.allocate(64));
    const unlock = { function: lab.symbol("mutex_unlock").address, argument: mutex };
    lab.kernel.start(lab.kernel.createKthread({ comm: "culprit", ...unlock }));
    expect(userland.run()).toMatchObject({ kind: "oops", text: expect.stringContaining("does not own it") });
    compare("panic-mutex", lab.kernel.log.lines);
  });

  test("a segfault and an illegal instruction of user tasks, who are killed", async () => {
    const userland = await Userland.open(`
program bad_read
	mov $0x1234, %edi
	mov (%rdi), %rax
	ud2
done bad_read
program bad_opcode
	ud2
done bad_opcode
program bad_jump
	mov $-4096, %rax
	jmp *%rax
done bad_jump
`);
    for (const name of ["bad_read", "bad_opcode", "bad_jump"]) userland.start(name);
    expect(userland.run()).toMatchObject({ kind: "idle" });
    compare("user-faults", userland.lab.kernel.log.lines);
  });
});

describe("the watchdog", () => {
  /** A mutex that a task owns who is not there, with what it owns, held or not. */
  function lostMutex({ lab }: Userland, lock: bigint): bigint {
    const mutex = lab.allocate(64);
    const [owner, waitersLock] = [offset(mutex, 8), offset(mutex, 16)];
    lab.machine.memory.writeWord(owner, BigInt(lab.kernel.tasks[0]!.struct.at));
    lab.machine.memory.writeWord(waitersLock, lock);
    return BigInt(mutex);
  }

  test("of a CPU that spins for a lock with interrupts off: a soft lockup", async () => {
    const userland = await Userland.open("program main\nret\ndone main\n");
    const { kernel } = userland.lab;
    const lock = { function: userland.lab.symbol("mutex_lock").address, argument: lostMutex(userland, 1n) };
    kernel.start(kernel.createKthread({ comm: "spinner", ...lock }));
    const patience = { softLockup: 30_000 };
    expect(userland.run(200_000, { patience })).toMatchObject({ kind: "hang", what: "soft lockup", cpu: 0 });
    compare("soft-lockup", kernel.log.lines);
  });

  test("of a task that waits and cannot be interrupted: a hung task", async () => {
    const userland = await Userland.open("program main\n1: jmp 1b\ndone main\n");
    const { kernel } = userland.lab;
    const lock = { function: userland.lab.symbol("mutex_lock").address, argument: lostMutex(userland, 0n) };
    kernel.start(kernel.createKthread({ comm: "waiter", ...lock }));
    userland.start("main"); // so that time goes on
    expect(userland.run(200_000, { patience: { hungTask: 50_000 } })).toMatchObject({
      kind: "hang",
      what: "hung task",
    });
    compare("hung-task", kernel.log.lines);
  });
});
