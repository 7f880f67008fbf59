// This engine and native Unicorn, instruction by instruction over the same program.
//
// Flags that the manual leaves undefined are not compared; ours are set to Unicorn's, so that what is made
// of them (a pushf, a conditional jump) does not differ later for that reason.

import { expect } from "vitest";
import { PROT } from "../../bench/unicorn.ts";
import { type Addr, addr, hex, PAGE_SIZE, toWord } from "../../src/base/addr.ts";
import { hexBytes } from "../../src/base/bytes.ts";
import type { Machine } from "../../src/machine/machine.ts";
import type { Vcpu } from "../../src/machine/vcpu.ts";
import { decode, MAX_LENGTH, printInstruction } from "../../src/x86/decode.ts";
import { GPR, STATUS_FLAGS } from "../../src/x86/register.ts";
import { flagEffect } from "../x86/cases-flags.ts";
import { FLAG_MASK } from "../x86/cases-model.ts";
import type { Page, UnicornMachine } from "./unicornMachine.ts";

const LOCK_NEG = /^lock neg/;

export interface Area {
  readonly at: Addr;
  /** In bytes. */
  readonly size: number;
}

export interface Lockstep {
  readonly machine: Machine;
  readonly vcpu: Vcpu;
  readonly unicorn: UnicornMachine;
  /** The vCPU starts at its first byte. */
  readonly code: Area;
  /** Code elsewhere, if there is any. */
  readonly more?: readonly Area[];
  /** Compared at the end. */
  readonly data: readonly Area[];
}

/** Steps both from the vCPU's state until `end` or for at most `limit` instructions; how many it were. */
export function stepBoth(lockstep: Lockstep, end: Addr, limit: number): number {
  const { machine, vcpu, unicorn, code, more = [], data } = lockstep;
  expect(vcpu.rip).toBe(code.at);
  const pages = [
    ...data.flatMap(({ at, size }) => pagesIn(machine, at, size)),
    ...more.flatMap(({ at, size }) => pagesIn(machine, at, size, PROT.READ + PROT.EXEC)),
  ];
  const registers = Object.fromEntries(GPR.map((name) => [name, vcpu.get(name)]));
  const bytes = machine.memory.read(code.at, code.size);
  unicorn.load({ at: code.at, code: bytes, registers: { ...registers, rflags: vcpu.rflags }, pages });
  let undefinedFlags = 0n;
  let left: readonly Uint8Array[] = [];
  let steps = 0;
  for (; steps < limit && vcpu.rip !== end; steps++) {
    const { rip, rflags } = vcpu;
    const before = vcpu.registers();
    const instruction = instructionAt(machine, rip);
    const program = { bytes: instruction, before: { registers: before, rflags: Number(rflags), memory: [] } };
    const effect = flagEffect(program, false);
    undefinedFlags = (undefinedFlags & ~BigInt(effect.written)) | BigInt(effect.undefined);
    // lock neg of a byte leaves wrong flags in Unicorn 2.0.1; silicon's are in test/cases/atomic.case.
    if (LOCK_NEG.test(printInstruction(instruction, rip))) undefinedFlags |= STATUS_FLAGS;
    const exit = vcpu.step();
    let theirs = unicorn.step();
    // A finished REP takes it one more step, which sees that nothing is left to do.
    if (vcpu.rip !== rip && theirs.registers.rip === toWord(rip)) theirs = unicorn.step();
    left = theirs.pages;
    const where = `step ${steps}: ${hex(rip)} ${hexBytes(instruction)} ${printInstruction(instruction, rip)}`;
    expect({ exit, stop: theirs.stop }, where).toEqual({ exit: undefined, stop: "UC_ERR_OK" });
    const ours = { ...vcpu.registers(), rip: toWord(vcpu.rip) };
    const { rflags: theirFlags, ...theirRegisters } = theirs.registers;
    expect(ours, where).toEqual(theirRegisters);
    // Between the iterations of a REP ours keeps the flags from before it (SDM vol. 2, REP).
    if (vcpu.rip === rip) continue;
    const compared = BigInt(FLAG_MASK) & ~undefinedFlags;
    expect((vcpu.rflags & compared).toString(16), where).toBe((theirFlags & compared).toString(16));
    if (undefinedFlags !== 0n) vcpu.rflags = (vcpu.rflags & ~undefinedFlags) | (theirFlags & undefinedFlags);
  }
  left.forEach((page, n) => {
    const { at } = pages[n]!;
    expect(Buffer.compare(machine.memory.read(at, PAGE_SIZE), page), `page ${hex(at)}`).toBe(0);
  });
  return steps;
}

function pagesIn(machine: Machine, at: Addr, size: number, perms: number = PROT.READ + PROT.WRITE): Page[] {
  return Array.from({ length: Math.ceil(size / PAGE_SIZE) }, (_, n) => {
    const page = addr(at + n * PAGE_SIZE);
    return { at: page, bytes: machine.memory.read(page, PAGE_SIZE), perms };
  });
}

function instructionAt(machine: Machine, rip: Addr): Uint8Array {
  const bytes = machine.memory.read(rip, MAX_LENGTH);
  const decoded = decode(bytes, rip);
  return decoded.kind === "instruction" ? bytes.subarray(0, decoded.instruction.length) : bytes;
}
