// What exception delivery and system instructions need of a vCPU: its state words and memory as it sees it.

import type { Addr } from "../../base/addr.ts";
import type { Gpr } from "../../x86/register.ts";
import type { STATE } from "../../x86/state.ts";
import type { Fault } from "../exit.ts";

/** A 64-bit word of the vCPU's state, by its name in x86/state.ts. */
export type StateWord = Exclude<keyof typeof STATE, "size">;

/** Bits of dr6 and dr7 that always read as one (SDM vol. 3, 17.2). */
export const DR6_FIXED = 0xffff0ff0n;
export const DR7_FIXED = 0x400n;

export interface Processor {
  rip: Addr;
  rflags: bigint;
  getRegister(reg: Gpr): bigint;
  setRegister(reg: Gpr, value: bigint): void;
  getWord(name: StateWord, index?: number): bigint;
  setWord(name: StateWord, value: bigint, index?: number): void;
  /** A little-endian value of `size` bytes at a linear address, with the rights of `user` code or the kernel's. */
  readLinear(at: bigint, size: number, user: boolean): bigint | Fault;
  /** Stores all parts or none. */
  writeLinear(at: bigint, parts: readonly bigint[], user: boolean): Fault | undefined;
  /** The same for one little-endian value of any size. */
  writeBytes(at: bigint, value: bigint, size: number, user: boolean): Fault | undefined;
  /** Why `size` bytes cannot be stored there. */
  checkWrite(at: bigint, size: number, user: boolean): Fault | undefined;
  /** From now on, code runs at `level`. */
  setPrivilege(level: 0 | 3): void;
}

export function isFault(value: bigint | Fault): value is Fault {
  return typeof value !== "bigint";
}
