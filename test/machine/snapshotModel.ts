// A guest that uses what snapshots hold, and the naive model of a snapshot: a full copy of everything.

import { type Addr, addr, offset, PAGE_SIZE } from "../../src/base/addr.ts";
import { parseHexBytes } from "../../src/base/bytes.ts";
import { Machine } from "../../src/machine/machine.ts";
import type { Access } from "../../src/machine/memory.ts";
import type { RegisterName } from "../../src/x86/register.ts";
import { DATA, RW, RWX, STACK, TEXT } from "./guest.ts";

/** Where pages come and go: data, text, and a second view of either. */
export const ALIAS = addr(0xffff_e000_0000_0000n);
export const WINDOW: readonly Addr[] = [
  ...[0, 1, 2, 3, 4, 5].map((n) => offset(DATA, n * PAGE_SIZE)),
  ...[0, 1].map((n) => offset(TEXT, n * PAGE_SIZE)),
  ...[0, 1, 2].map((n) => offset(ALIAS, n * PAGE_SIZE)),
  ...[0, 1].map((n) => offset(STACK, n * PAGE_SIZE)),
];
export const VCPUS = 2;

/** Bytes of code that may be changed: immediates on both pages of text. */
export const POKES: readonly Addr[] = [offset(TEXT, 2), offset(TEXT, PAGE_SIZE + 2), offset(TEXT, 20)];

/** Writes all over four pages of data, and calls a function on the other page of text. */
const LOOP = [
  "48 05 11 00 00 00", // add $0x11,%rax
  "89 cb", // mov %ecx,%ebx
  "81 e3 f8 3f 00 00", // and $0x3ff8,%ebx
  "49 89 04 18", // mov %rax,(%r8,%rbx)
  "48 81 c1 d1 05 00 00", // add $0x5d1,%rcx
  "e8 e2 0f 00 00", // call TEXT + 4096
  "eb e0", // jmp TEXT
].join(" ");
const CALLEE = "48 83 c2 07 48 01 c2 c3"; // add $7,%rdx; add %rax,%rdx; ret

export function makeMachine(recordCalls: boolean): Machine {
  const machine = new Machine({ vcpus: VCPUS, recordCalls });
  const { memory } = machine;
  memory.map(DATA, 4 * PAGE_SIZE, RW);
  memory.map(TEXT, 2 * PAGE_SIZE, RWX);
  memory.map(STACK, 2 * PAGE_SIZE, RW);
  memory.write(TEXT, parseHexBytes(LOOP));
  memory.write(offset(TEXT, PAGE_SIZE), parseHexBytes(CALLEE));
  machine.vcpus.forEach((vcpu, n) => {
    vcpu.rip = TEXT;
    vcpu.rsp = offset(STACK, PAGE_SIZE * (n + 1));
    vcpu.set("r8", BigInt.asUintN(64, BigInt(DATA)));
    vcpu.set("rcx", BigInt(n * 999));
  });
  return machine;
}

interface PageCopy {
  readonly page: Addr;
  readonly access: Access;
  /** The lowest page that shows the same frame. */
  readonly as: Addr;
  readonly bytes: string;
}

interface VcpuCopy {
  readonly registers: Record<RegisterName, bigint>;
  readonly rip: Addr;
  readonly rflags: bigint;
  readonly bases: readonly bigint[];
  readonly instructions: number;
}

export interface FullCopy {
  readonly pages: readonly PageCopy[];
  readonly vcpus: readonly VcpuCopy[];
  readonly chains: readonly unknown[];
}

export function copyOf(machine: Machine): FullCopy {
  const { memory } = machine;
  return {
    pages: WINDOW.flatMap((page) => {
      const found = memory.find(page);
      if (found === undefined) return [];
      const as = WINDOW.filter((other) => memory.find(other)?.frame === found.frame).sort(
        (a, b) => a - b,
      )[0]!;
      return [{ page, access: found.access, as, bytes: latin1(memory.read(page, PAGE_SIZE)) }];
    }),
    vcpus: machine.vcpus.map((vcpu) => ({
      registers: vcpu.registers(),
      rip: vcpu.rip,
      rflags: vcpu.rflags,
      bases: [vcpu.fsBase, vcpu.gsBase],
      instructions: vcpu.instructions,
    })),
    chains: [0, 1].map((n) => machine.trueStack(offset(STACK, n * PAGE_SIZE + 8))),
  };
}

/** What the hash stands for: all but what was executed and recorded. */
export function stateKey({ pages, vcpus }: FullCopy): string {
  return JSON.stringify([pages, vcpus.map(({ instructions: _, ...rest }) => rest)], (_, value) =>
    typeof value === "bigint" ? String(value) : value,
  );
}

/** A new machine brought into that state, by another way. */
export function rebuild(copy: FullCopy): Machine {
  const machine = new Machine({ vcpus: VCPUS });
  const { memory } = machine;
  for (const { page, access, as, bytes } of copy.pages.toReversed()) {
    if (page !== as) continue;
    memory.map(page, PAGE_SIZE, RW);
    memory.protect(page, PAGE_SIZE, access);
    memory.write(
      page,
      Uint8Array.from(bytes, (byte) => byte.charCodeAt(0)),
    );
  }
  for (const { page, access, as } of copy.pages) if (page !== as) memory.alias(page, as, PAGE_SIZE, access);
  copy.vcpus.forEach(({ registers, rip, rflags, bases }, n) => {
    const vcpu = machine.vcpus[n]!;
    for (const [name, value] of Object.entries(registers)) vcpu.set(name as RegisterName, value);
    vcpu.rip = rip;
    vcpu.rflags = rflags;
    vcpu.fsBase = bases[0]!;
    vcpu.gsBase = bases[1]!;
  });
  return machine;
}

function latin1(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString("latin1");
}
