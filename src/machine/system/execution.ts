// A system instruction under way: its operands, where it goes on, how it ends.

import type { Addr } from "../../base/addr.ts";
import { bug } from "../../base/refuse.ts";
import type { Instruction } from "../../x86/decode.ts";
import { RSP } from "../../x86/register.ts";
import { usesStackSegment } from "../../x86/segment.ts";
import type { Fault } from "../exit.ts";
import { isFault, type Processor } from "./processor.ts";

/** `int n` and kin, which the caller delivers. */
export interface SoftwareInterrupt {
  readonly vector: number;
  readonly source: "software" | "trap";
}

/** Undefined if it retired, with rip where it goes on. */
export type Outcome = Fault | SoftwareInterrupt | undefined;

export type Execute = (x: Execution) => Outcome;

export const GENERAL_PROTECTION: Fault = { vector: "#GP", errorCode: 0 };
export const INVALID_OPCODE: Fault = { vector: "#UD" };

/** One instruction under way: its operands, and where it goes on. */
export class Execution {
  readonly cpu: Processor;
  readonly instruction: Instruction;
  readonly time: bigint;
  next: Addr;

  constructor(cpu: Processor, instruction: Instruction, time: bigint) {
    this.cpu = cpu;
    this.instruction = instruction;
    this.time = time;
    this.next = instruction.next;
  }

  get user(): boolean {
    return this.cpu.getWord("cpl") !== 0n;
  }

  /** Linear address of the memory operand. */
  get address(): bigint {
    const { memory, addressSize } = this.instruction;
    if (memory === undefined) return bug("no memory operand");
    let sum = memory.displacement;
    if (memory.base !== undefined) sum += this.cpu.getRegister(memory.base);
    if (memory.index !== undefined) sum += this.cpu.getRegister(memory.index) << BigInt(memory.shift);
    sum = BigInt.asUintN(8 * addressSize, sum);
    const segment =
      memory.segment === undefined ? 0n : this.cpu.getWord(memory.segment === "fs" ? "fsBase" : "gsBase");
    return BigInt.asIntN(64, sum + segment);
  }

  /** Bytes of register operand `n`. */
  size(n: number): number {
    const operand = this.instruction.operands[n];
    return operand?.kind === "register" ? operand.size : bug(`operand ${n} is no register`);
  }

  /** The low `size` bytes of register or memory operand `n`. */
  read(n: number, size: number): bigint | Fault {
    const operand = this.instruction.operands[n];
    if (operand?.kind === "register") return BigInt.asUintN(8 * size, this.cpu.getRegister(operand.reg));
    const value = this.cpu.readLinear(this.address, size, this.user);
    return isFault(value) ? this.judged(value) : value;
  }

  /** To a register operand of its own size (32 bits clear the upper half), or `size` bytes to memory. */
  write(n: number, value: bigint, size: number): Fault | undefined {
    const operand = this.instruction.operands[n];
    if (operand?.kind !== "register") {
      const fault = this.cpu.writeBytes(this.address, value, size, this.user);
      return fault === undefined ? undefined : this.judged(fault);
    }
    const cut = BigInt.asUintN(8 * operand.size, value);
    const old = this.cpu.getRegister(operand.reg);
    const upper = operand.size < 4 ? old & ~((1n << BigInt(8 * operand.size)) - 1n) : 0n;
    this.cpu.setRegister(operand.reg, upper | cut);
    return undefined;
  }

  /** A memory operand that goes by rsp or rbp is in the stack segment. */
  private judged(fault: Fault): Fault {
    return usesStackSegment(this.instruction, false) ? onStack(fault) : fault;
  }

  /** The number of system-register operand `n`. */
  number(n: number): number {
    const operand = this.instruction.operands[n];
    return operand !== undefined && "number" in operand
      ? operand.number
      : bug(`operand ${n} is no system register`);
  }

  setFlag(flag: bigint, on: boolean): void {
    this.cpu.rflags = on ? this.cpu.rflags | flag : this.cpu.rflags & ~flag;
  }
}

/** Only at privilege level 0. */
export function kernel(execute: Execute): Execute {
  return (x) => (x.user ? GENERAL_PROTECTION : execute(x));
}

export const nothing: Execute = () => undefined;

/** What is wrong with an address is #SS where it is the stack's. */
export function onStack(fault: Fault): Fault {
  return fault.vector === "#GP" ? { vector: "#SS", errorCode: 0 } : fault;
}

/** `words` words of `size` bytes from the stack, from `from` bytes above its top on. */
export function readStack(x: Execution, words: number, from = 0n, size = 8): bigint[] | Fault {
  const values: bigint[] = [];
  for (let n = 0; n < words; n++) {
    const at = BigInt.asIntN(64, x.cpu.getRegister(RSP) + from + BigInt(size * n));
    const value = x.cpu.readLinear(at, size, x.user);
    if (isFault(value)) return onStack(value);
    values.push(value);
  }
  return values;
}
