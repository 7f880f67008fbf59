// Hostile code: whatever it does, every ending is a value, within the budget. Random worlds first (`npm run hostile` goes
// on with them for hours), then what is known to have done harm, or was written to.

import { describe, expect, test } from "vitest";
import { addr, offset, PAGE_SIZE, toWord } from "../../src/base/addr.ts";
import { parseHexBytes } from "../../src/base/bytes.ts";
import type { Exit } from "../../src/machine/exit.ts";
import { Random } from "../fuzz/random.ts";
import { runHostile } from "../hostile/run.ts";
import { watched } from "../hostile/watchdog.ts";
import { DATA, type Guest, makeGuest, RW, RWX, RX, restart, setRegisters, TEXT } from "./guest.ts";
import {
  GDT,
  IDT,
  KERNEL_STACK_TOP,
  reset,
  resetToUser,
  setGate,
  stepAll,
  systemGuest,
  TSS,
} from "./systemGuest.ts";

const TOP = 2 ** 47;
const KINDS: readonly Exit["kind"][] = [
  ...(["reached", "budget", "hypercall", "halt", "fault", "interrupt", "shutdown", "unimplemented"] as const),
];

/** Both ways of executing: until something stops it, or `budget` is spent. */
const WAYS: Record<string, (guest: Guest, budget: number) => Exit> = {
  run: ({ machine, vcpu }, budget) => watched(machine, budget, () => vcpu.run({ budget })),
  stepped: (guest, budget) => watched(guest.machine, budget, () => stepAll(guest, budget)),
};

test.each([
  [1, 0],
  [2, 40],
  [3, 120],
])("random worlds: the same on every machine, run and stepped (seed %i from %i)", (seed, first) => {
  const { cases, spent, usage } = runHostile({ seed, first, more: (number) => number === first });
  expect(cases).toBe(40);
  expect(spent).toBeGreaterThan(50_000);
  expect(usage.bytes).toBeLessThan(16e6);
});

