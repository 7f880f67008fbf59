// Segment registers, descriptor-table registers, and instructions that inspect descriptors.

import { isCanonical } from "../../base/addr.ts";
import { Code } from "../../x86/decode.ts";
import { FLAG, RSP } from "../../x86/register.ts";
import type { Fault } from "../exit.ts";
import { type Descriptor, markAccessed, markBusy, readDescriptor } from "./descriptor.ts";
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

/** The descriptor of a stack segment: writable data of the same level; or null, inside the kernel (undefined). */
export function findStackSegment(
  cpu: Processor,
  selector: bigint,
  level: number,
): Descriptor | undefined | Fault {
  const wrong: Fault = { vector: "#GP", errorCode: Number(selector & ~3n) };
  if (Number(selector & 3n) !== level) return wrong;
  if ((selector & ~3n) === 0n) return level === 3 ? GENERAL_PROTECTION : undefined;
  const stack = readDescriptor(cpu, selector);
  if (stack === undefined) return wrong;
  if ("vector" in stack) return stack;
  if (stack.kind !== "data" || !stack.writable || stack.dpl !== level) return wrong;
  return stack.present ? stack : { vector: "#SS", errorCode: wrong.errorCode };
}

const SEGMENT_WORDS = ["es", "cs", "ss", "ds", "fs", "gs"] as const;
const CS = 1;
const SS = 2;

/** Nulls the data segments that user code may not have: those whose descriptors were the kernel's. Bases stay. */
export function leaveInnerSegments(cpu: Processor): void {
  const inner = cpu.getWord("innerSegments");
  if (inner === 0n) return;
  for (const [n, word] of SEGMENT_WORDS.entries()) if ((inner >> BigInt(n)) & 1n) cpu.setWord(word, 0n);
  cpu.setWord("innerSegments", 0n);
}

function loadSegment(x: Execution, segment: number, selector: bigint): Fault | undefined {
  const { cpu } = x;
  const level = x.user ? 3 : 0;
  if (segment === CS) return INVALID_OPCODE;
  const found =
    segment === SS ? findStackSegment(cpu, selector, level) : findDataSegment(cpu, selector, level);
  if (found !== undefined && "vector" in found) return found;
  const fault = found === undefined ? undefined : markAccessed(cpu, found);
  if (fault !== undefined) return fault;
  cpu.setWord(SEGMENT_WORDS[segment]!, selector);
  if (segment === SS) cpu.setWord("shadow", BigInt.asUintN(64, BigInt(x.next)));
  else {
    const bit = 1n << BigInt(segment);
    const inner = found !== undefined && !isConforming(found) && found.dpl < 3;
    cpu.setWord("innerSegments", (cpu.getWord("innerSegments") & ~bit) | (inner ? bit : 0n));
  }
  if (segment === 4) cpu.setWord("fsBase", found?.base ?? 0n);
  if (segment === 5) cpu.setWord("gsBase", found?.base ?? 0n);
  return undefined;
}

/** The same for ds, es, fs, gs: anything readable that the level may have, or null. */
function findDataSegment(cpu: Processor, selector: bigint, level: number): Descriptor | undefined | Fault {
  if ((selector & ~3n) === 0n) return undefined;
  const wrong: Fault = { vector: "#GP", errorCode: Number(selector & ~3n) };
  const found = readDescriptor(cpu, selector);
  if (found === undefined) return wrong;
  if ("vector" in found) return found;
  if (found.kind === "system" || (found.kind === "code" && !found.readable)) return wrong;
  if (!isConforming(found) && found.dpl < Math.max(level, Number(selector & 3n))) return wrong;
  return found.present ? found : { vector: "#NP", errorCode: wrong.errorCode };
}

function isConforming(found: Descriptor): boolean {
  return found.kind === "code" && found.conforming;
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

/** A system descriptor of a type, in the GDT. */
function findSystemSegment(cpu: Processor, selector: bigint, type: number): Descriptor | Fault {
  const wrong: Fault = { vector: "#GP", errorCode: Number(selector & ~3n) };
  if ((selector & 4n) !== 0n) return wrong;
  const found = readDescriptor(cpu, selector);
  if (found === undefined) return wrong;
  if ("vector" in found) return found;
  if (found.kind !== "system" || found.type !== type) return wrong;
  return found.present ? found : { vector: "#NP", errorCode: wrong.errorCode };
}

const LDT = 2;
const AVAILABLE_TSS = 9;

export const loadTaskRegister: Execute = kernel((x) => {
  const { cpu } = x;
  const selector = x.read(0, 2);
  if (isFault(selector)) return selector;
  if ((selector & ~3n) === 0n) return GENERAL_PROTECTION;
  const found = findSystemSegment(cpu, selector, AVAILABLE_TSS);
  if ("vector" in found) return found;
  const fault = markBusy(cpu, found);
  if (fault !== undefined) return fault;
  cpu.setWord("tr", selector);
  cpu.setWord("tssBase", found.base);
  cpu.setWord("tssLimit", found.limit);
  return undefined;
});

export const loadLocalTable: Execute = kernel((x) => {
  const selector = x.read(0, 2);
  if (isFault(selector)) return selector;
  if ((selector & ~3n) !== 0n) {
    const found = findSystemSegment(x.cpu, selector, LDT);
    if ("vector" in found) return found;
  }
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
    const visible = found !== undefined && (found.dpl >= level || isConforming(found));
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
