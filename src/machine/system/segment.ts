// Segment registers, descriptor-table registers, and instructions that inspect descriptors.

import { isCanonical } from "../../base/addr.ts";
import { Code } from "../../x86/decode.ts";
import { FLAG, RSP } from "../../x86/register.ts";
import type { Fault } from "../exit.ts";
import { type Descriptor, readDescriptor } from "./descriptor.ts";
import {
  type Execute,
  type Execution,
  GENERAL_PROTECTION,
  INVALID_OPCODE,
  kernel,
  onStack,
  readStack,
} from "./execution.ts";
import { isFault, type Processor, type StateWord } from "./processor.ts";

/** A stack segment is null inside the kernel, else writable data of the same level. */
export function checkStackSegment(cpu: Processor, selector: bigint, level: number): Fault | undefined {
  const wrong: Fault = { vector: "#GP", errorCode: Number(selector & ~3n) };
  if (Number(selector & 3n) !== level) return wrong;
  if ((selector & ~3n) === 0n) return level === 3 ? GENERAL_PROTECTION : undefined;
  const stack = readDescriptor(cpu, selector);
  if (stack === undefined) return wrong;
  if ("vector" in stack) return stack;
  if (stack.kind !== "data" || !stack.writable || stack.dpl !== level) return wrong;
  return stack.present ? undefined : { vector: "#SS", errorCode: wrong.errorCode };
}

const SEGMENT_WORDS = ["es", "cs", "ss", "ds", "fs", "gs"] as const;
const CS = 1;
const SS = 2;

function loadSegment(x: Execution, segment: number, selector: bigint): Fault | undefined {
  const { cpu } = x;
  const level = x.user ? 3 : 0;
  if (segment === CS) return INVALID_OPCODE;
  let base = 0n;
  if (segment === SS) {
    const fault = checkStackSegment(cpu, selector, level);
    if (fault !== undefined) return fault;
    cpu.setWord("shadow", BigInt.asUintN(64, BigInt(x.next)));
  } else if ((selector & ~3n) !== 0n) {
    const wrong: Fault = { vector: "#GP", errorCode: Number(selector & ~3n) };
    const found = readDescriptor(cpu, selector);
    if (found === undefined) return wrong;
    if ("vector" in found) return found;
    if (found.kind === "system" || (found.kind === "code" && !found.readable)) return wrong;
    const conforming = found.kind === "code" && found.conforming;
    if (!conforming && found.dpl < Math.max(level, Number(selector & 3n))) return wrong;
    if (!found.present) return { vector: "#NP", errorCode: wrong.errorCode };
    base = found.base;
  }
  cpu.setWord(SEGMENT_WORDS[segment]!, selector);
  if (segment === 4) cpu.setWord("fsBase", base);
  if (segment === 5) cpu.setWord("gsBase", base);
  return undefined;
}

export const moveSegment: Execute = (x) => {
  const [to] = x.instruction.operands;
  if (to?.kind === "segment") {
    const selector = x.read(1, 2);
    return isFault(selector) ? selector : loadSegment(x, to.number, selector);
  }
  return x.write(0, x.cpu.getWord(SEGMENT_WORDS[x.number(1)]!), 2);
};

const SHORT_FORMS = [Code.Pushw_FS, Code.Pushw_GS, Code.Popw_FS, Code.Popw_GS];

function stackSize({ instruction }: Execution): 2 | 8 {
  return SHORT_FORMS.includes(instruction.code) ? 2 : 8;
}

export const pushSegment: Execute = (x) => {
  const { cpu } = x;
  const size = stackSize(x);
  const top = BigInt.asUintN(64, cpu.getRegister(RSP) - BigInt(size));
  const fault = cpu.writeBytes(top, cpu.getWord(SEGMENT_WORDS[x.number(0)]!), size, x.user);
  if (fault !== undefined) return onStack(fault);
  cpu.setRegister(RSP, BigInt.asUintN(64, top));
  return undefined;
};

