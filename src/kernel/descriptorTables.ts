// What a CPU needs to take exceptions: GDT, IDT and TSS in guest memory, and the stacks that they name.
//
// One GDT and one TSS for each CPU, one IDT for all (SDM vol. 3, 3.4.5, 6.10, 8.7). Every gate is an interrupt
// gate to the kernel's code segment; selectors and stack numbers are Linux's (arch/x86/include/asm/segment.h,
// cpu_entry_area.h).

import { type Addr, offset, toWord } from "../base/addr.ts";
import type { Heap } from "../machine/heap.ts";
import type { Memory } from "../machine/memory.ts";
import type { Vcpu } from "../machine/vcpu.ts";
import { CONSTANTS, SELECTOR } from "./layout.ts";

const GDT_BYTES = 0x50;
const IDT_BYTES = 256 * 16;
const TSS_BYTES = 0x68;
/** Of the first interrupt stack in a TSS; they are numbered from 1. */
const TSS_IST1 = 0x24;
/** Descriptors: flat code and data of both levels, accessed already; present, 64-bit. */
const DESCRIPTORS: readonly (readonly [number, bigint])[] = [
  [SELECTOR.KERNEL_CS, 0x00af_9b00_0000_ffffn],
  [SELECTOR.KERNEL_DS, 0x00cf_9300_0000_ffffn],
  [SELECTOR.USER_DS, 0x00cf_f300_0000_ffffn],
  [SELECTOR.USER_CS, 0x00af_fb00_0000_ffffn],
];
const BUSY_TSS = 0x8bn;
const INTERRUPT_GATE = 0x8e00n;

export interface Gate {
  readonly vector: number;
  readonly handler: Addr;
  /** Which interrupt stack of the TSS, 1 to 7; 0 for the stack that is in use. */
  readonly ist: number;
}

/** Writes an IDT with `gates`; what has none is #GP. */
export function makeIdt(memory: Memory, heap: Heap, gates: readonly Gate[]): Addr {
  const idt = heap.allocate(IDT_BYTES, 4096);
  for (const { vector, handler, ist } of gates) {
    const to = toWord(handler);
    const low =
      (to & 0xffffn) |
      (BigInt(SELECTOR.KERNEL_CS) << 16n) |
      ((INTERRUPT_GATE | BigInt(ist)) << 32n) |
      (((to >> 16n) & 0xffffn) << 48n);
    memory.writeWord(offset(idt, 16 * vector), low);
    memory.writeWord(offset(idt, 16 * vector + 8), to >> 32n);
  }
  return idt;
}

/** The stacks that the hardware switches to by itself, each by the address past its highest. */
export interface EntryStacks {
  /** From user mode. */
  readonly rsp0: Addr;
  /** Interrupt stacks 1, 2 and so on. */
  readonly ist: readonly Addr[];
}

/** Gives `vcpu` a GDT and a TSS of its own, and `idt`; answers where the TSS is. */
export function loadTables(memory: Memory, heap: Heap, vcpu: Vcpu, idt: Addr, stacks: EntryStacks): Addr {
  const gdt = heap.allocate(GDT_BYTES, 64);
  const tss = heap.allocate(TSS_BYTES, 64);
  for (const [selector, word] of DESCRIPTORS) memory.writeWord(offset(gdt, selector & ~7), word);
  const base = toWord(tss);
  const limit = BigInt(TSS_BYTES - 1);
  const low = limit | ((base & 0xffffffn) << 16n) | (BUSY_TSS << 40n) | (((base >> 24n) & 0xffn) << 56n);
  memory.writeWord(offset(gdt, SELECTOR.TSS), low);
  memory.writeWord(offset(gdt, SELECTOR.TSS + 8), base >> 32n);
  memory.writeWord(offset(tss, CONSTANTS.TSS_RSP0), toWord(stacks.rsp0));
  stacks.ist.forEach((top, n) => {
    memory.writeWord(offset(tss, TSS_IST1 + 8 * n), toWord(top));
  });
  const { system } = vcpu;
  system.setWord("gdtBase", toWord(gdt));
  system.setWord("gdtLimit", BigInt(GDT_BYTES - 1));
  system.setWord("idtBase", toWord(idt));
  system.setWord("idtLimit", BigInt(IDT_BYTES - 1));
  system.setWord("tr", BigInt(SELECTOR.TSS));
  system.setWord("tssBase", base);
  system.setWord("tssLimit", limit);
  return tss;
}
