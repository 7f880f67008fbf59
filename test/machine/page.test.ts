// Accesses that cross from one page to the next, at every place where they can, cold and in compiled code;
// and the same where the second page is code, which no write may reach unheard.

import { describe, expect, test } from "vitest";
import { type Addr, addr, offset, PAGE_SIZE } from "../../src/base/addr.ts";
import type { Exit } from "../../src/machine/exit.ts";
import { DATA, type Guest, loopOf, makeGuest, type Registers, RWX, setRegisters, TEXT } from "./guest.ts";

const A = 0x1122_3344_5566_7788n;
const B = 0x99aa_bbcc_ddee_ff01n;
const wrap = (value: bigint) => BigInt.asUintN(64, value);

interface Case {
  readonly what: string;
  readonly body: string;
  /** Where its accesses are; `at` crosses, the word there holds A before. */
  readonly registers: (at: Addr) => Registers;
  /** The word at `at` and rax afterwards; rax is B before. */
  readonly word: bigint;
  readonly rax: bigint;
}

const at8 = (at: Addr) => ({ rbx: at });

const CASES: readonly Case[] = [
  { what: "mov (%rbx),%rax", body: "48 8b 03", registers: at8, word: A, rax: A },
  { what: "mov %rax,(%rbx)", body: "48 89 03", registers: at8, word: B, rax: B },
  { what: "add %rax,(%rbx)", body: "48 01 03", registers: at8, word: wrap(A + B), rax: B },
  { what: "add (%rbx),%rax", body: "48 03 03", registers: at8, word: A, rax: wrap(A + B) },
  { what: "xchg %rax,(%rbx)", body: "48 87 03", registers: at8, word: B, rax: A },
  { what: "lock xadd %rax,(%rbx)", body: "f0 48 0f c1 03", registers: at8, word: wrap(A + B), rax: A },
  { what: "push %rax", body: "50", registers: (at) => ({ rsp: at + 8 }), word: B, rax: B },
  { what: "pop %rax", body: "58", registers: (at) => ({ rsp: at }), word: A, rax: A },
  { what: "push (%rbx), both across", body: "ff 33", registers: (at) => ({ rbx: at + PAGE_SIZE, rsp: at + 8 }), word: B, rax: B },
  { what: "pop (%rbx), both across", body: "8f 03", registers: (at) => ({ rbx: at, rsp: at + PAGE_SIZE }), word: B, rax: B },
  { what: "movsq, both across", body: "48 a5", registers: (at) => ({ rsi: at + PAGE_SIZE, rdi: at }), word: B, rax: B },
  { what: "stosq", body: "48 ab", registers: (at) => ({ rdi: at }), word: B, rax: B },
  { what: "lodsq", body: "48 ad", registers: (at) => ({ rsi: at }), word: A, rax: A },
  { what: "cmpsq; sete %al, both across", body: "48 a7 0f 94 c0", registers: (at) => ({ rsi: at, rdi: at + 2 * PAGE_SIZE }), word: A, rax: (B & ~0xffn) | 1n },
  { what: "cmpsq; setb %al, both across", body: "48 a7 0f 92 c0", registers: (at) => ({ rsi: at, rdi: at + PAGE_SIZE }), word: A, rax: (B & ~0xffn) | 1n },
  { what: "cmpsq; sete %al, of the same bytes", body: "48 a7 0f 94 c0", registers: (at) => ({ rsi: at, rdi: at }), word: A, rax: (B & ~0xffn) | 1n },
]; // biome-ignore format: one to a line

/** The three words that cases use, each across a page boundary of its own. */
function lay({ machine: { memory } }: Guest, at: Addr): void {
  memory.writeWord(at, A);
  memory.writeWord(offset(at, PAGE_SIZE), B);
  memory.writeWord(offset(at, 2 * PAGE_SIZE), A);
}

const before = { rax: B, rcx: 1 };

describe.each(CASES)("$what", ({ body, registers, word, rax }) => {
  const code = loopOf(body);

  function check(guest: Guest, at: Addr, act: (guest: Guest) => Exit): void {
    const { memory } = guest.machine;
    const around = () => [memory.read(offset(at, -16), 16), memory.read(offset(at, 8), 16)];
    lay(guest, at);
    const kept = around();
    setRegisters(guest, { ...before, ...registers(at) });
    expect(act(guest).kind).toBe("hypercall");
    expect([memory.readWord(at), guest.vcpu.get("rax")]).toEqual([word, rax]);
    expect(around()).toEqual(kept);
  }

  test("cold and compiled, at every distance from the boundary", () => {
    const guest = makeGuest(code);
    const everywhere = () => {
      for (let before = 0; before <= 8; before++)
        check(guest, offset(DATA, PAGE_SIZE - before), ({ vcpu }) => vcpu.run());
    };
    everywhere();
    for (let n = 0; n < 250; n++) {
      setRegisters(guest, { ...before, ...registers(offset(DATA, PAGE_SIZE)) });
      guest.vcpu.run();
    }
    everywhere();
    expect(guest.machine.regions.activeCount).toBeGreaterThan(0);
  });

  test("where both pages hold code", () => {
    const guest = makeGuest(code);
    const { memory } = guest.machine;
    const text = addr(0xffff_ffff_a000_0000n);
    memory.map(text, 4 * PAGE_SIZE, RWX);
    for (const page of [0, 1, 2, 3]) memory.markCode(offset(text, page * PAGE_SIZE));
    for (let n = 0; n < 250; n++) {
      setRegisters(guest, { ...before, ...registers(offset(DATA, PAGE_SIZE)) });
      guest.vcpu.run();
    }
    for (let before = 0; before <= 8; before++)
      check(guest, offset(text, PAGE_SIZE - before), ({ vcpu }) => vcpu.run());
  });
});

test("pages that share a place in the TLB do not evict one another within an instruction", () => {
  const far = offset(DATA, 256 * PAGE_SIZE); // 256 entries: the same one
  for (const body of ["48 a5", "48 a7"]) {
    const guest = makeGuest(loopOf(body)); // movsq, cmpsq
    const { memory } = guest.machine;
    memory.map(far, 2 * PAGE_SIZE, RWX);
    memory.writeWord(DATA, A);
    memory.writeWord(far, A);
    for (let n = 0; n < 300; n++) {
      setRegisters(guest, { rsi: DATA, rdi: far, rcx: 1 });
      expect(guest.vcpu.run({ budget: 10 }).kind).toBe("hypercall");
      expect(memory.readWord(far)).toBe(A);
    }
  }
});

test("an instruction across two pages of text runs, cold and compiled", () => {
  const guest = makeGuest("90");
  const { memory } = guest.machine;
  // mov $0x11223344,%eax; add %rax,%rdx; dec %rcx; jne back; vmcall
  const bytes = Uint8Array.of(
    0xb8,
    0x44,
    0x33,
    0x22,
    0x11,
    0x48,
    1,
    0xc2,
    0x48,
    0xff,
    0xc9,
    0x75,
    0xf3,
    0x0f,
    1,
    0xc1,
  );
  for (let before = 1; before < bytes.length; before++) {
    const at = offset(TEXT, PAGE_SIZE - before);
    memory.write(at, bytes);
    setRegisters(guest, { rcx: 700 }, at);
    expect(guest.vcpu.run()).toEqual({ kind: "hypercall", ip: offset(at, 13) });
    expect(guest.vcpu.get("rdx")).toBe(700n * 0x1122_3344n);
  }
});
