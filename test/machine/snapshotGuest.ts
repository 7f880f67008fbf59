// What tests of snapshots share: a guest that stores over and over, and code of it that can be poked.

import { expect } from "vitest";
import { type Addr, offset, PAGE_SIZE } from "../../src/base/addr.ts";
import { DATA, type Guest, loopOf, TEXT } from "./guest.ts";

export const page = (n: number): Addr => offset(DATA, n * PAGE_SIZE);
/** mov $1,%eax; mov %rax,(%rbx), over and over. */
export const STORE = loopOf("b8 01 00 00 00 48 89 03");
const IMMEDIATE = offset(TEXT, 1);

/** Runs it, and gives what it has stored. */
export function run(guest: Guest, iterations: number, at: Addr = DATA): bigint {
  guest.vcpu.rip = TEXT;
  guest.vcpu.set("rcx", BigInt(iterations));
  guest.vcpu.set("rbx", BigInt(at));
  expect(guest.vcpu.run().kind).toBe("hypercall");
  return guest.machine.memory.readWord(at);
}

/** Pages that are not written for this long are no longer followed. */
export function letIdle({ machine }: Guest): void {
  for (let n = 0; n < 12; n++) {
    machine.memory.writeWord(page(3), BigInt(n));
    machine.snapshot().dispose();
  }
}

export const poke = (guest: Guest, value: number) =>
  guest.machine.memory.write(IMMEDIATE, Uint8Array.of(value));
