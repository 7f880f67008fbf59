// One WebAssembly function, emitted instruction by instruction in stack order.
//
// Labels are objects, so that a branch states where it goes and the nesting depth is computed.
// Types are not checked here: the engine that compiles the module does that, and says where.

import {
  BULK,
  CONTROL,
  LOAD,
  type LoadName,
  OP,
  type OpName,
  STORE,
  type StoreName,
  TYPE,
  type ValueType,
  VECTOR,
  VECTOR_MEMORY,
  type VectorName,
} from "./opcode.ts";
import { Writer } from "./writer.ts";

declare const brand: unique symbol;

/** Index of a parameter or local. */
export type Local = number & { readonly [brand]: "Local" };

/** What a branch names: an open block, loop or if. A branch to a loop goes to its start, else to the end. */
export interface Label {
  readonly depth: number;
}

export interface Signature {
  readonly params: readonly ValueType[];
  readonly results: readonly ValueType[];
}

export class FunctionBuilder {
  readonly signature: Signature;
  private code = new Writer(1024);
  private readonly locals: ValueType[] = [];
  /** The blocks that are open, outermost first. */
  private readonly open: Label[] = [];

  constructor(signature: Signature) {
    this.signature = signature;
  }

  /** The local that holds parameter `index`. */
  param(index: number): Local {
    if (index >= this.signature.params.length) throw new RangeError(`no parameter ${index}`);
    return index as Local;
  }

  /** A new local, zero at entry. */
  local(type: ValueType): Local {
    return (this.signature.params.length + this.locals.push(type) - 1) as Local;
  }

  get(local: Local): this {
    this.code.byte(CONTROL["local.get"]);
    this.code.u32(local);
    return this;
  }

  set(local: Local): this {
    this.code.byte(CONTROL["local.set"]);
    this.code.u32(local);
    return this;
  }

  tee(local: Local): this {
    this.code.byte(CONTROL["local.tee"]);
    this.code.u32(local);
    return this;
  }

  globalGet(index: number): this {
    this.code.byte(CONTROL["global.get"]);
    this.code.u32(index);
    return this;
  }

  globalSet(index: number): this {
    this.code.byte(CONTROL["global.set"]);
    this.code.u32(index);
    return this;
  }

  i32(value: number): this {
    this.code.byte(CONTROL["i32.const"]);
    this.code.s32(value);
    return this;
  }

  i64(value: number | bigint): this {
    this.code.byte(CONTROL["i64.const"]);
    this.code.s64(value);
    return this;
  }

  f64(value: number): this {
    this.code.byte(CONTROL["f64.const"]);
    this.code.f64(value);
    return this;
  }

  op(name: OpName): this {
    this.code.byte(OP[name]);
    return this;
  }

  /** `offset` is added to the address on the stack, as an unsigned number. */
  load(name: LoadName, offset = 0): this {
    this.code.byte(LOAD[name]);
    this.code.byte(0); // no alignment promised
    this.code.u32(offset);
    return this;
  }

  store(name: StoreName, offset = 0): this {
    this.code.byte(STORE[name]);
    this.code.byte(0);
    this.code.u32(offset);
    return this;
  }

  /** An operation on vectors of 16 bytes, which live on the stack only. */
  vector(name: VectorName): this {
    return this.vectorCode(VECTOR[name]);
  }

  vectorLoad(offset = 0): this {
    this.vectorCode(VECTOR_MEMORY["v128.load"]).code.byte(0); // no alignment promised
    this.code.u32(offset);
    return this;
  }

  vectorStore(offset = 0): this {
    this.vectorCode(VECTOR_MEMORY["v128.store"]).code.byte(0);
    this.code.u32(offset);
    return this;
  }

  block(type?: ValueType): Label {
    return this.enter(CONTROL.block, type);
  }

  loop(type?: ValueType): Label {
    return this.enter(CONTROL.loop, type);
  }

  if(type?: ValueType): Label {
    return this.enter(CONTROL.if, type);
  }

  else(): this {
    this.code.byte(CONTROL.else);
    return this;
  }

  end(): this {
    if (this.open.pop() === undefined) throw new Error("no block is open");
    this.code.byte(CONTROL.end);
    return this;
  }

