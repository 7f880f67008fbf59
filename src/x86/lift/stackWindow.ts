// The stack window: what a block accesses at constant distances from rsp is checked once, at its start.
//
// While a block is emitted, it is known which temporaries hold rsp plus a constant. A first emission, thrown
// away, finds the range that the block accesses so; if one TLB entry covers it, the block runs without further
// checks of it. Otherwise a second copy of the block checks each access, and says precisely which one failed.

import { PAGE_SIZE } from "../../base/addr.ts";
import type { FunctionBuilder, Local } from "../../wasm/function.ts";
import type { ValueType } from "../../wasm/opcode.ts";
import type { Instruction, Size } from "../decode.ts";
import { type Gpr, RSP } from "../register.ts";
import { STATE, TLB_ENTRIES } from "../state.ts";
import type { Access, Host } from "./emitter.ts";
import { LocalsEmitter } from "./localsEmitter.ts";
import type { Bit, Value } from "./values.ts";

/** Bytes of stack that one check may cover. */
const MAX_WINDOW = 1024;

/** A range of the stack, from rsp as it was at a block's start. */
interface Window {
  low: number;
  high: number;
  write: boolean;
  accesses: number;
}

export abstract class StackWindowEmitter extends LocalsEmitter {
  /** Locals of the instruction at hand that hold rsp as it was at the block's start plus a constant. */
  private readonly offsets = new Map<Local, number>();
  /** What rsp itself is by now; undefined once it is something else. */
  private rspOffset: number | undefined = 0;
  /** What the block accesses of the stack so far, from rsp as it was at the block's start. */
  private window: Window | undefined;
  private readonly stackAddend: Local;

  constructor(f: FunctionBuilder, recording: boolean) {
    super(f, recording);
    this.stackAddend = f.local("i32");
  }

  /** Emits a block, which `emit` emits as often as it is called; `dry` undoes what a call noted besides code. */
  protected emitWindowed(emit: () => void, dry: () => void): void {
    const { f } = this;
    this.window = { low: 0, high: 0, accesses: 0, write: false };
    f.capture(() => this.emitFromStart(emit)); // only to see what it accesses
    dry();
    if (this.window.accesses > 1) {
      this.emitCheck(this.window);
      f.if();
      this.emitFromStart(emit);
      f.end();
    }
    this.window = undefined;
    this.emitFromStart(emit);
  }

  private emitFromStart(emit: () => void): void {
    this.rspOffset = 0;
    emit();
  }

  protected override begin(instruction: Instruction): void {
    this.offsets.clear();
    super.begin(instruction);
  }

  override reg(reg: Gpr, size: Size = 8): Value {
    const value = super.reg(reg, size);
    if (reg === RSP && size === 8 && this.rspOffset !== undefined && typeof value !== "bigint") {
      this.offsets.set(value, this.rspOffset);
    }
    return value;
  }

  override setReg(reg: Gpr, value: Value, size: Size = 8): void {
    if (reg === RSP) {
      this.rspOffset = size === 8 && typeof value !== "bigint" ? this.offsets.get(value) : undefined;
    }
    super.setReg(reg, value, size);
  }

  /** Pushes whether all of the window can be accessed through one TLB entry, and keeps its addend. */
  private emitCheck({ low, high, write }: Window): void {
    const { f } = this;
    const rsp = this.register(RSP).local;
    f.get(rsp).op("i32.wrap_i64").i32(low).op("i32.add").i32(8).op("i32.shr_u");
    f.i32(16 * (TLB_ENTRIES - 1)).op("i32.and");
    const table = (write ? STATE.writeTlb : STATE.readTlb) + this.pushBank();
    f.op("i32.add")
      .tee(this.stackAddend)
      .load("i64.load", table)
      .get(rsp)
      .i64(high - 1)
      .op("i64.add")
      .i64(-PAGE_SIZE)
      .op("i64.and")
      .op("i64.eq");
    f.get(this.stackAddend)
      .load("i32.load", table + 8)
      .set(this.stackAddend);
  }

  override check(address: Value, size: number, access: Access): Host {
    const at = typeof address === "bigint" ? undefined : this.offsets.get(address);
    const { window } = this;
    if (window === undefined || at === undefined || typeof address === "bigint" || access === "read2")
      return super.check(address, size, access);
    const low = window.accesses === 0 ? at : Math.min(at, window.low);
    const high = window.accesses === 0 ? at + size : Math.max(at + size, window.high);
    if (high - low > MAX_WINDOW) return super.check(address, size, access);
    window.low = low;
    window.high = high;
    window.write ||= access === "write";
    window.accesses++;
    const host = this.temp("i32");
    this.f.get(address).op("i32.wrap_i64").get(this.stackAddend).op("i32.add").set(host);
    return host as Host;
  }

  override temp(type: ValueType): Local {
    const local = super.temp(type);
    this.offsets.delete(local);
    return local;
  }

  override when(condition: Bit, effects: () => void): void {
    const before = this.rspOffset;
    super.when(condition, effects);
    if (this.rspOffset !== before) this.rspOffset = undefined;
  }

  override add(a: Value, b: Value): Value {
    return this.displaced(super.add(a, b), a, b, 1);
  }

  override sub(a: Value, b: Value): Value {
    return this.displaced(super.sub(a, b), a, b, -1);
  }

  /** Notes that `value`, which is `a` plus or minus `b`, is at a constant distance from rsp if `a` is. */
  private displaced(value: Value, a: Value, b: Value, sign: 1 | -1): Value {
    const from = typeof a === "bigint" ? undefined : this.offsets.get(a);
    if (from !== undefined && typeof b === "bigint" && typeof value !== "bigint") {
      this.offsets.set(value, from + sign * Number(BigInt.asIntN(64, b)));
    }
    return value;
  }
}
