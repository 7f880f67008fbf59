// What an instruction's definition is written in: values, flags, memory, control, without saying
// whether it becomes a step function (operands as data, see stepEmitter.ts) or a part of a
// region (operands as constants and locals, see localsEmitter.ts).
//
// An instruction must do everything that can stop it (memory checks, bails) before its first effect on
// registers, flags or memory: precise faults rest on it, so it is asserted while lifting. Values and
// arithmetic are values.ts's.

import { PAGE_SIZE } from "../../base/addr.ts";
import { bug } from "../../base/refuse.ts";
import type { FunctionBuilder, Local } from "../../wasm/function.ts";
import { type Code, type Instruction, Mnemonic, type Operand, type Size } from "../decode.ts";
import { type Gpr, RSP } from "../register.ts";
import { ANSWER, EVENT, STATE, TLB_ENTRIES, X_MASK } from "../state.ts";
import { type Bit, type Value, ValueEmitter } from "./values.ts";

/** A host address, checked for an access. */
export type Host = Local & { readonly checked: true };

/** A destination that is read first: one check serves both accesses. */
export interface Place {
  readonly value: Value;
  put(value: Value): void;
}

/** Why lifted code stops before an instruction. */
export type Stop =
  | { readonly kind: "miss"; readonly address: Local; readonly size: number; readonly access: Access }
  | { readonly kind: "answer"; readonly answer: number };

/** `read2` is the second read of an instruction that has two (cmps): were both in one TLB, they could evict each other. */
export type Access = "read" | "write" | "read2";

const TLB = { read: STATE.readTlb, write: STATE.writeTlb, read2: STATE.secondReadTlb } as const;

const LOADS = { 1: "i64.load8_u", 2: "i64.load16_u", 4: "i64.load32_u", 8: "i64.load" } as const;
const STORES = { 1: "i64.store8", 2: "i64.store16", 4: "i64.store32", 8: "i64.store" } as const;

export abstract class Emitter extends ValueEmitter {
  readonly cpu: Local;
  /** Whether calls and returns are recorded. */
  readonly recording: boolean;
  private current: Instruction | undefined;
  private committed = false;

  constructor(f: FunctionBuilder, recording: boolean) {
    super(f);
    this.cpu = f.param(0);
    this.recording = recording;
  }

  // ---- The instruction: its form, and its operands through the subclasses.

  /** Starts on `instruction`; temporaries of the one before are free again. */
  protected begin(instruction: Instruction): void {
    this.current = instruction;
    this.committed = false;
    this.freeTemporaries();
  }

  protected get instruction(): Instruction {
    return this.current ?? bug("no instruction is being lifted");
  }

  /** Operand sizes and kinds belong to the form; their numbers and values do not. */
  kind(n: number): Operand["kind"] {
    return this.instruction.operands[n]?.kind ?? bug(`operand ${n} of a shorter instruction`);
  }

  get operandCount(): number {
    return this.instruction.operands.length;
  }

  size(n: number): Size {
    const operand = this.instruction.operands[n];
    if (operand?.kind === "register" || operand?.kind === "immediate") return operand.size;
    if (operand?.kind === "memory" && isSize(operand.size)) return operand.size;
    return bug(`operand ${n} has no size`);
  }

  get addressSize(): 4 | 8 {
    return this.instruction.addressSize;
  }

  /** iced-x86's code: tells apart what has no operands to tell it. */
  get code(): Code {
    return this.instruction.code;
  }

  get repeat(): "rep" | "repne" | undefined {
    return this.instruction.repeat;
  }

