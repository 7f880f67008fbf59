// GDT, IDT and TSS as they lie in guest memory, read by hand as the manual lays them out.

import { beforeAll, describe, expect, test } from "vitest";
import { type Addr, addr, offset, PAGE_SIZE } from "../../src/base/addr.ts";
import { CPU_STACKS } from "../../src/image/layout.ts";
import { GATES } from "../../src/kernel/exception.ts";
import { SELECTOR } from "../../src/kernel/layout.ts";
import { Lab } from "../../src/lab.ts";
import { STACK_SIZE } from "../../src/machine/callRecord.ts";

let lab: Lab;
beforeAll(async () => {
  lab = await Lab.open({ vcpus: 3 });
});

const read = (at: Addr, size: number) => Buffer.from(lab.machine.memory.read(at, size));
const tables = (n: number) => {
  const { system } = lab.machine.vcpus[n]!;
  const at = (name: "gdtBase" | "idtBase" | "tssBase") => addr(system.getWord(name));
  return { gdt: at("gdtBase"), idt: at("idtBase"), tss: at("tssBase"), tr: Number(system.getWord("tr")) };
};

describe("the IDT", () => {
  test("is one for all, with a present interrupt gate of level 0 to the code of each vector that has any", () => {
    const { idt } = tables(0);
    expect([tables(1).idt, tables(2).idt]).toEqual([idt, idt]);
    for (let vector = 0; vector < 256; vector++) {
      const gate = read(offset(idt, 16 * vector), 16);
      const known = GATES.find((one) => one.vector === vector);
      if (known === undefined) {
        expect(gate, `${vector}`).toEqual(Buffer.alloc(16));
        continue;
      }
      const target =
        BigInt(gate.readUInt16LE(0)) |
        (BigInt(gate.readUInt16LE(6)) << 16n) |
        (BigInt(gate.readUInt32LE(8)) << 32n);
      expect(addr(target), known.symbol).toBe(lab.symbol(known.symbol).address);
      expect(gate.readUInt16LE(2)).toBe(SELECTOR.KERNEL_CS);
      expect(gate[4]).toBe(known.ist);
      expect(gate[5]).toBe(0x8e);
      expect(gate.readUInt32LE(12)).toBe(0);
    }
  });

  test("gives double faults and NMIs stacks of their own, and nothing else", () => {
    const own = GATES.filter(({ ist }) => ist !== 0).map(({ vector }) => vector);
    expect(own.sort((a, b) => a - b)).toEqual([2, 8]);
    expect(new Set(GATES.map(({ vector }) => vector)).size).toBe(GATES.length);
  });
});

describe.each([0, 1, 2])("of vCPU %i", (n) => {
  test("the GDT has flat segments of both levels, and its own TSS, which is loaded", () => {
    const { gdt, tss, tr } = tables(n);
    const descriptor = (selector: number) => read(offset(gdt, selector & ~7), 8);
    const level = (selector: number) => (descriptor(selector)[5]! >> 5) & 3;
    const type = (selector: number) => descriptor(selector)[5]! & 0x9f;
    const long = (selector: number) => (descriptor(selector)[6]! >> 5) & 1;
    const { KERNEL_CS, KERNEL_DS, USER_CS, USER_DS, TSS } = SELECTOR;
    expect([KERNEL_CS, KERNEL_DS, USER_DS, USER_CS].map(level)).toEqual([0, 0, 3, 3]);
    expect([KERNEL_CS, KERNEL_DS, USER_DS, USER_CS].map((selector) => selector & 3)).toEqual([0, 0, 3, 3]);
    expect([KERNEL_CS, USER_CS].map(type)).toEqual([0x9b, 0x9b]);
    expect([KERNEL_CS, USER_CS].map(long)).toEqual([1, 1]);
    expect([KERNEL_DS, USER_DS].map(type)).toEqual([0x93, 0x93]);
    const busy = read(offset(gdt, TSS), 16);
    const base =
      BigInt(busy.readUIntLE(2, 3)) | (BigInt(busy[7]!) << 24n) | (BigInt(busy.readUInt32LE(8)) << 32n);
    expect([addr(base), tr, busy[5]]).toEqual([tss, TSS, 0x8b]);
    expect(lab.machine.vcpus[n]!.system.getWord("gdtLimit")).toBe(0x4fn);
    expect(tables((n + 1) % 3).gdt).not.toBe(gdt);
  });

  test("the TSS names its exception stacks", () => {
    const { irqStack, exceptionStacks, struct } = lab.kernel.cpus[n]!;
    const tss = read(tables(n).tss, 0x68);
    const ist = [1, 2].map((one) => addr(tss.readBigUInt64LE(0x24 + 8 * (one - 1))));
    expect(ist).toEqual(exceptionStacks.map(({ high }) => high));
    expect(struct.getNumber("irq_stack")).toBe(irqStack.high - 8);
  });

  test("its stacks are its own, each with a guard below, none a task's", () => {
    const { irqStack, exceptionStacks } = lab.kernel.cpus[n]!;
    const stacks = [irqStack, ...exceptionStacks];
    expect(stacks.map(({ low }) => low)).toEqual(
      [0, 1, 2].map((one) => offset(CPU_STACKS, (3 * n + one) * 2 * STACK_SIZE)),
    );
    for (const { low, high } of stacks) {
      expect(high - low).toBe(STACK_SIZE);
      expect(lab.machine.memory.isMapped(low, STACK_SIZE)).toBe(true);
      for (const at of [offset(low, -PAGE_SIZE), high])
        expect(lab.machine.memory.isMapped(at, 1)).toBe(false);
      expect(lab.kernel.tasks.some(({ stack }) => stack.low < high && low < stack.high)).toBe(false);
    }
  });
});