  br(label: Label): this {
    this.code.byte(CONTROL.br);
    this.code.u32(this.distance(label));
    return this;
  }

  brIf(label: Label): this {
    this.code.byte(CONTROL.br_if);
    this.code.u32(this.distance(label));
    return this;
  }

  /** Branches to `labels[index]` for the index on the stack, to `otherwise` beyond them. */
  brTable(labels: readonly Label[], otherwise: Label): this {
    this.code.byte(CONTROL.br_table);
    this.code.u32(labels.length);
    for (const label of labels) this.code.u32(this.distance(label));
    this.code.u32(this.distance(otherwise));
    return this;
  }

  call(functionIndex: number): this {
    this.code.byte(CONTROL.call);
    this.code.u32(functionIndex);
    return this;
  }

  callIndirect(typeIndex: number, tableIndex = 0): this {
    this.code.byte(CONTROL.call_indirect);
    this.code.u32(typeIndex);
    this.code.u32(tableIndex);
    return this;
  }

  returnCall(functionIndex: number): this {
    this.code.byte(CONTROL.return_call);
    this.code.u32(functionIndex);
    return this;
  }

  returnCallIndirect(typeIndex: number, tableIndex = 0): this {
    this.code.byte(CONTROL.return_call_indirect);
    this.code.u32(typeIndex);
    this.code.u32(tableIndex);
    return this;
  }

  tableGet(tableIndex = 0): this {
    this.code.byte(CONTROL["table.get"]);
    this.code.u32(tableIndex);
    return this;
  }

  tableSet(tableIndex = 0): this {
    this.code.byte(CONTROL["table.set"]);
    this.code.u32(tableIndex);
    return this;
  }

  memorySize(): this {
    this.code.byte(CONTROL["memory.size"]);
    this.code.byte(0);
    return this;
  }

  memoryGrow(): this {
    this.code.byte(CONTROL["memory.grow"]);
    this.code.byte(0);
    return this;
  }

  /** Destination, source and length from the stack; ranges may overlap. */
  memoryCopy(): this {
    this.code.byte(CONTROL.prefixFC);
    this.code.u32(BULK["memory.copy"]);
    this.code.byte(0);
    this.code.byte(0);
    return this;
  }

  /** Destination, byte value and length from the stack. */
  memoryFill(): this {
    this.code.byte(CONTROL.prefixFC);
    this.code.u32(BULK["memory.fill"]);
    this.code.byte(0);
    return this;
  }

  /**
   * Emits into a buffer of its own, to be appended later at the same nesting depth: a prologue can
   * then depend on what its body turned out to use.
   */
  capture(emit: () => void): Writer {
    const outer = this.code;
    const captured = new Writer(4096);
    this.code = captured;
    emit();
    this.code = outer;
    return captured;
  }

  append(captured: Writer): this {
    this.code.bytes(captured.view());
    return this;
  }

  /** Bytes of code emitted so far. */
  get size(): number {
    return this.code.length;
  }

  /** Writes the function's entry of the code section. */
  encode(into: Writer): void {
    if (this.open.length !== 0) throw new Error(`${this.open.length} blocks are still open`);
    const entry = new Writer(this.code.length + 64);
    const runs: { type: ValueType; count: number }[] = [];
    for (const type of this.locals) {
      const last = runs.at(-1);
      if (last?.type === type) last.count++;
      else runs.push({ type, count: 1 });
    }
    entry.u32(runs.length);
    for (const { type, count } of runs) {
      entry.u32(count);
      entry.byte(TYPE[type]);
    }
    entry.bytes(this.code.view());
    entry.byte(CONTROL.end);
    into.sized(entry);
  }

  private vectorCode(code: number): this {
    this.code.byte(CONTROL.prefixFD);
    this.code.u32(code);
    return this;
  }

  private enter(code: number, type?: ValueType): Label {
    this.code.byte(code);
    this.code.byte(type === undefined ? 0x40 : TYPE[type]);
    const label = { depth: this.open.length };
    this.open.push(label);
    return label;
  }

  private distance(label: Label): number {
    if (this.open[label.depth] !== label) throw new Error("branch to a block that is closed");
    return this.open.length - 1 - label.depth;
  }
}