  /** Register `reg`, or its low `size` bytes. */
  abstract reg(reg: Gpr, size?: Size): Value;
  /** Writes the low `size` bytes; four bytes clear the upper half (SDM vol. 1, 3.4.1.1). */
  abstract setReg(reg: Gpr, value: Value, size?: Size): void;
  protected abstract readRegisterOperand(n: number): Value;
  protected abstract writeRegisterOperand(n: number, value: Value): void;
  protected abstract immediate(n: number): Value;
  /** What the memory operand's base, index and displacement add up to: lea's answer. */
  abstract effectiveAddress(): Value;
  /** The same as `pop` sees it, with rsp already `bytes` higher. */
  protected abstract effectiveAddressAfterPop(bytes: bigint): Value;
  /** The base of the memory operand's segment: zero but for fs and gs. */
  abstract segmentBase(): Value;
  /** Address of the instruction after this one. */
  abstract next(): Value;
  abstract ip(): Value;
  abstract carry(): Bit;
  abstract result(): Value;
  abstract x(): Value;
  protected abstract putCarry(bit: Bit): void;
  protected abstract putResult(value: Value): void;
  protected abstract putX(value: Value): void;
  /** Stops before this instruction if the i32 on the stack is not zero. */
  protected abstract stopIf(stop: Stop): void;
  /** Pushes what the bank of the code's privilege level is found by: with the offset that it returns. */
  protected abstract pushBank(): number;
  /** Goes to the branch target, or if `condition` is given, goes there only when it holds. */
  abstract branch(condition?: Bit): void;
  /** Goes to `target`, which must have passed `checkTarget`. */
  abstract jump(target: Value): void;
  /** Ends here, with the instruction after this one, if `condition` holds. */
  abstract skipIf(condition: Bit): void;
  /** Executes this instruction again if `condition` holds, else goes on. Ends the definition. */
  abstract again(condition: Bit): void;
  /** Ends with `answer`, the instruction having retired. Only in step functions. */
  abstract retire(answer: number): void;

  // ---- Operands.

  read(n: number): Value {
    switch (this.kind(n)) {
      case "register":
        return this.readRegisterOperand(n);
      case "memory":
        return this.load(this.address(), this.size(n));
      case "immediate":
        return this.immediate(n);
      default:
        return bug(`operand ${n} cannot be read`);
    }
  }

  write(n: number, value: Value): void {
    if (this.kind(n) === "register") {
      this.commit();
      this.writeRegisterOperand(n, value);
    } else this.store(this.address(), this.size(n), value);
  }

  /** Operand `n` to be read, then written. */
  place(n: number): Place {
    const size = this.size(n);
    if (this.kind(n) === "register") {
      return { value: this.readRegisterOperand(n), put: (value) => this.write(n, value) };
    }
    return this.placeAt(this.address(), size);
  }

  placeAt(address: Value, size: Size): Place {
    const host = this.check(address, size, "write");
    return { value: this.loadFrom(host, size), put: (value) => this.storeTo(host, size, value) };
  }

  // ---- Memory.

  /** Linear address of the memory operand. */
  address(): Value {
    return this.add(this.effectiveAddress(), this.segmentBase());
  }

  addressAfterPop(bytes: bigint): Value {
    return this.add(this.effectiveAddressAfterPop(bytes), this.segmentBase());
  }

  /** Checks an access of `size` bytes; a miss stops before the instruction. */
  check(address: Value, size: number, access: Access): Host {
    if (this.committed) bug("a memory check after an effect");
    const { f } = this;
    const linear = this.copy(address);
    const entry = this.temp("i32");
    let table: number = TLB[access];
    if (access === "read2") f.get(this.cpu);
    else {
      table += this.pushBank();
      f.get(linear)
        .op("i32.wrap_i64")
        .i32(8)
        .op("i32.shr_u")
        .i32(16 * (TLB_ENTRIES - 1))
        .op("i32.and");
      f.op("i32.add");
    }
    // The tag of the first byte's page is compared with the last byte's page, so that an access across two misses.
    f.tee(entry).load("i64.load", table);
    f.get(linear)
      .i64(size - 1)
      .op("i64.add")
      .i64(-PAGE_SIZE)
      .op("i64.and")
      .op("i64.ne");
    if (access === "read2") {
      // One entry serves all pages: it may be that of the last byte's, and the first byte before it.
      f.get(entry).load("i32.load", table + 12);
      f.get(linear).op("i32.wrap_i64").i32(-PAGE_SIZE).op("i32.and").op("i32.ne").op("i32.or");
    }
    this.stopIf({ kind: "miss", address: linear, size, access });
    const host = this.temp("i32");
    f.get(linear)
      .op("i32.wrap_i64")
      .get(entry)
      .load("i32.load", table + 8)
      .op("i32.add")
      .set(host);
    return host as Host;
  }

