// The host's processor as a reference: what it refuses, what it never executes, and that it breaks down as a value.

import { readdirSync } from "node:fs";
import { tmpdir } from "node:os";
import { afterAll, beforeEach, describe, expect, test } from "vitest";
import { type Addr, addr, offset, PAGE_SIZE, toWord } from "../../src/base/addr.ts";
import { Machine } from "../../src/machine/machine.ts";
import { HostReference, openHost } from "../../src/reference/host.ts";
import { HostProcess } from "../../src/reference/hostProcess.ts";
import { lockstep } from "../../src/reference/lockstep.ts";
import { MemoryImage } from "../../src/reference/memoryImage.ts";
import { DATA, follow, type LowGuest, lowGuest, STACK, TEXT } from "./guest.ts";

const opened = await openHost();
if ("missing" in opened) console.log(`the host as a reference is not tested: ${opened.missing}`);
beforeEach((ctx) => {
  if ("missing" in opened) ctx.skip(opened.missing);
});
const host = opened as HostReference;
afterAll(() => {
  if (!("missing" in opened)) opened.close();
});

/** To a user's rights, as a program of the host has them. */
function toUser({ machine, vcpu }: LowGuest): void {
  for (const [at, { access }] of [...machine.memory.entries()])
    machine.memory.protect(at, PAGE_SIZE, { ...access, user: true });
  vcpu.system.setWord("cs", 0x33n);
  vcpu.system.setWord("ss", 0x2bn);
  vcpu.system.setPrivilege(3);
}

describe("memory that no program can have is refused in one line", () => {
  async function refused(at: Addr): Promise<string> {
    const machine = new Machine();
    machine.memory.map(at, PAGE_SIZE, { write: true, execute: false, user: false });
    const error = await lockstep(machine, machine.vcpus[0]!, host, { limit: 1 }).then(
      () => undefined,
      (thrown: unknown) => thrown,
    );
    expect(error).toMatchObject({ name: "Refusal" });
    return (error as Error).message;
  }

  test.each([
    ["in the kernel's half", -0x7f00_0000, "0xffffffff81000000 is in the kernel's half"],
    [
      "where the child's text is",
      0x5f00_0000_0000,
      "0x00005f0000000000 on: it has something of its own there",
    ],
    ["where the child works", 0x5f10_0000_1000, "0x00005f1000001000 on: it has something of its own there"],
    ["in the last page", 0x7fff_ffff_f000, "0x00007ffffffff000 on: no program may have so much, or so high"],
  ])("%s", async (_, at, message) => expect(await refused(addr(at))).toContain(message));

  test("at address zero", async (ctx) => {
    if (process.getuid?.() === 0) ctx.skip("root may");
    expect(await refused(addr(0))).toContain("0x0000000000000000 on: it does not allow that");
  });

  test("and so is a segment base in the kernel's half", async () => {
    const guest = await lowGuest("nop\n");
    guest.vcpu.gsBase = 0xffff_8880_0000_0000n;
    await expect(follow(guest, host)).rejects.toThrow("0xffff888000000000 is in the kernel's half");
  });

  test("and the reference is good for another run", async () => {
    expect(await follow(await lowGuest("nop\n"), host)).toMatchObject({
      ended: { kind: "reached" },
      agreed: 1,
    });
  });
});

describe("what enters the kernel is never executed", () => {
  // Each would kill the child, or be seen by it: exit(7), a write to its output, int 0x80, sysenter
  test.each([
    ["syscall", "mov $60, %eax\nmov $7, %edi\nsyscall\n"],
    ["syscall", "mov $1, %eax\nmov $1, %edi\nmov $8, %edx\nsyscall\n"],
    ["int", "mov $1, %eax\nint $0x80\n"],
    ["sysenter", "sysenter\n"],
    ["iretq", "iretq\n"],
    ["lcall", "lcall *(%rsi)\n"],
    ["wrgsbase", "wrgsbase %rsi\n"],
    ["rdtsc", "rdtsc\n"],
    ["hlt", "hlt\n"],
    ["in", "inb %dx, %al\n"],
  ])("%s", async (name, source) => {
    const guest = await lowGuest(source);
    const { notJudged, ended, difference } = await follow(guest, host);
    expect(difference).toBeUndefined();
    // Either this engine went on alone, or it could not either.
    if (!notJudged.has(name)) expect(ended).toMatchObject({ kind: "exit", judged: false });
    for (const counted of notJudged.keys()) expect(counted).toBe(name);
    expect(await follow(await lowGuest("nop\n"), host)).toMatchObject({
      ended: { kind: "reached" },
      agreed: 1,
    });
  });
});

describe("with a user's rights", () => {
  test.each([
    ["cli", "#GP"],
    ["sti", "#GP"],
  ])("%s is a fault of both", async (source, vector) => {
    const guest = await lowGuest(`nop\n${source}\n`);
    toUser(guest);
    expect((await follow(guest, host)).ended).toMatchObject({
      ...{ kind: "exit", judged: true },
      exit: { fault: { vector } },
    });
  });

  test("popf changes what a user's popf changes", async () => {
    const guest = await lowGuest(
      "pushq $0x4c0ed5\npopf\nlahf\nsetc %bl\npushq $2\npopf\nstd\npushq $0x3202\npopf\n",
    );
    toUser(guest);
    expect(await follow(guest, host)).toMatchObject({ ended: { kind: "reached" }, notJudged: new Map() });
    expect(guest.vcpu.rflags & 0x3000n).toBe(0n);
  });

  test("segment bases are the child's, too", async () => {
    const guest = await lowGuest("mov %gs:8, %rax\nmov %rax, %fs:(%rdi)\nmovsbl %gs:0, %ecx\n", { rdi: 24n });
    toUser(guest);
    guest.machine.memory.writeWord(offset(DATA, 0x108), 0x1122_3344_5566_7788n);
    guest.vcpu.gsBase = toWord(offset(DATA, 0x100));
    guest.vcpu.fsBase = toWord(STACK);
    expect(await follow(guest, host)).toMatchObject({ ended: { kind: "reached" }, agreed: 3 });
    expect(guest.machine.memory.readWord(offset(STACK, 24))).toBe(0x1122_3344_5566_7788n);
  });
});