describe.each(Object.keys(WAYS))("%s", (way) => {
  const go = WAYS[way]!;

  describe("exceptions without end", () => {
    test("a handler that cannot be fetched, on an interrupt stack, runs out of budget", async () => {
      const guest = await systemGuest({ kernel: "ud2" });
      setGate(guest, 14, { handler: 0x5000n, ist: 1 });
      setGate(guest, 6, { handler: 0x5000n, ist: 1 });
      expect(go(guest, 5000).kind).toBe("budget");
      expect(guest.vcpu.instructions).toBe(0);
    });

    test("a stack that overflows: the guard page, then #DF on its own stack, or none", async () => {
      const guest = await systemGuest({ kernel: "call kernel" });
      setGate(guest, 8, { handler: guest.at("vector8"), ist: 2 });
      guest.vcpu.run({ until: guest.at("vector8"), budget: 5000 });
      expect(guest.vcpu.rip).toBe(guest.at("vector8"));
      expect(guest.vcpu.system.getWord("cr2")).toBe(toWord(offset(KERNEL_STACK_TOP, -0x4000 - 48)));
      reset(guest);
      setGate(guest, 8, { handler: guest.at("vector8") });
      expect(go(guest, 5000)).toEqual({ kind: "shutdown", ip: guest.at("kernel") });
    });

    test("tables of nothing, of garbage, beyond memory", async () => {
      const guest = await systemGuest({ kernel: "int3", user: "ud2" });
      const { memory } = guest.machine;
      const random = new Random().restart(1, 0);
      const garbage = Uint8Array.from({ length: 0x3000 }, () => random.below(256));
      const words = ["gdtBase", "idtBase", "tssBase"] as const;
      const places = [0n, 0x7fff_ffff_fff8n, 0x8000_0000_0000n, 1n << 63n, 2n ** 64n - 4n];
      for (const word of words) {
        for (const place of places) {
          resetToUser(guest);
          const before = guest.vcpu.system.getWord(word);
          guest.vcpu.system.setWord(word, place);
          expect(KINDS).toContain(go(guest, 500).kind);
          guest.vcpu.system.setWord(word, before);
        }
      }
      memory.write(GDT, garbage);
      for (const enter of [reset, resetToUser]) {
        enter(guest);
        expect(KINDS).toContain(go(guest, 500).kind);
      }
      for (const table of [GDT, IDT, TSS]) memory.write(table, new Uint8Array(0x1000));
      reset(guest);
      expect(go(guest, 500).kind).toBe("shutdown");
    });
  });

  describe("the ends of the address space", () => {
    const ENDS = [addr(TOP - PAGE_SIZE), addr(-TOP), addr(-PAGE_SIZE), addr(0)];

    test("random bytes as code there", () => {
      const random = new Random().restart(2, 0);
      for (const page of ENDS) {
        const guest = makeGuest("90");
        guest.machine.memory.map(page, PAGE_SIZE, RWX);
        for (let n = 0; n < 300; n++) {
          guest.machine.memory.write(
            page,
            Uint8Array.from({ length: PAGE_SIZE }, () => random.below(256)),
          );
          setRegisters(
            guest,
            { rbx: page, rdi: page, rsi: page + 4000 },
            offset(page, PAGE_SIZE - 1 - random.below(20)),
          );
          expect(KINDS).toContain(go(guest, 20).kind);
        }
      }
    });

    test("bytes that encode nothing, or half an instruction, before the last address", () => {
      const guest = makeGuest("90");
      const page = addr(TOP - PAGE_SIZE);
      guest.machine.memory.map(page, PAGE_SIZE, RX);
      for (const [bytes, fault] of [
        ["0f 04", { vector: "#UD" }],
        ["06", { vector: "#UD" }],
        ["48", { vector: "#GP", errorCode: 0 }],
      ] as const) {
        const code = parseHexBytes(bytes);
        const ip = offset(page, PAGE_SIZE - code.length);
        guest.machine.memory.write(ip, code);
        setRegisters(guest, {}, ip);
        expect(go(guest, 20)).toEqual({ kind: "fault", ip, fault });
      }
    });

    test("stacks there", async () => {
      const CODE =
        "push %rax; pop %rax; call kernel; ret; enter $8,$0; enter $8,$3; leave; pushfq; popfq; iretq; lretq; int3; ud2";
      const guest = await systemGuest({ kernel: `${CODE.replaceAll("; ", "\n")}\n end: vmcall` });
      for (const page of ENDS) guest.machine.memory.map(page, PAGE_SIZE, RW);
      const pointers = ENDS.flatMap((end) =>
        [end, end + PAGE_SIZE].flatMap((at) => [-16, -8, -4, 0, 4, 8].map((n) => at + n)),
      );
      for (const pointer of [...pointers.map((at) => BigInt(at)), 1n << 62n, (1n << 63n) - 8n]) {
        for (let ip = guest.at("kernel"); ip < guest.at("end"); ip = offset(ip, 1)) {
          reset(guest);
          guest.vcpu.set("rsp", BigInt.asIntN(64, pointer));
          guest.vcpu.set("rbp", BigInt.asIntN(64, pointer + 3n));
          guest.vcpu.rip = ip;
          expect(KINDS).toContain(go(guest, 60).kind);
        }
      }
    });
  });

  describe("code that rewrites code", () => {
    test("the immediate of the very next instruction, every time round", () => {
      // 0: inc %ebx; mov %bl,1(next); next: mov $0,%al; movzx %al,%eax; add %rax,%rdx; dec %ecx; jne 0; vmcall
      const guest = makeGuest("ff c3 88 1d 01 00 00 00 b0 00 0f b6 c0 48 01 c2 ff c9 75 ec 0f 01 c1");
      restart(guest, { rcx: 200 });
      expect(go(guest, 10_000).kind).toBe("hypercall");
      expect(guest.vcpu.get("rdx")).toBe((200n * 201n) / 2n);
    });

    test("itself, into a jump back and out again", () => {
      // 0: xorb $0x22,1(self) makes `dec %ecx` of ff c9 into `jmp *%...`'s neighbour and back
      const guest = makeGuest("80 35 03 00 00 00 00 90 48 ff c0 ff c9 75 f1 0f 01 c1");
      restart(guest, { rcx: 500 });
      expect(go(guest, 10_000).kind).toBe("hypercall");
      expect(guest.vcpu.get("rax")).toBe(500n);
    });

    test("its second half, on the next page, through an alias", () => {
      const guest = makeGuest("90");
      const alias = addr(0xffff_ffff_8200_0000n);
      guest.machine.memory.alias(alias, TEXT, 2 * PAGE_SIZE, RW);
      const at = offset(TEXT, PAGE_SIZE - 11);
      // 0: inc %bl; mov %bl,(%rdi); mov $imm,%eax across the pages; add %rax,%rdx; dec %ecx; jne 0; vmcall
      const code = parseHexBytes("fe c3 88 1f 90 90 90 90 90 b8 00 00 00 00 48 01 c2 ff c9 75 eb 0f 01 c1");
      guest.machine.memory.write(at, code);
      setRegisters(guest, { rdi: alias + PAGE_SIZE, rcx: 100 }, at);
      expect(go(guest, 10_000).kind).toBe("hypercall");
      expect(guest.vcpu.get("rdx")).toBe(((100n * 101n) / 2n) << 8n);
    });
  });

  test("a repetition that would not end stops where the budget does, and goes on", () => {
    const guest = makeGuest("f3 ac 0f 01 c1"); // rep lodsb; vmcall
    restart(guest, { rcx: -1n, rsi: DATA });
    expect(go(guest, 5000).kind).toBe("budget");
    expect([guest.vcpu.get("rcx"), guest.vcpu.getNumber("rsi")]).toEqual([2n ** 64n - 5001n, DATA + 5000]);
    expect(go(guest, 3000)).toMatchObject({ kind: "budget", ip: TEXT });
  });

  test("anything written to any model-specific register, and the system call after it", async () => {
    const guest = await systemGuest({
      kernel: "wrmsr\n syscall\n nop\n swapgs\n mov %gs:(%rbx),%rax\n sysretq\n sysenter\n vmcall",
    });
    const random = new Random().restart(3, 0);
    const numbers = [0x10, 0x174, 0x175, 0x176, ...Array.from({ length: 0x84 }, (_, n) => 0xc0000080 + n)];
    for (const number of numbers) {
      for (let n = 0; n < 6; n++) {
        reset(guest);
        guest.vcpu.set("rcx", BigInt(number));
        guest.vcpu.set("rax", BigInt(random.word()));
        guest.vcpu.set("rdx", BigInt(random.pick([0, -1, 0x7fff, 0x8000, random.word()])));
        expect(KINDS).toContain(go(guest, 100).kind);
        guest.vcpu.system.setWord("efer", 0xd01n);
      }
    }
  });

  test("far jumps and calls are named, or fault", () => {
    for (const code of ["ff 2b", "48 ff 2b", "ff 1b", "66 ff 2b", "ea 00 00 00 00 00 00", "ff eb", "ff db"]) {
      const guest = makeGuest(code);
      restart(guest, { rbx: DATA });
      const exit = go(guest, 10);
      expect([code, exit.kind === "unimplemented" || exit.kind === "fault"]).toEqual([code, true]);
    }
  });
});

