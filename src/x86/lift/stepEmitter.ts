// Step functions: one instruction of one form, its operands read from a decoded record.
//
// (cpu: i32, record: i32) -> i32, an ANSWER. All instructions that differ only in register numbers,
// immediates, displacements and addresses share one, so that their number is bounded by the
// forms of the instruction set, and new code needs no compiling.

import { FunctionBuilder, type Local } from "../../wasm/function.ts";
import { Code, type Instruction, type Size } from "../decode.ts";
import { type Gpr, RSP } from "../register.ts";
import { ACCESS, ANSWER, BANK_SHIFT, RECORD, STATE } from "../state.ts";
import type { Lift } from "./definition.ts";
import { Emitter, nests, type Stop, setsStackPointer } from "./emitter.ts";
import type { Bit, Value } from "./values.ts";

/** What tells forms apart: everything that a definition may ask while it emits. */
export function formOf(instruction: Instruction, recording: boolean): string {
  const { code, operands, addressSize, repeat } = instruction;
  const kinds = nests(instruction) ? "nests" : operands.map(({ kind }) => kind[0]).join("");
  const recorded = recording ? (setsStackPointer(instruction) ? "recorded, sets rsp" : "recorded") : "";
  return `${Code[code]}/${kinds}/${addressSize}/${repeat ?? ""}/${recorded}`;
}

/** The step function of the form that `instruction` has. */
export function emitStep(instruction: Instruction, lift: Lift, recording: boolean): FunctionBuilder {
  const f = new FunctionBuilder({ params: ["i32", "i32"], results: ["i32"] });
  new StepEmitter(f, recording, instruction).emit(lift);
  return f;
}

const LOADS = { 1: "i64.load8_u", 2: "i64.load16_u", 4: "i64.load32_u", 8: "i64.load" } as const;
const STORES = { 1: "i64.store8", 2: "i64.store16", 4: "i64.store", 8: "i64.store" } as const;

export class StepEmitter extends Emitter {
  protected readonly record: Local;
  private ended = false;

  constructor(f: FunctionBuilder, recording: boolean, instruction: Instruction) {
    super(f, recording);
    this.record = f.param(1);
    this.begin(instruction);
  }

  /** Goes on with the next instruction, unless the definition says where. */
  emit(lift: Lift): void {
    const before = this.beginRecord();
    lift(this);
    if (before !== undefined) this.endRecord(before);
    if (this.ended) return;
    this.retiring();
    this.setRip(this.next());
    this.f.i32(ANSWER.next);
  }

  override reg(reg: Gpr, size: Size = 8): Value {
    const value = this.temp("i64");
    this.f
      .get(this.cpu)
      .load(LOADS[size], STATE.gpr + 8 * reg)
      .set(value);
    return value;
  }

  override setReg(reg: Gpr, value: Value, size: Size = 8): void {
    const cut = size === 4 ? this.zext(value, 4) : value;
    this.commit();
    this.f.get(this.cpu);
    this.push64(cut);
    this.f.store(STORES[size], STATE.gpr + 8 * reg);
  }

  protected override readRegisterOperand(n: number): Value {
    const value = this.temp("i64");
    this.registerAddress(n);
    this.f.load(LOADS[this.size(n)]).set(value);
    return value;
  }

  protected override writeRegisterOperand(n: number, value: Value): void {
    this.registerAddress(n);
    this.push64(value);
    this.f.store(STORES[this.size(n)]);
  }

  protected override immediate(): Value {
    return this.field(RECORD.immediate);
  }

  override effectiveAddress(): Value {
    const { f, cpu, record } = this;
    const address = this.temp("i64");
    f.get(cpu).get(record).load("i32.load", RECORD.base).op("i32.add").load("i64.load");
    f.get(cpu).get(record).load("i32.load", RECORD.index).op("i32.add").load("i64.load");
    f.get(record).load("i64.load32_u", RECORD.shift).op("i64.shl").op("i64.add");
    f.get(record).load("i64.load", RECORD.displacement).op("i64.add").set(address);
    return this.zext(address, this.addressSize);
  }

  protected override effectiveAddressAfterPop(bytes: bigint): Value {
    const { f, record } = this;
    const onStack = this.temp("i32");
    f.get(record)
      .load("i32.load", RECORD.base)
      .i32(STATE.gpr + 8 * RSP)
      .op("i32.eq")
      .set(onStack);
    return this.add(this.effectiveAddress(), this.select(onStack, bytes, 0n));
  }

  override segmentBase(): Value {
    const { f, cpu, record } = this;
    const base = this.temp("i64");
    f.get(cpu).get(record).load("i32.load", RECORD.segment).op("i32.add").load("i64.load").set(base);
    return base;
  }

  override next(): Value {
    return this.field(RECORD.next);
  }

  override ip(): Value {
    return this.field(RECORD.ip);
  }

  override carry(): Bit {
    const bit = this.temp("i32");
    this.f.get(this.cpu).load("i32.load", STATE.carry).set(bit);
    return bit;
  }

  override result(): Value {
    return this.getState(STATE.result);
  }

  override x(): Value {
    return this.getState(STATE.x);
  }

  protected override putCarry(bit: Bit): void {
    this.f.get(this.cpu);
    this.push32(bit);
    this.f.store("i32.store", STATE.carry);
  }

  protected override putResult(value: Value): void {
    this.setState(STATE.result, value);
  }

  protected override putX(value: Value): void {
    this.setState(STATE.x, value);
  }

  protected override stopIf(stop: Stop): void {
    const { f, cpu } = this;
    f.if();
    if (stop.kind === "miss") {
      f.get(cpu).get(stop.address).store("i64.store", STATE.missAddress);
      f.get(cpu)
        .i32(stop.size | (ACCESS[stop.access] << 16))
        .store("i32.store", STATE.missAccess);
    }
    f.i32(stop.kind === "miss" ? ANSWER.miss : stop.answer)
      .op("return")
      .end();
  }

  /** Both levels use it. */
  protected override pushBank(): number {
    const { f, cpu } = this;
    f.get(cpu).load("i32.load", STATE.cpl).i32(BANK_SHIFT).op("i32.shl").get(cpu).op("i32.add");
    return 0;
  }

  override branch(condition?: Bit): void {
    const target = this.field(RECORD.target);
    this.jump(condition === undefined ? target : this.select(condition, target, this.next()));
  }

  override jump(target: Value): void {
    this.retiring();
    this.setRip(target);
    this.f.i32(ANSWER.jumped);
    this.ended = true;
  }

  override skipIf(condition: Bit): void {
    this.push32(condition);
    this.f.if();
    this.retiring();
    this.f.get(this.cpu).get(this.record).load("i64.load", RECORD.next).store("i64.store", STATE.rip);
    this.f.i32(ANSWER.jumped).op("return").end();
  }

  override again(condition: Bit): void {
    this.jump(this.select(condition, this.ip(), this.next()));
  }

  override retire(answer: number): void {
    this.retiring();
    this.setState(STATE.retiredIp, this.ip());
    this.setRip(this.next());
    this.f.i32(answer);
    this.ended = true;
  }

  /** Called once on every way out on which the instruction retires, when all its effects but rip have been emitted. */
  protected retiring(): void {}

  private setRip(target: Value): void {
    this.setState(STATE.rip, target);
  }

  private field(offset: number): Value {
    const value = this.temp("i64");
    this.f.get(this.record).load("i64.load", offset).set(value);
    return value;
  }

  private registerAddress(n: number): void {
    this.f
      .get(this.cpu)
      .get(this.record)
      .load("i32.load", RECORD.operand + 4 * n)
      .op("i32.add");
  }
}
