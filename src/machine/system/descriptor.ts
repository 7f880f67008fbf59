// Segment descriptors, gates and the task state segment, in guest memory (SDM vol. 3, 3.4.5, 6.14.1, 8.7).

import type { Fault } from "../exit.ts";
import { isFault, type Processor } from "./processor.ts";

interface AnyDescriptor {
  readonly dpl: number;
  readonly present: boolean;
  readonly base: bigint;
  readonly limit: bigint;
  /** As lar has them: the second double word, less base and limit. */
  readonly rights: bigint;
  /** Where it is, and the first half of it. */
  readonly at: bigint;
  readonly low: bigint;
}

export interface CodeDescriptor extends AnyDescriptor {
  readonly kind: "code";
  readonly conforming: boolean;
  /** 64-bit code; nothing else can be run here. */
  readonly long: boolean;
  readonly readable: boolean;
}

export interface OtherDescriptor extends AnyDescriptor {
  readonly kind: "data" | "system";
  readonly writable: boolean;
  /** The four-bit type of a system descriptor: 2 LDT, 9 and 11 available and busy TSS. */
  readonly type: number;
}

export type Descriptor = CodeDescriptor | OtherDescriptor;

/** Type bits of the first half: a segment was used; a task is under way. */
const ACCESSED = 1n << 40n;
const BUSY = 1n << 41n;
const LDT = 2;

/** The descriptor that `selector` names in the GDT or the LDT; undefined if the table ends before it. */
export function readDescriptor(cpu: Processor, selector: bigint): Descriptor | undefined | Fault {
  const table = (selector & 4n) === 0n ? globalTable(cpu) : localTable(cpu);
  if (table === undefined || "vector" in table) return table;
  const offset = selector & ~7n;
  if (offset + 7n > table.limit) return undefined;
  const at = table.base + offset;
  const low = cpu.readLinear(at, 8, false);
  if (isFault(low)) return low;
  const bit = (n: bigint) => ((low >> n) & 1n) !== 0n;
  const type = Number((low >> 40n) & 15n);
  const segment = bit(44n);
  let base = ((low >> 16n) & 0xffffffn) | (((low >> 56n) & 0xffn) << 24n);
  let limit = (low & 0xffffn) | (((low >> 48n) & 0xfn) << 16n);
  if (bit(55n)) limit = (limit << 12n) | 0xfffn; // in pages
  if (!segment) {
    if (offset + 15n > table.limit) return undefined;
    const high = cpu.readLinear(at + 8n, 8, false);
    if (isFault(high)) return high;
    base |= (high & 0xffffffffn) << 32n;
  }
  const any = {
    dpl: Number((low >> 45n) & 3n),
    present: bit(47n),
    base,
    limit,
    rights: (low >> 32n) & 0xf0ff00n,
    at,
    low,
  };
  if (!segment || !bit(43n))
    return { kind: segment ? "data" : "system", writable: segment && bit(41n), type, ...any };
  return { kind: "code", conforming: bit(42n), long: bit(53n) && !bit(54n), readable: bit(41n), ...any };
}

interface Table {
  readonly base: bigint;
  readonly limit: bigint;
}

function globalTable(cpu: Processor): Table {
  return { base: cpu.getWord("gdtBase"), limit: cpu.getWord("gdtLimit") };
}

/** What ldtr names, looked up each time. */
function localTable(cpu: Processor): Table | undefined | Fault {
  const selector = cpu.getWord("ldtr");
  if ((selector & ~3n) === 0n || (selector & 4n) !== 0n) return undefined;
  const found = readDescriptor(cpu, selector);
  if (found === undefined || "vector" in found) return found;
  return found.kind === "system" && found.type === LDT ? found : undefined;
}

/** Loading a segment register notes in the descriptor that the segment was used. */
export function markAccessed(cpu: Processor, { at, low }: Descriptor): Fault | undefined {
  return (low & ACCESSED) !== 0n ? undefined : cpu.writeLinear(at, [low | ACCESSED], false);
}

export function markBusy(cpu: Processor, { at, low }: Descriptor): Fault | undefined {
  return cpu.writeLinear(at, [low | BUSY], false);
}

export interface Gate {
  readonly selector: bigint;
  readonly offset: bigint;
  /** 1 to 7, or 0 for none. */
  readonly ist: number;
  /** Interrupt gates clear IF, trap gates do not. */
  readonly clearsIf: boolean;
  readonly dpl: number;
  readonly present: boolean;
}

/** The IDT's gate for `vector`; undefined if the table ends before it or it is no gate. */
export function readGate(cpu: Processor, vector: number): Gate | undefined | Fault {
  const offset = 16n * BigInt(vector);
  if (offset + 15n > cpu.getWord("idtLimit")) return undefined;
  const base = cpu.getWord("idtBase") + offset;
  const low = cpu.readLinear(base, 8, false);
  if (isFault(low)) return low;
  const high = cpu.readLinear(base + 8n, 8, false);
  if (isFault(high)) return high;
  const type = (low >> 40n) & 0x1fn;
  if (type !== 14n && type !== 15n) return undefined;
  return {
    selector: (low >> 16n) & 0xffffn,
    offset: (low & 0xffffn) | (((low >> 48n) & 0xffffn) << 16n) | ((high & 0xffffffffn) << 32n),
    ist: Number((low >> 32n) & 7n),
    clearsIf: type === 14n,
    dpl: Number((low >> 45n) & 3n),
    present: ((low >> 47n) & 1n) !== 0n,
  };
}

/** Offsets of RSP0 and IST1 in the 64-bit TSS (SDM vol. 3, figure 8-11). */
const RSP0 = 4n;
const IST1 = 0x24n;

/** The stack that the TSS has for privilege level 0, or the interrupt stack `ist`; undefined if the TSS ends before it. */
export function readTssStack(cpu: Processor, ist: number): bigint | undefined | Fault {
  const offset = ist === 0 ? RSP0 : IST1 + 8n * BigInt(ist - 1);
  if (offset + 7n > cpu.getWord("tssLimit")) return undefined;
  return cpu.readLinear(cpu.getWord("tssBase") + offset, 8, false);
}
