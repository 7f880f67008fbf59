// Step functions that tell what they do: the instruction, its accesses, where it leads, as events in a buffer.
//
// Events count only once the instruction retires: one that stops, to be tried again or for good, leaves none.
// An instruction that writes what was there already (cmpxchg that fails) does write it, here as on the CPU.

import { bug } from "../../base/refuse.ts";
import { FunctionBuilder, type Local } from "../../wasm/function.ts";
import { type Instruction, Mnemonic, type Size } from "../decode.ts";
import { RSP } from "../register.ts";
import { ANSWER, RECORD, STATE, TRACE, TRACED } from "../state.ts";
import type { Lift } from "./definition.ts";
import type { Access, Host } from "./emitter.ts";
import { StepEmitter } from "./stepEmitter.ts";
import type { Bit, Value } from "./values.ts";

/** The step function of the form that `instruction` has, which makes events of the kinds `traced`. */
export function emitTracedStep(
  instruction: Instruction,
  lift: Lift,
  recording: boolean,
  traced: number,
): FunctionBuilder {
  const f = new FunctionBuilder({ params: ["i32", "i32"], results: ["i32"] });
  new TracedStepEmitter(f, recording, instruction, traced).emit(lift);
  return f;
}

class TracedStepEmitter extends StepEmitter {
  private readonly traced: number;
  /** Where the next event goes. */
  private readonly event: Local;
  /** Linear addresses of what was checked. */
  private readonly linear = new Map<Host, Local>();
  /** rsp before the instruction, of calls and returns. */
  private rsp: Value = 0n;
  private taken: Bit = true;

  constructor(f: FunctionBuilder, recording: boolean, instruction: Instruction, traced: number) {
    super(f, recording, instruction);
    this.traced = traced;
    this.event = f.local("i32");
  }

  override emit(lift: Lift): void {
    const { f, cpu, event } = this;
    const { mnemonic } = this.instruction;
    const [full, length] = [this.temp("i32"), this.temp("i64")];
    f.get(cpu).load("i32.load", STATE.traceNext).tee(event);
    f.get(cpu).load("i32.load", STATE.traceEnd).op("i32.ge_u").set(full);
    this.stopWhen(full, ANSWER.recordFull);
    f.get(this.record).load("i64.load32_u", RECORD.length).set(length);
    if (this.traces(TRACED.instructions)) this.put(TRACE.instruction, length);
    if (mnemonic === Mnemonic.Call || mnemonic === Mnemonic.Ret) this.rsp = this.reg(RSP);
    super.emit(lift);
  }

  override check(address: Value, size: number, access: Access): Host {
    const linear = this.copy(address);
    const host = super.check(linear, size, access);
    this.linear.set(host, linear);
    return host;
  }

  override loadFrom(host: Host, size: Size, offset = 0): Value {
    const value = super.loadFrom(host, size, offset);
    this.access(TRACE.read, host, size, offset, value);
    return value;
  }

  override storeTo(host: Host, size: Size, value: Value, offset = 0): void {
    super.storeTo(host, size, value, offset);
    this.access(TRACE.write, host, size, offset, value);
  }

  override branch(condition?: Bit): void {
    if (condition !== undefined) this.taken = condition;
    super.branch(condition);
  }

  override jump(target: Value): void {
    const { mnemonic } = this.instruction;
    const returns = mnemonic === Mnemonic.Ret;
    if (mnemonic === Mnemonic.Call || returns) {
      const slot = returns ? this.rsp : this.sub(this.rsp, 8n);
      if (this.traces(TRACED.calls)) this.put(returns ? TRACE.return : TRACE.call, 0n, target, slot);
    } else if (this.traces(TRACED.branches) && !this.isString()) {
      this.put(TRACE.branch, this.extend(this.taken), target);
    }
    super.jump(target);
  }

  protected override retiring(): void {
    this.f.get(this.cpu).get(this.event).store("i32.store", STATE.traceNext);
  }

  private access(kind: number, host: Host, size: Size, offset: number, value: Value): void {
    const linear = this.linear.get(host) ?? bug("an access that was not checked");
    if (this.traces(TRACED.accesses)) this.put(kind, BigInt(size), this.add(linear, BigInt(offset)), value);
  }

  /** A repeated one goes back to itself, which is no branch. */
  private isString(): boolean {
    return this.instruction.operands.some(({ kind }) => kind === "string");
  }

  private traces(kind: number): boolean {
    return (this.traced & kind) !== 0;
  }

  private put(kind: number, detail: Value, address: Value = 0n, value: Value = 0n): void {
    const { f, event } = this;
    const word = typeof detail === "bigint" ? detail << 8n : this.shl(detail, 8n);
    const fields = [
      [TRACE.kind, this.or(word, BigInt(kind))],
      [TRACE.ip, this.ip()],
      [TRACE.address, address],
      [TRACE.value, value],
    ] as const;
    for (const [field, content] of fields) {
      f.get(event);
      this.push64(content);
      f.store("i64.store", field);
    }
    f.get(event).i32(TRACE.size).op("i32.add").set(event);
  }
}
