// The calls that tests of the guest kernel make: every shape of function in asm/, each with what it returns.

import { type Addr, addr, toWord } from "../../src/base/addr.ts";
import { FILE } from "../../src/kernel/layout.ts";
import type { Lab } from "../../src/lab.ts";
import { StructView } from "../../src/machine/struct.ts";
import type { Vcpu } from "../../src/machine/vcpu.ts";

export const GREETING = "hello from the old kernel";
export const READ_SIZE = 64;

export interface Workload {
  readonly name: string;
  readonly target: string;
  readonly args: (lab: Lab) => readonly bigint[];
  readonly result: bigint;
}

const constant =
  (...args: bigint[]) =>
  () =>
    args;

const toBuffer = (fd: bigint, size: number) => (lab: Lab) => [
  fd,
  toWord(lab.symbol("read_buffer").address),
  BigInt(size),
];

/** With every site off. */
export const WORKLOADS: readonly Workload[] = [
  { name: "leaf", target: "leaf", args: constant(1n), result: 2n },
  { name: "tail", target: "tail", args: constant(3n), result: 7n },
  { name: "loop", target: "loop", args: constant(4n), result: 14n },
  { name: "through_pointer", target: "through_pointer", args: constant(7n), result: 8n },
  { name: "mem_read", target: "sys_read", args: toBuffer(0n, READ_SIZE), result: 25n },
  { name: "mem_read, nothing", target: "sys_read", args: toBuffer(0n, 0), result: 0n },
  { name: "zero_read", target: "sys_read", args: toBuffer(1n, 12), result: 12n },
  { name: "no such fd", target: "sys_read", args: toBuffer(4n, 1), result: BigInt.asUintN(64, -9n) },
  { name: "closed fd", target: "sys_read", args: toBuffer(2n, 1), result: BigInt.asUintN(64, -9n) },
];

/** Puts the first task (or that of `vcpu`) at the start of the call, all files at their beginnings. */
export function beginWorkload(lab: Lab, { target, args }: Workload, vcpu?: Vcpu): Vcpu {
  const { memory } = lab.machine;
  const files = lab.symbol("files").address;
  for (const n of [0, 1]) new StructView(memory, FILE, addr(memory.readWord(at(files, 8 * n)))).set("pos", 0);
  memory.write(lab.symbol("read_buffer").address, new Uint8Array(READ_SIZE));
  return lab.begin(lab.symbol(target).address, args(lab), vcpu === undefined ? {} : { vcpu });
}

/** What the last read left in the buffer. */
export function readText(lab: Lab, size: number): string {
  return new TextDecoder().decode(lab.machine.memory.read(lab.symbol("read_buffer").address, size));
}

/** Steps the call to its end; `visit` sees the vCPU at every instruction boundary, the first and the last too. */
export function stepCall(lab: Lab, vcpu: Vcpu, visit: () => void = () => {}): bigint {
  for (let n = 0; n < 100_000; n++) {
    visit();
    const exit = vcpu.step();
    if (exit === undefined) continue;
    if (!lab.kernel.returned(exit)) throw new Error(`the call stopped: ${lab.describe(exit)}`);
    return vcpu.get("rax");
  }
  throw new Error("the call does not end");
}

export function at(base: Addr, bytes: number): Addr {
  return addr(base + bytes);
}