export const popSegment: Execute = (x) => {
  const size = stackSize(x);
  const values = readStack(x, 1, 0n, size);
  if (!Array.isArray(values)) return values;
  const fault = loadSegment(x, x.number(0), values[0]! & 0xffffn);
  if (fault === undefined) x.cpu.setRegister(RSP, BigInt.asUintN(64, x.cpu.getRegister(RSP) + BigInt(size)));
  return fault;
};

export function loadTable(base: StateWord, limit: StateWord): Execute {
  return kernel((x) => {
    const size = x.cpu.readLinear(x.address, 2, false);
    if (isFault(size)) return size;
    const start = x.cpu.readLinear(x.address + 2n, 8, false);
    if (isFault(start)) return start;
    if (!isCanonical(start)) return GENERAL_PROTECTION;
    x.cpu.setWord(limit, size);
    x.cpu.setWord(base, start);
    return undefined;
  });
}

export function storeTable(base: StateWord, limit: StateWord): Execute {
  return (x) => {
    const { cpu, address, user } = x;
    return cpu.writeBytes(address, cpu.getWord(limit) | (cpu.getWord(base) << 16n), 10, user);
  };
}

const AVAILABLE_TSS = 9;
const BUSY = 1n << 41n;

export const loadTaskRegister: Execute = kernel((x) => {
  const { cpu } = x;
  const selector = x.read(0, 2);
  if (isFault(selector)) return selector;
  const wrong: Fault = { vector: "#GP", errorCode: Number(selector & ~3n) };
  if ((selector & ~3n) === 0n) return GENERAL_PROTECTION;
  const found = readDescriptor(cpu, selector);
  if (found === undefined) return wrong;
  if ("vector" in found) return found;
  if (found.kind !== "system" || found.type !== AVAILABLE_TSS) return wrong;
  if (!found.present) return { vector: "#NP", errorCode: wrong.errorCode };
  const at = cpu.getWord("gdtBase") + (selector & ~7n);
  const low = cpu.readLinear(at, 8, false);
  if (isFault(low)) return low;
  const fault = cpu.writeLinear(at, [low | BUSY], false);
  if (fault !== undefined) return fault;
  cpu.setWord("tr", selector);
  cpu.setWord("tssBase", found.base);
  cpu.setWord("tssLimit", found.limit);
  return undefined;
});

export const loadLocalTable: Execute = kernel((x) => {
  const selector = x.read(0, 2);
  if (isFault(selector)) return selector;
  x.cpu.setWord("ldtr", selector);
  return undefined;
});

/** verr, verw, lar, lsl: ZF says whether the descriptor may be used so; a null or bad selector never faults. */
export function inspect(use: (x: Execution, found: Descriptor) => boolean): Execute {
  return (x) => {
    const source = x.instruction.operands.length - 1;
    const selector = x.read(source, 2);
    if (isFault(selector)) return selector;
    const found = (selector & ~3n) === 0n ? undefined : readDescriptor(x.cpu, selector);
    if (found !== undefined && "vector" in found) return found;
    const level = Math.max(x.user ? 3 : 0, Number(selector & 3n));
    const visible =
      found !== undefined && (found.dpl >= level || (found.kind === "code" && found.conforming));
    x.setFlag(FLAG.ZF, visible && use(x, found));
    return undefined;
  };
}

/** System descriptors that lsl takes in 64-bit mode: LDT and TSS; lar, call gates too (SDM vol. 2). */
const WITH_LIMIT: readonly number[] = [2, 9, 11];
const WITH_RIGHTS: readonly number[] = [...WITH_LIMIT, 12];

export const loadLimit = inspect((x, found) => {
  if (found.kind === "system" && !WITH_LIMIT.includes(found.type)) return false;
  x.write(0, found.limit, 8);
  return true;
});

export const loadAccessRights = inspect((x, found) => {
  if (found.kind === "system" && !WITH_RIGHTS.includes(found.type)) return false;
  x.write(0, found.rights, 8);
  return true;
});