describe("faults, as the processor reports them", () => {
  test.each([
    ["a read of nothing", "mov (%rdi), %rax", 0x4000_0123n, "#PF"],
    ["a write over a page's end", "mov %rax, (%rdi)", toWord(offset(DATA, 0x2000 - 3)), "#PF"],
    ["a read in the kernel's half", "mov (%rdi), %rax", 0xffff_8880_0000_0000n, "#PF"],
    ["an address that is not canonical", "mov (%rdi), %rax", 0x8000_0000_0000_0000n, "#GP"],
    ["a stack that is not canonical", "mov %rdi, %rsp; push %rax", 0x8000_0000_0000_0000n, "#SS"],
    ["data that is executed", "jmp *%rdi", toWord(DATA), "#PF"],
    ["nothing that is executed", "jmp *%rdi", 0x4000_0000n, "#PF"],
    ["a quotient that does not fit", "mov $1, %edx; div %rdi", 1n, "#DE"],
    ["ud2", "ud2", 0n, "#UD"],
    ["int3", "int3", 0n, "#BP"],
  ])("%s", async (_, source, rdi, vector) => {
    const guest = await lowGuest(`${source.replaceAll(";", "\n")}\n`, { rdi });
    toUser(guest);
    const { ended, difference, referenceFaults } = await follow(guest, host);
    expect(difference).toBeUndefined();
    // Some hosts do not return to such a stack: there the push is nobody's to judge.
    const judged = vector !== "#SS" || host.anyStack;
    expect(ended).toMatchObject({ kind: "exit", exit: { kind: "fault", fault: { vector } }, judged });
    expect(referenceFaults.size).toBe(0);
  });

  test("a wrong address of a page fault is a difference", async () => {
    const guest = await lowGuest("mov (%rdi), %rax\n", { rdi: 0x4000_0123n });
    const step = guest.vcpu.step.bind(guest.vcpu);
    guest.vcpu.step = () => {
      const exit = step();
      if (exit?.kind !== "fault" || exit.fault.vector !== "#PF") return exit;
      return { ...exit, fault: { ...exit.fault, address: offset(exit.fault.address, 1) } };
    };
    expect((await follow(guest, host)).difference).toMatchObject({
      ...{ fields: ["stop"], stops: { theirs: "#PF: read at 0x0000000040000123" } },
    });
  });

  test("where the child has something of its own, it is not asked", async () => {
    for (const rdi of [0x5f00_0000_0010n, 0x5f10_0000_0000n]) {
      const guest = await lowGuest("nop\nmov %rax, (%rdi)\n", { rdi });
      const { ended, referenceFaults, agreed } = await follow(guest, host);
      expect(ended).toMatchObject({ kind: "exit", exit: { fault: { vector: "#PF" } } });
      expect([...referenceFaults]).toEqual([["(an address at which the host has something of its own)", 1]]);
      expect(agreed).toBe(1);
    }
  });
});

describe("the child", () => {
  test("that is killed is the end of the run, as a value", async () => {
    const own = new HostReference(true);
    const guest = await lowGuest("1: add %rax, %rbx\njmp 1b\n");
    const running = follow(guest, own, {
      onProgress: (steps) => {
        if (steps > 2000) process.kill(childOf(own), "SIGKILL");
      },
    });
    const result = await running;
    expect(result.ended).toEqual({ kind: "lost", why: "the child process ended (SIGKILL)" });
    expect(result.difference).toBeUndefined();
    expect(result.steps).toBeGreaterThan(2000);
    own.close();
  });

  test("has no system calls, and nothing of it is left behind", async () => {
    const guest = await lowGuest("nop\n");
    const before = leftovers();
    const started = await HostProcess.start(new MemoryImage(guest.machine), { fs: 0n, gs: 0n });
    if (!(started instanceof HostProcess)) return expect.fail(started.why);
    expect(leftovers()).toEqual(before);
    // nop; syscall, behind the parent's back: getpid
    const code = new Uint8Array(PAGE_SIZE * 5);
    code.set([0xb8, 39, 0, 0, 0, 0x0f, 0x05]);
    started.write(code);
    const frame = new BigInt64Array(18 + 6);
    frame.set([BigInt(STACK) + 64n, BigInt(TEXT), 0x202n], 15);
    frame.set([BigInt(TEXT), 0x202n, 0n, BigInt(TEXT) + 5n, 0x202n, 0n], 18);
    started.send(frame);
    expect(await started.receive(8 * 24)).toBeUndefined();
    expect(started.lost).toBe("the child process ended (SIGKILL)");
    started.close();
  });

  function childOf(reference: HostReference): number {
    return reference.pid ?? expect.fail("there is no child");
  }

  function leftovers(): string[] {
    return readdirSync(tmpdir()).filter((name) => name.startsWith("fentrylab-host-"));
  }
});
