// Segment descriptors, gates and the task state segment, in guest memory (SDM vol. 3, 3.4.5, 6.14.1, 8.7).

import type { Fault } from "../exit.ts";
import { isFault, type Processor } from "./processor.ts";

export interface CodeDescriptor {
  readonly kind: "code";
  readonly dpl: number;
  readonly conforming: boolean;
  /** 64-bit code; nothing else can be run here. */
  readonly long: boolean;
  readonly readable: boolean;
  readonly present: boolean;
  readonly base: bigint;
  readonly limit: bigint;
  readonly rights: bigint;
}

export interface OtherDescriptor {
  readonly kind: "data" | "system";
  readonly dpl: number;
  readonly present: boolean;
  readonly writable: boolean;
  /** The four-bit type of a system descriptor: 2 LDT, 9 and 11 available and busy TSS. */
  readonly type: number;
  readonly base: bigint;
  readonly limit: bigint;
  /** As lar has them: the second double word, less base and limit. */
  readonly rights: bigint;
}

export type Descriptor = CodeDescriptor | OtherDescriptor;

/** The descriptor that `selector` names in the GDT; undefined if the table ends before it. */
export function readDescriptor(cpu: Processor, selector: bigint): Descriptor | undefined | Fault {
  const offset = selector & ~7n;
  if ((selector & 4n) !== 0n || offset + 7n > cpu.getWord("gdtLimit")) return undefined;
  const low = cpu.readLinear(cpu.getWord("gdtBase") + offset, 8, false);
  if (isFault(low)) return low;
  const bit = (n: bigint) => ((low >> n) & 1n) !== 0n;
  const dpl = Number((low >> 45n) & 3n);
  const present = bit(47n);
  const segment = bit(44n);
  const rights = (low >> 32n) & 0xf0ff00n;
  let base = ((low >> 16n) & 0xffffffn) | (((low >> 56n) & 0xffn) << 24n);
  const pages = bit(55n);
  let limit = (low & 0xffffn) | (((low >> 48n) & 0xfn) << 16n);
  if (pages) limit = (limit << 12n) | 0xfffn;
  if (segment && bit(43n)) {
    const long = bit(53n) && !bit(54n);
    return {
      kind: "code",
      dpl,
      conforming: bit(42n),
      long,
      readable: bit(41n),
      present,
      base,
      limit,
      rights,
    };
  }
  if (!segment) {
    const high = cpu.readLinear(cpu.getWord("gdtBase") + offset + 8n, 8, false);
    if (isFault(high)) return high;
    base |= (high & 0xffffffffn) << 32n;
  }
  const type = Number((low >> 40n) & 15n);
  return {
    kind: segment ? "data" : "system",
    dpl,
    present,
    writable: segment && bit(41n),
    type,
    base,
    limit,
    rights,
  };
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