  loadFrom(host: Host, size: Size, offset = 0): Value {
    const value = this.temp("i64");
    this.f.get(host).load(LOADS[size], offset).set(value);
    return value;
  }

  storeTo(host: Host, size: Size, value: Value, offset = 0): void {
    this.commit();
    this.f.get(host);
    this.push64(value);
    this.f.store(STORES[size], offset);
  }

  load(address: Value, size: Size, access: "read" | "read2" = "read"): Value {
    return this.loadFrom(this.check(address, size, access), size);
  }

  store(address: Value, size: Size, value: Value): void {
    this.storeTo(this.check(address, size, "write"), size, value);
  }

  /** Pushes `size` bytes: the store, then rsp. */
  push(value: Value, size: Size = 8): void {
    const top = this.sub(this.reg(RSP), BigInt(size));
    this.store(top, size, value);
    this.setReg(RSP, top);
  }

  /** The word on top of the stack; rsp is the caller's to set, when nothing can stop it any more. */
  peek(size: Size = 8): Value {
    return this.load(this.reg(RSP), size);
  }

  /** A word of the vCPU that is no register: a segment base, the system flags. */
  getState(offset: number): Value {
    const value = this.temp("i64");
    this.f.get(this.cpu).load("i64.load", offset).set(value);
    return value;
  }

  setState(offset: number, value: Value): void {
    this.commit();
    this.f.get(this.cpu);
    this.push64(value);
    this.f.store("i64.store", offset);
  }

  /** Does what `effects` emits only if `condition` holds; nothing in there may stop the instruction. */
  when(condition: Bit, effects: () => void): void {
    this.commit();
    this.push32(condition);
    this.f.if();
    effects();
    this.f.end();
  }

  /** True outside privilege level 0. */
  user(): Bit {
    return this.ne(this.getState(STATE.cpl), 0n);
  }

  // ---- Stopping.

  /** Stops with `answer` before the instruction, if `condition` holds. */
  stopWhen(condition: Bit, answer: number): void {
    if (this.committed) bug("a stop after an effect");
    if (condition === false) return;
    this.push32(condition);
    this.stopIf({ kind: "answer", answer });
  }

  /** #GP unless `target` is canonical: a near branch elsewhere faults before it happens. */
  checkTarget(target: Value): void {
    const extended = this.sar(this.shl(target, 16n), 16n);
    this.stopWhen(this.ne(extended, target), ANSWER.generalProtection);
  }

  /** Where the instruction sets rsp otherwise than by pushing, calling or returning: rsp, with room made to record it. */
  protected beginRecord(): Value | undefined {
    if (!this.recording || !setsStackPointer(this.instruction)) return undefined;
    this.checkRecord();
    return this.reg(RSP);
  }

  /** Records that rsp was `before`, and where it is now. */
  protected endRecord(before: Value): void {
    this.recordEvent(EVENT.stackPointer, this.reg(RSP), before);
  }

  /** Makes sure of room for one recorded event. */
  protected checkRecord(): void {
    if (!this.recording) return;
    const full = this.temp("i32");
    const { f, cpu } = this;
    f.get(cpu)
      .load("i32.load", STATE.recordNext)
      .get(cpu)
      .load("i32.load", STATE.recordEnd)
      .op("i32.ge_u")
      .set(full);
    this.stopWhen(full, ANSWER.recordFull);
  }

  /** Pushes the return address: what every near call does before it jumps. */
  call(): void {
    this.checkRecord();
    const top = this.sub(this.reg(RSP), 8n);
    const back = this.next();
    this.store(top, 8, back);
    this.setReg(RSP, top);
    this.recordEvent(EVENT.call, top, back);
  }

  /** Pops the return address and `release` bytes more; what every near return does before it jumps. */
  popReturn(release: Value): Value {
    this.checkRecord();
    const slot = this.reg(RSP);
    const target = this.load(slot, 8);
    this.checkTarget(target);
    this.setReg(RSP, this.add(this.add(slot, 8n), release));
    this.recordEvent(EVENT.return, slot, target);
    return target;
  }

