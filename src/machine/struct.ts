// Guest structures: one description gives the assembler its constants, C its declaration and TypeScript its view.
//
// Fields are laid out by hand, as the field's own structures are: offset and size in bytes.

import type { Addr } from "../base/addr.ts";
import { bug } from "../base/refuse.ts";
import type { Memory } from "./memory.ts";

/** In bytes; a C type for a pointer; a text of 16 characters at most. */
export type FieldType = 1 | 2 | 4 | 8 | "text" | `${string}*`;

export interface Field {
  readonly offset: number;
  readonly size: number;
  readonly type: FieldType;
}

const TEXT_SIZE = 16;

export interface Layout<F extends string> {
  /** As C spells it: `pt_regs`. */
  readonly name: string;
  /** In bytes. */
  readonly size: number;
  readonly fields: Readonly<Record<F, Field>>;
}

/** Lays out fields one after another, each aligned to its size, texts to a byte; the whole to eight bytes. */
export function layout<F extends string>(name: string, types: Readonly<Record<F, FieldType>>): Layout<F> {
  let end = 0;
  const fields = {} as Record<F, Field>;
  for (const [field, type] of Object.entries<FieldType>(types)) {
    const size = type === "text" ? TEXT_SIZE : typeof type === "number" ? type : 8;
    const align = type === "text" ? 1 : size;
    const offset = Math.ceil(end / align) * align;
    fields[field as F] = { offset, size, type };
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

const C_TYPES = { 1: "u8", 2: "u16", 4: "int", 8: "u64" } as const;

/** The same for a C compiler, which is held to the offsets; the last fields are padding where there is any. */
export function cDeclaration({ name, size, fields }: Layout<string>): string {
  const members = Object.entries<Field>(fields).map(([field, { type }]) =>
    type === "text"
      ? `\tchar ${field}[${TEXT_SIZE}];\n`
      : `\t${typeof type === "number" ? `${C_TYPES[type]} ` : type}${field};\n`,
  );
  const checks = Object.entries<Field>(fields).map(
    ([field, { offset }]) =>
      `_Static_assert(__builtin_offsetof(struct ${name}, ${field}) == ${offset}, "");\n`,
  );
  const whole = `_Static_assert(sizeof(struct ${name}) == ${size}, "");\n`;
  return `struct ${name} {\n${members.join("")}} __attribute__((aligned(8)));\n${checks.join("")}${whole}`;
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
    const aligned = at % size === 0;
    if (size === 4 && aligned) return this.memory.readInt(at) ?? Number(this.get(field)); // which refuses
    const address = size === 8 && aligned ? this.memory.readNumber(at) : undefined;
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

  /** A text field, up to its first zero byte. */
  getText(field: F): string {
    const { offset, size } = this.field(field);
    const bytes = this.memory.read((this.at + offset) as Addr, size);
    const end = bytes.indexOf(0);
    return String.fromCharCode(...bytes.subarray(0, end < 0 ? size : end));
  }

  /** Cut to what fits, with a zero byte behind it. */
  setText(field: F, text: string): void {
    const { offset, size } = this.field(field);
    const bytes = new Uint8Array(size);
    bytes.set(new TextEncoder().encode(text).subarray(0, size - 1));
    this.memory.write((this.at + offset) as Addr, bytes);
  }

  private field(field: F): Field {
    return this.layout.fields[field] ?? bug(`${this.layout.name} has no field ${field}`);
  }
}

/** What a write is made of; memory keeps none of it. */
const SCRATCH_BYTES = new Uint8Array(8);
const SCRATCH = new DataView(SCRATCH_BYTES.buffer);
