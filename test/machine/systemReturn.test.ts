// Returns from interrupts and system calls, of every size and with everything that can be wrong with them; what they and
// other loads of segments note in descriptors, and take from user code.

import { describe, expect, test } from "vitest";
import { type Addr, addr, offset, PAGE_SIZE, toWord } from "../../src/base/addr.ts";
import { FLAG, type RegisterName } from "../../src/x86/register.ts";
import {
  GDT,
  KERNEL_DATA,
  KERNEL_STACK_TOP,
  onReturn,
  reset,
  resetToUser,
  SELECTOR,
  type SystemGuest,
  setGate,
  stepAll,
  systemGuest,
  TABLES,
  USER_STACK_TOP,
  USER_TEXT,
} from "./systemGuest.ts";

const { kernelCode, kernelData, userCode, userData } = SELECTOR;
/** Low enough for 16 bits: text of the kernel's, and a stack. */
const LOW_TEXT = addr(0x8000);
const LOW_STACK_TOP = addr(0xa000);

function put(guest: SystemGuest, at: Addr, values: readonly (number | bigint)[], size: number): void {
  const bytes = values.flatMap((value) =>
    Array.from({ length: size }, (_, n) => Number((BigInt(value) >> BigInt(8 * n)) & 0xffn)),
  );
  guest.machine.memory.write(at, Uint8Array.from(bytes));
}

const word = (guest: SystemGuest, selector: number): bigint =>
  guest.machine.memory.readWord(offset(GDT, selector & ~7));
const setWord = (guest: SystemGuest, selector: number, descriptor: bigint): void =>
  guest.machine.memory.writeWord(offset(GDT, selector & ~7), descriptor);

describe("iret of each size", () => {
  const SIZES: [string, number, bigint][] = [
    ["iretq", 8, -1n],
    ["iretl", 4, -1n],
    ["iretw", 2, 0xffffn],
  ];
  test.each(SIZES)("%s, in the kernel and to user code", async (name, size, flagMask) => {
    const guest = await systemGuest({ kernel: name === "iretw" ? ".byte 0x66, 0xcf" : name });
    const { memory } = guest.machine;
    for (const [page, user] of [
      [LOW_TEXT, false],
      [offset(LOW_TEXT, PAGE_SIZE), true],
    ] as const) {
      memory.map(page, PAGE_SIZE, { write: true, execute: true, user });
      memory.write(page, Uint8Array.of(0x0f, 0x01, 0xc1)); // vmcall
    }
    const loaded = FLAG.CF | FLAG.ZF | FLAG.IF | FLAG.DF | FLAG.IOPL | FLAG.AC;
    for (const user of [false, true]) {
      for (const step of [false, true]) {
        reset(guest);
        guest.vcpu.rflags = 2n | FLAG.ID | FLAG.SF;
        const rip = user ? offset(LOW_TEXT, PAGE_SIZE) : LOW_TEXT;
        const selectors = user ? [userCode, userData] : [kernelCode, kernelData];
        put(
          guest,
          offset(KERNEL_STACK_TOP, -64),
          [rip, selectors[0]!, 2n | loaded, LOW_STACK_TOP, selectors[1]!],
          size,
        );
        guest.vcpu.rsp = offset(KERNEL_STACK_TOP, -64);
        expect((step ? stepAll(guest) : guest.vcpu.run({ budget: 50 })).kind).toBe("hypercall");
        expect(guest.vcpu.rip).toBe(offset(rip, 3));
        expect(guest.vcpu.rsp).toBe(LOW_STACK_TOP);
        expect(guest.vcpu.system.user).toBe(user);
        const kept = name === "iretw" ? FLAG.ID : 0n;
        expect(guest.vcpu.rflags).toBe(2n | (loaded & flagMask) | kept);
      }
    }
    // What lies above its size is not looked at.
    reset(guest);
    put(guest, offset(KERNEL_STACK_TOP, -40), Array(5).fill(-1n), 8);
    guest.vcpu.rsp = offset(KERNEL_STACK_TOP, -40);
    onReturn(guest, 13, { skip: 8 });
    guest.vcpu.run({ until: guest.at("vector13"), budget: 20 });
    expect(guest.vcpu.rip).toBe(guest.at("vector13"));
  });
});

