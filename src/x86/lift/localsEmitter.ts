// Guest registers and flags in WebAssembly locals, operands as constants: what the blocks of a region
// are emitted over. The locals are filled at the function's entry and written back at its exit.

import { bug } from "../../base/refuse.ts";
import type { Local } from "../../wasm/function.ts";
import type { Size } from "../decode.ts";
import { type Gpr, RSP } from "../register.ts";
import { STATE } from "../state.ts";
import { Emitter } from "./emitter.ts";
import { type Bit, mask, type Value } from "./values.ts";

export abstract class LocalsEmitter extends Emitter {
  private readonly registers = new Map<Gpr, { local: Local; written: boolean }>();
  private flags: { carry: Local; result: Local; x: Local } | undefined;
  private flagsWritten = false;

  /** Loads every local that the body turned out to use. */
  protected loadLocals(): void {
    const { f, cpu } = this;
    for (const [gpr, { local }] of this.registers)
      f.get(cpu)
        .load("i64.load", STATE.gpr + 8 * gpr)
        .set(local);
    if (this.flags !== undefined) {
      f.get(cpu).load("i32.load", STATE.carry).set(this.flags.carry);
      f.get(cpu).load("i64.load", STATE.result).set(this.flags.result);
      f.get(cpu).load("i64.load", STATE.x).set(this.flags.x);
    }
  }

  /** Writes back those that the body may have changed. */
  protected storeLocals(): void {
    const { f, cpu } = this;
    for (const [gpr, { local, written }] of this.registers) {
      if (written)
        f.get(cpu)
          .get(local)
          .store("i64.store", STATE.gpr + 8 * gpr);
    }
    if (this.flags !== undefined && this.flagsWritten) {
      f.get(cpu).get(this.flags.carry).store("i32.store", STATE.carry);
      f.get(cpu).get(this.flags.result).store("i64.store", STATE.result);
      f.get(cpu).get(this.flags.x).store("i64.store", STATE.x);
    }
  }

  override reg(reg: Gpr, size: Size = 8): Value {
    const value = this.temp("i64");
    this.f.get(this.register(reg).local);
    if (size !== 8) this.f.i64(mask(size)).op("i64.and");
    this.f.set(value);
    return value;
  }

  override setReg(reg: Gpr, value: Value, size: Size = 8): void {
    const register = this.register(reg);
    this.commit();
    if (size === 8 || size === 4) this.push64(this.zext(value, size));
    else this.push64(this.merge(register.local, this.zext(value, size), size));
    this.f.set(register.local);
    register.written = true;
  }

  protected override readRegisterOperand(n: number): Value {
    const { reg, size, high } = this.registerOperand(n);
    return high ? this.and(this.shr(this.register(reg).local, 8n), 0xffn) : this.reg(reg, size);
  }

  protected override writeRegisterOperand(n: number, value: Value): void {
    const { reg, size, high } = this.registerOperand(n);
    if (high) {
      const rest = this.and(this.register(reg).local, ~0xff00n);
      this.setReg(reg, this.or(rest, this.shl(this.zext(value, 1), 8n)));
    } else this.setReg(reg, value, size);
  }

  protected override immediate(n: number): Value {
    const operand = this.instruction.operands[n];
    return operand?.kind === "immediate" ? operand.value : bug(`operand ${n} is no immediate`);
  }

  override effectiveAddress(): Value {
    const { base, index, shift, displacement } = this.memory();
    let address: Value = base === undefined ? 0n : this.reg(base);
    if (index !== undefined) {
      const scaled = shift === 0 ? this.reg(index) : this.shl(this.reg(index), BigInt(shift));
      address = this.add(address, scaled);
    }
    address = this.add(address, displacement);
    return this.zext(address, this.addressSize);
  }

  protected override effectiveAddressAfterPop(bytes: bigint): Value {
    return this.add(this.effectiveAddress(), this.memory().base === RSP ? bytes : 0n);
  }

  override segmentBase(): Value {
    const { segment } = this.memory();
    if (segment === undefined) return 0n;
    return this.getState(segment === "fs" ? STATE.fsBase : STATE.gsBase);
  }

  override next(): Value {
    return BigInt(this.instruction.next);
  }

  override ip(): Value {
    return BigInt(this.instruction.ip);
  }

  override carry(): Bit {
    const bit = this.temp("i32");
    this.f.get(this.flagLocals().carry).set(bit);
    return bit;
  }

  override result(): Value {
    const value = this.temp("i64");
    this.f.get(this.flagLocals().result).set(value);
    return value;
  }

  override x(): Value {
    const value = this.temp("i64");
    this.f.get(this.flagLocals().x).set(value);
    return value;
  }

  protected override putCarry(bit: Bit): void {
    this.push32(bit);
    this.f.set(this.flagLocals().carry);
    this.flagsWritten = true;
  }

  protected override putResult(value: Value): void {
    this.push64(value);
    this.f.set(this.flagLocals().result);
    this.flagsWritten = true;
  }

  protected override putX(value: Value): void {
    this.push64(value);
    this.f.set(this.flagLocals().x);
    this.flagsWritten = true;
  }

  protected register(reg: Gpr): { local: Local; written: boolean } {
    let register = this.registers.get(reg);
    if (register === undefined) {
      register = { local: this.f.local("i64"), written: false };
      this.registers.set(reg, register);
    }
    return register;
  }

  private flagLocals(): { carry: Local; result: Local; x: Local } {
    this.flags ??= { carry: this.f.local("i32"), result: this.f.local("i64"), x: this.f.local("i64") };
    return this.flags;
  }

  private registerOperand(n: number) {
    const operand = this.instruction.operands[n];
    return operand?.kind === "register" ? operand : bug(`operand ${n} is no register`);
  }

  private memory() {
    return this.instruction.memory ?? bug("no memory operand");
  }
}
