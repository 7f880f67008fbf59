// A small guest to run hand-assembled programs in: a page or more of text, some data, a stack.

import { expect } from "vitest";
import { type Addr, addr, offset, PAGE_SIZE } from "../../src/base/addr.ts";
import { parseHexBytes } from "../../src/base/bytes.ts";
import type { Exit } from "../../src/machine/exit.ts";
import { Machine, type MachineOptions } from "../../src/machine/machine.ts";
import type { Access } from "../../src/machine/memory.ts";
import type { Vcpu } from "../../src/machine/vcpu.ts";
import type { RegisterName } from "../../src/x86/register.ts";

export const TEXT = addr(0xffff_ffff_8100_0000n);
export const TEXT_PAGES = 4;
export const DATA = addr(0xffff_8880_0000_0000n);
export const DATA_PAGES = 4;
export const STACK = addr(0xffff_c900_0000_0000n);
export const STACK_TOP = offset(STACK, 16384);

export const RX: Access = { write: false, execute: true, user: false };
export const RW: Access = { write: true, execute: false, user: false };
export const RO: Access = { write: false, execute: false, user: false };
export const RWX: Access = { write: true, execute: true, user: false };

export interface Guest {
  readonly machine: Machine;
  readonly vcpu: Vcpu;
}

export type Registers = Partial<Record<RegisterName, bigint | number>>;

/** A machine with text that may write itself, data, and a 16 KiB stack; `code` is hex, from TEXT on. */
export function makeGuest(code: string | Uint8Array, options: MachineOptions = {}): Guest {
  const machine = new Machine(options);
  machine.memory.map(TEXT, TEXT_PAGES * PAGE_SIZE, RWX);
  machine.memory.map(DATA, DATA_PAGES * PAGE_SIZE, RW);
  machine.memory.map(STACK, 16384, RW);
  machine.memory.write(TEXT, typeof code === "string" ? parseHexBytes(code) : code);
  const vcpu = machine.vcpus[0]!;
  restart({ machine, vcpu }, {});
  return { machine, vcpu };
}

/** Registers to zero but for those given and rsp, flags clear, rip to the start of text; data and stack anew. */
export function restart(guest: Guest, registers: Registers): void {
  setRegisters(guest, registers);
  guest.machine.memory.write(DATA, new Uint8Array(DATA_PAGES * PAGE_SIZE).fill(0xa5));
  guest.machine.memory.write(STACK, new Uint8Array(16384));
}

/** The same, leaving memory as it is. */
export function setRegisters({ vcpu }: Guest, registers: Registers, rip: Addr = TEXT): void {
  for (const name of Object.keys(vcpu.registers()) as RegisterName[]) vcpu.set(name, 0n);
  vcpu.rsp = STACK_TOP;
  for (const [name, value] of Object.entries(registers)) vcpu.set(name as RegisterName, BigInt(value));
  vcpu.rflags = 0n;
  vcpu.rip = rip;
}

export interface State {
  readonly registers: Record<RegisterName, bigint>;
  readonly rip: Addr;
  readonly rflags: bigint;
}

export function stateOf({ vcpu }: Guest): State {
  return { registers: vcpu.registers(), rip: vcpu.rip, rflags: vcpu.rflags };
}

/** What `act` executes, in instructions. */
export function counted<T>({ vcpu }: Guest, act: () => T): { result: T; instructions: number } {
  const before = vcpu.instructions;
  const result = act();
  return { result, instructions: vcpu.instructions - before };
}

/** Steps until something stops it: the state before each instruction, the last one's included. */
export function trace(guest: Guest, limit = 100_000): { states: State[]; exit: Exit } {
  const states = [stateOf(guest)];
  for (let n = 0; n < limit; n++) {
    const exit = guest.vcpu.step();
    states.push(stateOf(guest));
    if (exit !== undefined) return { states, exit };
  }
  return expect.fail("the program does not end");
}

/** Runs `body`, count times, from the start of text; ends in vmcall. rcx counts down. */
export function loopOf(body: string): string {
  const size = parseHexBytes(body).length;
  const back = (256 - (size + 5)).toString(16);
  return `${body} 48 ff c9 75 ${back} 0f 01 c1`; // dec %rcx; jne body; vmcall
}