describe("returns that fault, at the instruction, with nothing changed", () => {
  const frame = {
    rip: toWord(USER_TEXT),
    cs: userCode,
    flags: 2,
    rsp: USER_STACK_TOP as number,
    ss: userData,
  };
  const ABSENT = 0x50;
  const WRONG: [string, Partial<Record<keyof typeof frame, number | bigint>>, number, number][] = [
    ["a null cs", { cs: 3 }, 13, 0],
    ["a cs beyond the table", { cs: 0x103 }, 13, 0x100],
    ["a cs of data", { cs: userData }, 13, userData & ~3],
    ["a cs whose level is not that of its selector", { cs: kernelCode | 3 }, 13, kernelCode],
    ["a cs that is not present", { cs: ABSENT | 3 }, 11, ABSENT],
    ["a cs of the local table, without one", { cs: userCode | 4 }, 13, (userCode & ~3) | 4],
    ["a null ss for user code", { ss: 3 }, 13, 0],
    ["an ss of another level", { ss: kernelData }, 13, kernelData],
    ["an ss that is not present", { ss: 0x58 | 3 }, 12, 0x58],
    ["an ss of code", { ss: userCode }, 13, userCode & ~3],
    ["an address that is not canonical", { rip: 1n << 47n }, 13, 0],
  ];
  describe.each(["iretq", "lretq"])("%s", (name) => {
    test.each(WRONG)("%s", async (_, wrong, vector, error) => {
      const guest = await systemGuest({ kernel: name });
      setWord(guest, ABSENT, 0x00af_7b00_0000_ffffn);
      setWord(guest, 0x58, 0x00cf_7300_0000_ffffn);
      guest.vcpu.system.setWord("gdtLimit", 0x5fn);
      setGate(guest, vector, { handler: guest.at(`vector${vector}`), ist: 1 });
      const { rip, cs, flags, rsp, ss } = { ...frame, ...wrong };
      const words = name === "iretq" ? [rip, cs, flags, rsp, ss] : [rip, cs, rsp, ss];
      put(guest, offset(KERNEL_STACK_TOP, -64), words, 8);
      guest.vcpu.rsp = offset(KERNEL_STACK_TOP, -64);
      const before = guest.vcpu.registers();
      expect(guest.vcpu.run({ until: guest.at(`vector${vector}`), budget: 20 }).kind).toBe("reached");
      expect(guest.vcpu.instructions).toBe(0);
      expect({ ...guest.vcpu.registers(), rsp: before.rsp }).toEqual(before);
      guest.vcpu.run({ budget: 50 });
      expect(guest.log()[0]).toMatchObject({
        vector,
        error: BigInt(error),
        rip: guest.at("kernel"),
        cs: BigInt(kernelCode),
      });
      expect(guest.log()[0]!.rsp).toBe(addr(before.rsp));
    });
  });
});

describe("the accessed bit of a descriptor", () => {
  const ACCESSED = 1n << 40n;
  const clear = (guest: SystemGuest, ...selectors: number[]) => {
    for (const selector of selectors) setWord(guest, selector, word(guest, selector) & ~ACCESSED);
  };
  const accessed = (guest: SystemGuest, selector: number) => (word(guest, selector) & ACCESSED) !== 0n;

  test("is set by loads of segments, by returns, by delivery", async () => {
    const guest = await systemGuest({
      kernel: `mov $${userData},%ecx\n mov %ecx,%ds\n a: mov $${kernelData},%ecx\n mov %ecx,%ss\n b: int $50\n c: iretq`,
      user: "vmcall",
    });
    clear(guest, kernelCode, kernelData, userCode, userData);
    guest.vcpu.run({ until: guest.at("a") });
    expect([kernelCode, kernelData, userCode, userData].map((one) => accessed(guest, one))).toEqual([
      false,
      false,
      false,
      true,
    ]);
    guest.vcpu.run({ until: guest.at("b") });
    expect(accessed(guest, kernelData)).toBe(true);
    guest.vcpu.run({ until: guest.at("c") });
    expect(accessed(guest, kernelCode)).toBe(true);
    clear(guest, userData);
    guest.vcpu.rsp = offset(KERNEL_STACK_TOP, -64);
    put(guest, guest.vcpu.rsp, [USER_TEXT, userCode, 2, USER_STACK_TOP, userData], 8);
    expect(guest.vcpu.run().kind).toBe("hypercall");
    expect([userCode, userData].map((one) => accessed(guest, one))).toEqual([true, true]);
  });

  test("that cannot be set is a page fault of the load; one that is set already needs no right to write", async () => {
    const guest = await systemGuest({ kernel: `mov $${userData},%ecx\n mov %ecx,%ds\n vmcall` });
    const { system } = guest.vcpu;
    guest.machine.memory.protect(TABLES, PAGE_SIZE, { write: false, execute: false, user: false });
    expect(guest.vcpu.run({ budget: 50 }).kind).toBe("hypercall");
    expect(system.getWord("ds")).toBe(BigInt(userData));
    reset(guest);
    system.setWord("ds", 0n);
    clear(guest, userData);
    expect(guest.vcpu.run({ until: guest.at("vector14"), budget: 50 }).kind).toBe("reached");
    expect(system.getWord("cr2")).toBe(toWord(offset(GDT, userData & ~7)));
    expect([system.getWord("ds"), accessed(guest, userData)]).toEqual([0n, false]);
  });
});

