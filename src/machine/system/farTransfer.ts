// Instructions that change the privilege level, or could: syscall, sysret, iretq, far returns.

import { addr, isCanonical } from "../../base/addr.ts";
import { bug } from "../../base/refuse.ts";
import { Code, type Instruction } from "../../x86/decode.ts";
import { EFER, FLAG, RCX, RDX, RSP, STATUS_FLAGS } from "../../x86/register.ts";
import type { Fault } from "../exit.ts";
import { markAccessed, readDescriptor } from "./descriptor.ts";
import { type Execute, type Execution, GENERAL_PROTECTION, INVALID_OPCODE, readStack } from "./execution.ts";
import { findStackSegment, leaveInnerSegments } from "./segment.ts";

const R11 = 11;

export const syscall: Execute = (x) => {
  const { cpu } = x;
  if ((cpu.getWord("efer") & EFER.SCE) === 0n) return INVALID_OPCODE;
  cpu.setRegister(RCX, BigInt.asUintN(64, BigInt(x.next)));
  cpu.setRegister(R11, cpu.rflags & ~FLAG.RF);
  const selector = (cpu.getWord("star") >> 32n) & 0xfffcn;
  cpu.setWord("cs", selector);
  cpu.setWord("ss", selector + 8n);
  cpu.rflags = cpu.rflags & ~cpu.getWord("fmask") & ~FLAG.RF;
  x.next = addr(cpu.getWord("lstar"));
  cpu.setPrivilege(0);
  return undefined;
};

/** Flags that sysret takes from r11 (SDM vol. 2, SYSRET). */
const SYSRET_FLAGS = 0x3c7fd7n;

export const sysret: Execute = (x) => {
  const { cpu } = x;
  if ((cpu.getWord("efer") & EFER.SCE) === 0n) return INVALID_OPCODE;
  const target = cpu.getRegister(RCX);
  if (!isCanonical(target)) return GENERAL_PROTECTION;
  const selector = (cpu.getWord("star") >> 48n) & 0xffffn;
  cpu.setWord("cs", ((selector + 16n) & 0xffffn) | 3n);
  cpu.setWord("ss", ((selector + 8n) & 0xffffn) | 3n);
  cpu.rflags = (cpu.getRegister(R11) & SYSRET_FLAGS) | 2n;
  x.next = addr(target);
  cpu.setPrivilege(3);
  return undefined;
};

// ---- The other maker's pair: sysenter and sysexit take everything from registers.

export const sysenter: Execute = (x) => {
  const { cpu } = x;
  const selector = cpu.getWord("sysenterCs") & 0xfffcn;
  if (selector === 0n) return GENERAL_PROTECTION;
  cpu.setWord("cs", selector);
  cpu.setWord("ss", selector + 8n);
  cpu.rflags &= ~FLAG.IF;
  cpu.setRegister(RSP, cpu.getWord("sysenterEsp"));
  x.next = addr(cpu.getWord("sysenterEip"));
  cpu.setPrivilege(0);
  return undefined;
};

/** The 64-bit form. */
export const sysexit: Execute = (x) => {
  const { cpu } = x;
  const selector = cpu.getWord("sysenterCs") & 0xfffcn;
  const [target, rsp] = [cpu.getRegister(RDX), cpu.getRegister(RCX)];
  if (selector === 0n || !isCanonical(target) || !isCanonical(rsp)) return GENERAL_PROTECTION;
  cpu.setWord("cs", ((selector + 32n) & 0xffffn) | 3n);
  cpu.setWord("ss", ((selector + 40n) & 0xffffn) | 3n);
  cpu.setRegister(RSP, rsp);
  x.next = addr(target);
  cpu.setPrivilege(3);
  return undefined;
};

/** Flags that IRETQ at privilege level 0 takes from the stack, all but VM, VIF and VIP. */
const IRET_FLAGS =
  STATUS_FLAGS | FLAG.TF | FLAG.IF | FLAG.DF | FLAG.IOPL | FLAG.NT | FLAG.RF | FLAG.AC | FLAG.ID;

/** Bytes of each word that a far return pops, by its operand size. */
const SIZES = new Map<Code, number>([
  [Code.Iretq, 8],
  [Code.Iretd, 4],
  [Code.Iretw, 2],
  [Code.Retfq, 8],
  [Code.Retfq_imm16, 8],
  [Code.Retfd, 4],
  [Code.Retfd_imm16, 4],
  [Code.Retfw, 2],
  [Code.Retfw_imm16, 2],
]);