test("code that is entered at every byte makes no more regions than fit", () => {
  const { machine } = makeGuest("90");
  const slide = addr(0x40_0000);
  machine.memory.map(slide, 2 * PAGE_SIZE, RX);
  machine.memory.write(slide, new Uint8Array(2 * PAGE_SIZE).fill(0xc3));
  let most = 0;
  for (let n = 0; n < 4500; n++) {
    machine.regions.compile(offset(slide, n));
    most = Math.max(most, machine.regions.activeCount);
  }
  expect(most).toBeGreaterThan(1000);
  expect(machine.regions.activeCount).toBeLessThan(most);
  expect(machine.trunk.table.length).toBeLessThan(most + 2048);
});

describe("the record of calls", () => {
  test("of code that sets rsp to ever another stack stays small, and quick", () => {
    const guest = makeGuest("48 81 c4 00 40 00 00 eb f7", { recordCalls: true }); // 0: add $0x4000,%rsp; jmp 0
    const { machine, vcpu } = guest;
    const before = machine.snapshot();
    expect(vcpu.run({ budget: 300_000 }).kind).toBe("budget");
    expect(machine.calls.stackCount).toBeLessThan(70_000);
    expect(machine.calls.journal!.size).toBeLessThan(70_000);
    expect(machine.trueChain(vcpu.rsp)).toEqual([]);
    machine.restore(before);
    expect(machine.calls.stackCount).toBe(0);
  });

  test("of exceptions without end, on an interrupt stack, stays short", async () => {
    const guest = await systemGuest({ kernel: "ud2", options: { recordCalls: true } });
    setGate(guest, 6, { handler: guest.at("kernel"), ist: 1 });
    expect(guest.vcpu.run({ budget: 20_000 }).kind).toBe("budget");
    expect(guest.machine.trueChain(guest.vcpu.rsp).length).toBeLessThan(1000);
  });
});

test("memory that a machine has used is used again", () => {
  const guest = makeGuest("90");
  const { machine } = guest;
  const page = addr(0x40_0000);
  const bytes = machine.host.u8.length;
  for (let n = 0; n < 20_000; n++) {
    machine.memory.map(page, PAGE_SIZE, RWX);
    machine.memory.unmap(page, PAGE_SIZE);
  }
  expect(machine.host.u8.length).toBe(bytes);
});
