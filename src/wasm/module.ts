// A WebAssembly module: types, imports, functions, one table and one memory, exports.
//
// Imports must all be declared before the first function, because function indices count them first.

import type { FunctionBuilder, Signature } from "./function.ts";
import { TYPE, type ValueType } from "./opcode.ts";
import { Writer } from "./writer.ts";

const SECTION = {
  type: 1,
  import: 2,
  function: 3,
  table: 4,
  memory: 5,
  global: 6,
  export: 7,
  code: 10,
} as const;
const KIND = { function: 0, table: 1, memory: 2, global: 3 } as const;

export interface Limits {
  readonly minimum: number;
  readonly maximum?: number;
}

export class ModuleBuilder {
  private readonly types: Signature[] = [];
  private readonly typeIndices = new Map<string, number>();
  private readonly imports = new Writer();
  private importCount = 0;
  private importedFunctions = 0;
  private readonly functions: FunctionBuilder[] = [];
  private readonly tables: Limits[] = [];
  private readonly memories: Limits[] = [];
  private readonly globals: { type: ValueType; initial: number | bigint }[] = [];
  private readonly exports = new Writer();
  private exportCount = 0;

  /** Index of a function type, for indirect calls; equal signatures share one. */
  type(signature: Signature): number {
    const key = `${signature.params.join()}:${signature.results.join()}`;
    let index = this.typeIndices.get(key);
    if (index === undefined) {
      index = this.types.push(signature) - 1;
      this.typeIndices.set(key, index);
    }
    return index;
  }

  importMemory(module: string, name: string, limits: Limits): void {
    this.import(module, name, KIND.memory);
    writeLimits(this.imports, limits);
  }

  /** A table of functions, in pages of one slot each. */
  importTable(module: string, name: string, limits: Limits): void {
    this.import(module, name, KIND.table);
    this.imports.byte(TYPE.funcref);
    writeLimits(this.imports, limits);
  }

  /** Returns the function's index. */
  importFunction(module: string, name: string, signature: Signature): number {
    if (this.functions.length > 0) throw new Error(`import of ${name} after the first function`);
    this.import(module, name, KIND.function);
    this.imports.u32(this.type(signature));
    return this.importedFunctions++;
  }

  /** Adds a function, which may still be emitted into until `encode`; returns its index. */
  function(builder: FunctionBuilder, exportName?: string): number {
    const index = this.importedFunctions + this.functions.push(builder) - 1;
    this.type(builder.signature);
    if (exportName !== undefined) this.export(exportName, KIND.function, index);
    return index;
  }

  /** The module's own table. */
  table(limits: Limits, exportName?: string): void {
    if (exportName !== undefined) this.export(exportName, KIND.table, this.tables.length);
    this.tables.push(limits);
  }

  /** The module's own memory, in pages of 64 KiB. */
  memory(limits: Limits, exportName?: string): void {
    if (exportName !== undefined) this.export(exportName, KIND.memory, this.memories.length);
    this.memories.push(limits);
  }

  /** A mutable i32 or i64 global; returns its index. */
  global(type: "i32" | "i64", initial: number | bigint, exportName?: string): number {
    const index = this.globals.push({ type, initial }) - 1;
    if (exportName !== undefined) this.export(exportName, KIND.global, index);
    return index;
  }

  encode(): Uint8Array<ArrayBuffer> {
    const out = new Writer(4096);
    out.bytes(Uint8Array.of(0, 0x61, 0x73, 0x6d, 1, 0, 0, 0));
    section(out, SECTION.type, this.types.length, (w) => {
      for (const { params, results } of this.types) {
        w.byte(0x60);
        for (const list of [params, results]) {
          w.u32(list.length);
          for (const type of list) w.byte(TYPE[type]);
        }
      }
    });
    section(out, SECTION.import, this.importCount, (w) => w.bytes(this.imports.view()));
    section(out, SECTION.function, this.functions.length, (w) => {
      for (const builder of this.functions) w.u32(this.type(builder.signature));
    });
    section(out, SECTION.table, this.tables.length, (w) => {
      for (const limits of this.tables) {
        w.byte(TYPE.funcref);
        writeLimits(w, limits);
      }
    });
    section(out, SECTION.memory, this.memories.length, (w) => {
      for (const limits of this.memories) writeLimits(w, limits);
    });
    section(out, SECTION.global, this.globals.length, (w) => {
      for (const { type, initial } of this.globals) {
        w.byte(TYPE[type]);
        w.byte(1);
        w.byte(type === "i32" ? 0x41 : 0x42);
        if (type === "i32") w.s32(Number(initial));
        else w.s64(initial);
        w.byte(0x0b);
      }
    });
    section(out, SECTION.export, this.exportCount, (w) => w.bytes(this.exports.view()));
    section(out, SECTION.code, this.functions.length, (w) => {
      for (const builder of this.functions) builder.encode(w);
    });
    return out.view().slice();
  }

  private import(module: string, name: string, kind: number): void {
    this.importCount++;
    this.imports.name(module);
    this.imports.name(name);
    this.imports.byte(kind);
  }

  private export(name: string, kind: number, index: number): void {
    this.exportCount++;
    this.exports.name(name);
    this.exports.byte(kind);
    this.exports.u32(index);
  }
}

function section(out: Writer, id: number, count: number, write: (content: Writer) => void): void {
  if (count === 0) return;
  const content = new Writer(1024);
  content.u32(count);
  write(content);
  out.byte(id);
  out.sized(content);
}

function writeLimits(out: Writer, { minimum, maximum }: Limits): void {
  out.byte(maximum === undefined ? 0 : 1);
  out.u32(minimum);
  if (maximum !== undefined) out.u32(maximum);
}