describe("data segments of the kernel's, on the way to user code", () => {
  const LOAD = ["ds", "es", "fs", "gs"].map(
    (name, n) => `mov $${n % 2 ? userData : kernelData},%ecx\n mov %ecx,%${name}`,
  );
  const BASES = "mov $0x1234,%eax\n wrfsbase %rax\n wrgsbase %rax";
  const WAYS: [string, string, boolean][] = [
    ["iretq", `pushq $${userData}\n push %rbx\n pushq $2\n pushq $${userCode}\n push %rcx\n iretq`, true],
    ["lretq", `pushq $${userData}\n push %rbx\n pushq $${userCode}\n push %rcx\n lretq`, true],
    ["sysretq", "mov $2,%r11d\n mov %rbx,%rsp\n sysretq", false],
  ];
  test.each(WAYS)("%s", async (_, code, nulls) => {
    const setUp = `${LOAD.join("\n")}\n ${BASES}\n movabs $${USER_STACK_TOP},%rbx\n movabs $${USER_TEXT},%rcx`;
    const guest = await systemGuest({ kernel: `${setUp}\n ${code}`, user: "vmcall" });
    const { system } = guest.vcpu;
    system.setWord("star", 0x0023_0010_0000_0000n);
    expect(guest.vcpu.run({ budget: 100 }).kind).toBe("hypercall");
    expect(system.user).toBe(true);
    const selectors = (["ds", "es", "fs", "gs"] as const).map((name) => Number(system.getWord(name)));
    expect(selectors).toEqual(
      nulls ? [0, userData, 0, userData] : [kernelData, userData, kernelData, userData],
    );
    expect([guest.vcpu.fsBase, guest.vcpu.gsBase]).toEqual([0x1234n, 0x1234n]);
  });

  test("not those that were loaded anew since, with a user's or a null selector; and not inside the kernel", async () => {
    const iret = (cs: number, ss: number, to: string) =>
      `pushq $${ss}\n push %rbx\n pushq $2\n pushq $${cs}\n lea ${to}(%rip),%rax\n push %rax\n iretq`;
    const guest = await systemGuest({
      kernel: `mov %rsp,%rbx\n mov $${kernelData},%ecx\n mov %ecx,%ds\n mov %ecx,%es\n ${iret(kernelCode, kernelData, "1f")}
        1: vmcall\n mov $${userData},%ecx\n mov %ecx,%ds\n movabs $${USER_STACK_TOP},%rbx\n movabs $${USER_TEXT},%rax
        pushq $${userData}\n push %rbx\n pushq $2\n pushq $${userCode}\n push %rax\n iretq`,
      user: "vmcall",
    });
    const { system } = guest.vcpu;
    expect(guest.vcpu.run({ budget: 100 }).kind).toBe("hypercall");
    expect([system.getWord("ds"), system.getWord("es")]).toEqual([BigInt(kernelData), BigInt(kernelData)]);
    expect(guest.vcpu.run({ budget: 100 }).kind).toBe("hypercall");
    expect(system.user).toBe(true);
    expect([system.getWord("ds"), system.getWord("es")]).toEqual([BigInt(userData), 0n]);
  });
});

