// Guest structures: one description gives the assembler its constants and TypeScript its view.
//
// Fields are laid out by hand, as the field's own structures are: offset and size in bytes.

import type { Addr } from "../base/addr.ts";
import { bug } from "../base/refuse.ts";
import type { Memory } from "./memory.ts";

export interface Field {
  readonly offset: number;
  readonly size: 1 | 2 | 4 | 8;
}

export interface Layout<F extends string> {
  /** As C spells it: `pt_regs`. */
  readonly name: string;
  /** In bytes. */
  readonly size: number;
  readonly fields: Readonly<Record<F, Field>>;
}

/** Lays out fields one after another, each aligned to its size; the whole to eight bytes. */
export function layout<F extends string>(name: string, sizes: Readonly<Record<F, Field["size"]>>): Layout<F> {
  let end = 0;
  const fields = {} as Record<F, Field>;
  for (const [field, size] of Object.entries<Field["size"]>(sizes)) {
    const offset = Math.ceil(end / size) * size;
    fields[field as F] = { offset, size };
    end = offset + size;
  }
  return { name, size: Math.ceil(end / 8) * 8, fields };
}

/** `.set PT_REGS_IP, 0x80` and so on, for the assembler. */
export function assemblerConstants({ name, size, fields }: Layout<string>): string {
  const prefix = name.toUpperCase();
  const lines = Object.entries(fields).map(
    ([field, { offset }]) => `.set ${prefix}_${field.toUpperCase()}, 0x${offset.toString(16)}\n`,
  );
  return `${lines.join("")}.set ${prefix}_SIZE, 0x${size.toString(16)}\n`;
}

/** A structure in guest memory. Nothing is kept here: every get reads, every set writes. */
export class StructView<F extends string> {
  readonly at: Addr;
  private readonly memory: Memory;
  private readonly layout: Layout<F>;

  constructor(memory: Memory, structLayout: Layout<F>, at: Addr) {
    this.memory = memory;
    this.layout = structLayout;
    this.at = at;
  }

  /** The field, unsigned. */
  get(field: F): bigint {
    const { offset, size } = this.field(field);
    const view = new DataView(this.memory.read((this.at + offset) as Addr, size).buffer);
    if (size === 8) return view.getBigUint64(0, true);
    return BigInt(
      size === 4 ? view.getUint32(0, true) : size === 2 ? view.getUint16(0, true) : view.getUint8(0),
    );
  }

  /** A field of up to four bytes, or one that holds an address, as a signed number: several times cheaper than `get`. */
  getNumber(field: F): number {
    const { offset, size } = this.field(field);
    const at = (this.at + offset) as Addr;
    const address = size === 8 && at % 8 === 0 ? this.memory.readNumber(at) : undefined;
    if (address !== undefined && !Number.isNaN(address)) return address;
    return Number(BigInt.asIntN(8 * size, this.get(field)));
  }

  set(field: F, value: bigint | number): void {
    const { offset, size } = this.field(field);
    if (typeof value === "bigint") SCRATCH.setBigUint64(0, BigInt.asUintN(64, value), true);
    else {
      SCRATCH.setInt32(0, (value % 2 ** 32) | 0, true);
      SCRATCH.setInt32(4, Math.floor(value / 2 ** 32) | 0, true);
    }
    this.memory.write((this.at + offset) as Addr, SCRATCH_BYTES.subarray(0, size));
  }

  private field(field: F): Field {
    return this.layout.fields[field] ?? bug(`${this.layout.name} has no field ${field}`);
  }
}

/** What a write is made of; memory keeps none of it. */
const SCRATCH_BYTES = new Uint8Array(8);
const SCRATCH = new DataView(SCRATCH_BYTES.buffer);