/** Whether `instruction` is one of the far returns, iret among them. */
export function isFarReturn({ code }: Instruction): boolean {
  return SIZES.has(code);
}

function sizeOf({ instruction }: Execution): number {
  return SIZES.get(instruction.code) ?? bug("a far return of no size");
}

/** In 64-bit mode always with rsp and ss, whatever its size and wherever it leads. */
export const iret: Execute = (x) => {
  const { cpu } = x;
  cpu.setWord("nmiBlocked", 0n); // even if it faults (SDM vol. 3, 6.7.1)
  if ((cpu.rflags & FLAG.NT) !== 0n) return GENERAL_PROTECTION;
  const size = sizeOf(x);
  const frame = readStack(x, 5, 0n, size);
  if (!Array.isArray(frame)) return frame;
  const [rip, cs, flags, rsp, ss] = frame as [bigint, bigint, bigint, bigint, bigint];
  const level = checkReturn(x, rip, cs, ss);
  if (typeof level !== "number") return level;
  const cpl = x.user ? 3 : 0;
  let taken = size === 2 ? IRET_FLAGS & 0xffffn : IRET_FLAGS;
  if (cpl !== 0) taken &= ~FLAG.IOPL;
  if (BigInt(cpl) > (cpu.rflags & FLAG.IOPL) >> 12n) taken &= ~FLAG.IF;
  cpu.rflags = (cpu.rflags & ~taken) | (flags & taken);
  leaveTo(x, { rip, cs, rsp, ss }, level);
  return undefined;
};

/** lret: rip and cs, and to an outer level rsp and ss as well. */
export const farReturn: Execute = (x) => {
  const { cpu, instruction } = x;
  const release = instruction.operands[0];
  const extra = release?.kind === "immediate" ? release.value : 0n;
  const size = sizeOf(x);
  const popped = BigInt(2 * size) + extra;
  const inner = readStack(x, 2, 0n, size);
  if (!Array.isArray(inner)) return inner;
  const [rip, cs] = inner as [bigint, bigint];
  const outward = Number(cs & 3n) > (x.user ? 3 : 0);
  let rsp = cpu.getRegister(RSP) + popped;
  let ss = cpu.getWord("ss");
  if (outward) {
    const outer = readStack(x, 2, popped, size);
    if (!Array.isArray(outer)) return outer;
    [rsp, ss] = outer as [bigint, bigint];
    rsp += extra; // what the caller pushed is on both stacks
  }
  const level = checkReturn(x, rip, cs, ss);
  if (typeof level !== "number") return level;
  leaveTo(x, { rip, cs, rsp, ss }, level);
  return undefined;
};

/** The privilege level that a far return to `cs` leads to, or why it may not. */
function checkReturn(x: Execution, rip: bigint, cs: bigint, ss: bigint): 0 | 3 | Fault {
  const selector = cs & 0xffffn;
  const rpl = Number(selector & 3n);
  if ((selector & ~3n) === 0n || rpl < (x.user ? 3 : 0)) return GENERAL_PROTECTION;
  const code = readDescriptor(x.cpu, selector);
  const wrong: Fault = { vector: "#GP", errorCode: Number(selector & ~3n) };
  if (code === undefined) return wrong;
  if ("vector" in code) return code;
  if (code.kind !== "code" || !code.long || (code.conforming ? code.dpl > rpl : code.dpl !== rpl))
    return wrong;
  if (!code.present) return { vector: "#NP", errorCode: wrong.errorCode };
  if (rpl !== 0 && rpl !== 3) return wrong;
  const stack = findStackSegment(x.cpu, ss & 0xffffn, rpl);
  if (stack !== undefined && "vector" in stack) return stack;
  if (!isCanonical(rip)) return GENERAL_PROTECTION;
  const fault = markAccessed(x.cpu, code) ?? (stack && markAccessed(x.cpu, stack));
  return fault ?? rpl;
}

interface Destination {
  readonly rip: bigint;
  readonly cs: bigint;
  readonly rsp: bigint;
  readonly ss: bigint;
}

function leaveTo(x: Execution, { rip, cs, rsp, ss }: Destination, level: 0 | 3): void {
  const { cpu } = x;
  cpu.setWord("cs", cs & 0xffffn);
  cpu.setWord("ss", ss & 0xffffn);
  cpu.setRegister(RSP, BigInt.asUintN(64, rsp));
  x.next = addr(rip);
  if (level === 3) leaveInnerSegments(cpu);
  cpu.setPrivilege(level);
}