describe("sysenter and sysexit", () => {
  const MSRS = { sysenterCs: 0x10n, sysenterEsp: toWord(KERNEL_STACK_TOP), sysenterEip: 0n } as const;
  async function made(kernel: string, user: string): Promise<SystemGuest> {
    const guest = await systemGuest({ kernel, user });
    const { system } = guest.vcpu;
    for (const [name, value] of Object.entries({ ...MSRS, sysenterEip: toWord(guest.at("kernel")) }))
      system.setWord(name as keyof typeof MSRS, value);
    resetToUser(guest);
    return guest;
  }

  test("there and back, a thousand times, run and stepped", async () => {
    const counts = [];
    for (const step of [false, true]) {
      // The user's descriptors follow the kernel's by 32 and 40 here: cs 0x30, ss 0x38.
      const guest = await made(
        "inc %rax\n mov %rsi,%rdx\n mov %rdi,%rcx\n sysexitq",
        "mov $1000,%ebx\n lea 2f(%rip),%rsi\n mov %rsp,%rdi\n 1: sysenter\n 2: dec %ebx\n jne 1b\n vmcall",
      );
      guest.vcpu.rflags = 2n | FLAG.IF;
      expect((step ? stepAll(guest) : guest.vcpu.run({ budget: 100_000 })).kind).toBe("hypercall");
      const { system } = guest.vcpu;
      expect([guest.vcpu.get("rax"), system.user, guest.vcpu.rsp]).toEqual([1000n, true, USER_STACK_TOP]);
      expect([system.getWord("cs"), system.getWord("ss")]).toEqual([0x33n, 0x3bn]);
      expect(guest.vcpu.rflags & FLAG.IF).toBe(0n);
      counts.push(guest.vcpu.instructions);
    }
    expect(counts[0]).toBe(counts[1]);
  });

  test("enter the kernel on its stack, with interrupts off", async () => {
    const guest = await made("vmcall", "sysenter");
    guest.vcpu.rflags = 2n | FLAG.IF | FLAG.CF;
    expect(guest.vcpu.run({ budget: 10 }).kind).toBe("hypercall");
    const { system } = guest.vcpu;
    expect([system.user, guest.vcpu.rsp, guest.vcpu.rflags]).toEqual([false, KERNEL_STACK_TOP, 2n | FLAG.CF]);
    expect([system.getWord("cs"), system.getWord("ss")]).toEqual([0x10n, 0x18n]);
  });

  test("fault with #GP(0) without a code segment, at a bad address, and sysexit outside the kernel", async () => {
    const BAD: [string, Partial<Record<RegisterName, bigint>>, bigint, boolean][] = [
      ["sysenter", {}, 3n, true],
      ["sysenter", {}, 3n, false],
      ["sysexitq", {}, 0x10n, true],
      ["sysexitq", {}, 0n, false],
      ["sysexitq", { rdx: 1n << 47n }, 0x10n, false],
      ["sysexitq", { rcx: 1n << 63n }, 0x10n, false],
    ];
    for (const [code, registers, cs, user] of BAD) {
      const guest = await made(code, code);
      (user ? resetToUser : reset)(guest);
      guest.vcpu.system.setWord("sysenterCs", cs);
      for (const [name, value] of Object.entries(registers)) guest.vcpu.set(name as RegisterName, value);
      guest.vcpu.run({ until: guest.at("vector13"), budget: 10 });
      guest.vcpu.run({ budget: 50 });
      expect(guest.log()[0]).toMatchObject({
        vector: 13,
        error: 0n,
        rip: guest.at(user ? "user" : "kernel"),
      });
    }
  });
});

describe("the local descriptor table", () => {
  const LDT = 0x50;
  const AT = offset(KERNEL_DATA, 0x100);
  async function faultOf(code: string, change: (guest: SystemGuest) => void = () => {}): Promise<unknown> {
    const guest = await systemGuest({ kernel: `${code.replaceAll("; ", "\n")}\n vmcall` });
    const base = toWord(AT);
    setWord(
      guest,
      LDT,
      0x0fn | ((base & 0xffffffn) << 16n) | (0x82n << 40n) | (((base >> 24n) & 0xffn) << 56n),
    );
    setWord(guest, LDT + 8, base >> 32n);
    guest.vcpu.system.setWord("gdtLimit", 0x5fn);
    guest.machine.memory.writeWord(offset(AT, 8), 0x00cf_9200_0000_ffffn);
    change(guest);
    const exit = guest.vcpu.run({ budget: 60 });
    const [first] = guest.log();
    return first === undefined ? exit.kind : [first.vector, Number(first.error)];
  }
  const load = (selector: number) => `mov $${selector},%eax; lldt %ax`;

  test("lldt takes an LDT of the global table that is present, or null", async () => {
    expect(await faultOf(load(LDT))).toBe("hypercall");
    expect(await faultOf(load(0))).toBe("hypercall");
    expect(await faultOf(load(kernelData))).toEqual([13, kernelData]);
    expect(await faultOf(load(SELECTOR.tss))).toEqual([13, SELECTOR.tss]);
    expect(await faultOf(load(LDT | 4))).toEqual([13, LDT | 4]);
    expect(await faultOf(load(LDT), (guest) => guest.vcpu.system.setWord("gdtLimit", 0x57n))).toEqual([
      13,
      LDT,
    ]);
    const absent = (guest: SystemGuest) => setWord(guest, LDT, word(guest, LDT) & ~(1n << 47n));
    expect(await faultOf(load(LDT), absent)).toEqual([11, LDT]);
  });

  test("its segments can be loaded, up to its limit", async () => {
    expect(await faultOf(`${load(LDT)}; mov $0xc,%eax; mov %eax,%ds`)).toBe("hypercall");
    expect(await faultOf(`${load(LDT)}; mov $0x14,%eax; mov %eax,%ds`)).toEqual([13, 0x14]);
    expect(await faultOf("mov $0xc,%eax; mov %eax,%ds")).toEqual([13, 0xc]);
  });
});