  private recordEvent(kind: number, slot: Value, address: Value): void {
    if (!this.recording) return;
    const { f, cpu } = this;
    const event = this.temp("i32");
    const ip = this.ip();
    f.get(cpu).load("i32.load", STATE.recordNext).tee(event).i64(kind).store("i64.store", EVENT.kind);
    for (const [field, value] of [
      [EVENT.ip, ip],
      [EVENT.slot, slot],
      [EVENT.address, address],
    ] as const) {
      f.get(event);
      this.push64(value);
      f.store("i64.store", field);
    }
    f.get(cpu).get(event).i32(EVENT.size).op("i32.add").store("i32.store", STATE.recordNext);
  }

  // ---- Flags.

  /** Sets all six from carry, sign-extended result and x (only its bits 63 and 4 count). */
  setFlags(carry: Bit, result: Value, x: Value): void {
    this.setFlagWords(carry, result, this.and(x, X_MASK));
  }

  /** The same with x taken whole. */
  setFlagWords(carry: Bit, result: Value, x: Value): void {
    this.commit();
    this.putCarry(carry);
    this.putResult(result);
    this.putX(x);
  }

  /** Changes CF; the other five stay. */
  setCarry(carry: Bit): void {
    const flipped = this.xorBit(this.carry(), carry);
    const x = this.xor(this.x(), this.shl(this.extend(flipped), 63n)); // OF is relative to the carry
    this.commit();
    this.putCarry(carry);
    this.putX(x);
  }

  /** Changes CF and OF; the other four stay. */
  setCarryOverflow(carry: Bit, overflow: Bit): void {
    const top = this.xorBit(this.xorBit(carry, overflow), this.bit(this.result(), 63n));
    const x = this.or(this.and(this.x(), (1n << 63n) - 1n), this.shl(this.extend(top), 63n));
    this.commit();
    this.putCarry(carry);
    this.putX(x);
  }

  zero(): Bit {
    return this.eqz(this.result());
  }

  sign(): Bit {
    return this.xorBit(this.bit(this.result(), 63n), this.bit(this.x(), 62n));
  }

  overflow(): Bit {
    return this.xorBit(this.carry(), this.bit(this.xor(this.x(), this.result()), 63n));
  }

  adjust(): Bit {
    return this.bit(this.xor(this.x(), this.result()), 4n);
  }

  parity(): Bit {
    const { f } = this;
    const even = this.temp("i32");
    this.push64(this.xor(this.result(), this.shr(this.x(), 8n)));
    f.op("i32.wrap_i64")
      .i32(0xff)
      .op("i32.and")
      .op("i32.popcnt")
      .i32(1)
      .op("i32.and")
      .op("i32.eqz")
      .set(even);
    return even;
  }

  /** From here on the instruction has effects, and nothing may stop it. */
  protected commit(): void {
    this.committed = true;
  }
}

const POPS = [Mnemonic.Pop, Mnemonic.Popf, Mnemonic.Popfq, Mnemonic.Leave];
/** Xchg, xadd, mulx, cmpccxadd: their second operand is written too. */
const WRITES_SECOND = /^(Xchg|Xadd|Mulx|Cmp\w+xadd)$/;

/** True if a frame can end by it without a return. */
export function setsStackPointer({ mnemonic, operands: [first, second] }: Instruction): boolean {
  const isRsp = (operand?: Operand) => operand?.kind === "register" && operand.reg === RSP;
  if (POPS.includes(mnemonic)) return true;
  return (
    (isRsp(first) && mnemonic !== Mnemonic.Push) || (isRsp(second) && WRITES_SECOND.test(Mnemonic[mnemonic]!))
  );
}

/** An enter that copies frame pointers: each of its pushes happens whether or not the next one faults. */
export function nests({ operands }: Instruction): boolean {
  return operands.some((operand) => operand.kind === "nesting" && operand.level > 0);
}

function isSize(size: number): size is Size {
  return size === 1 || size === 2 || size === 4 || size === 8;
}