test("a TSS whose descriptor ends beyond the table is #GP", async () => {
  const guest = await systemGuest({ kernel: `mov $${SELECTOR.tss},%eax\n ltr %ax` });
  setWord(guest, SELECTOR.tss, word(guest, SELECTOR.tss) & ~(2n << 40n));
  guest.vcpu.system.setWord("gdtLimit", 0x47n);
  guest.vcpu.run({ until: guest.at("vector13"), budget: 10 });
  expect(guest.vcpu.rip).toBe(guest.at("vector13"));
});

describe("lar and lsl", () => {
  async function asked(code: string, user: boolean, change: (guest: SystemGuest) => void = () => {}) {
    const text = `mov $-1,%rax\n ${code.replaceAll("; ", "\n")}\n setz %bl\n vmcall`;
    const guest = await systemGuest(user ? { user: text } : { kernel: text });
    (user ? resetToUser : reset)(guest);
    change(guest);
    guest.vcpu.run({ budget: 50 });
    return [guest.vcpu.get("rbx") & 1n, guest.vcpu.get("rax")];
  }
  const ALL = 2n ** 64n - 1n;

  test("from user code: users' segments and conforming code, nothing of the kernel's", async () => {
    const ask = (selector: number, change?: (guest: SystemGuest) => void) =>
      asked(`mov $${selector},%ecx; lar %ecx,%eax`, true, change);
    expect(await ask(userData)).toEqual([1n, 0xcff300n & 0xf0ff00n]);
    expect(await ask(kernelData)).toEqual([0n, ALL]);
    expect(await ask(kernelCode)).toEqual([0n, ALL]);
    const conforming = (guest: SystemGuest) =>
      setWord(guest, kernelCode, word(guest, kernelCode) | (1n << 42n));
    expect(await ask(kernelCode, conforming)).toEqual([1n, 0xa09f00n]);
  });

  test("of 16 and 64 bits; from memory", async () => {
    expect(await asked(`mov $${kernelData},%ecx; lar %cx,%ax`, false)).toEqual([
      1n,
      (ALL & ~0xffffn) | 0x9300n,
    ]);
    expect(await asked(`mov $${kernelData},%ecx; lsl %cx,%ax`, false)).toEqual([1n, ALL]);
    expect(await asked(`mov $${kernelData},%ecx; lsl %rcx,%rax`, false)).toEqual([1n, 0xffffffffn]);
    expect(await asked(`pushq $${kernelData}; lsl (%rsp),%eax`, false)).toEqual([1n, 0xffffffffn]);
  });

  test("not of a system segment that the table cuts off, nor of a gate that has no limit", async () => {
    const cut = (guest: SystemGuest) => guest.vcpu.system.setWord("gdtLimit", 0x47n);
    const gate = (guest: SystemGuest) => setWord(guest, SELECTOR.tss, 0x0000_8c00_0010_0000n);
    for (const name of ["lar", "lsl"]) {
      const code = `mov $${SELECTOR.tss},%ecx; ${name} %ecx,%eax`;
      expect((await asked(code, false))[0]).toBe(1n);
      expect(await asked(code, false, cut)).toEqual([0n, ALL]);
      expect((await asked(code, false, gate))[0]).toBe(name === "lar" ? 1n : 0n);
    }
  });
});
