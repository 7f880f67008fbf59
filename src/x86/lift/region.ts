// A region: basic blocks that branch to one another, as one WebAssembly function.
//
// (cpu: i32, entry: i32) -> i32, an ANSWER. Guest registers and flags live in locals from entry to exit.
// `entry` is the block to start with; edges between blocks are branches inside the function, everything
// else leaves with rip set. Whatever a block cannot do (a TLB miss, a fault, a full record) it leaves to the
// interpreter: it stops before that instruction and says which one it was.

import type { Addr } from "../../base/addr.ts";
import { bug } from "../../base/refuse.ts";
import { FunctionBuilder, type Label, type Local } from "../../wasm/function.ts";
import type { Instruction, Size } from "../decode.ts";
import { type Gpr, RSP } from "../register.ts";
import { ANSWER, CACHE_ENTRIES, STATE } from "../state.ts";
import { type Bit, Emitter, mask, type Stop, type Value } from "./emitter.ts";
import { definitionOf } from "./table.ts";

/** A straight run of instructions; only its last may branch. */
export interface Block {
  readonly ip: Addr;
  readonly instructions: readonly Instruction[];
}

/** Where a region stopped, by the index it left in `STATE.bailIndex`. */
export interface StopPoint {
  readonly ip: Addr;
  /** Instructions of the block that its start had paid for and that did not retire. */
  readonly unretired: number;
}

export interface EmittedRegion {
  readonly function: FunctionBuilder;
  readonly stopPoints: readonly StopPoint[];
}

/** Emits `blocks` (entries in that order) for table slot `slot`, by which the region knows its own jump-cache entries. */
export function emitRegion(blocks: readonly Block[], slot: number, recording: boolean): EmittedRegion {
  const f = new FunctionBuilder({ params: ["i32", "i32"], results: ["i32"] });
  const emitter = new RegionEmitter(f, recording, blocks, slot);
  const body = f.capture(() => emitter.emitBlocks());
  emitter.preload();
  f.append(body);
  emitter.spill();
  return { function: f, stopPoints: emitter.stopPoints };
}

class RegionEmitter extends Emitter {
  readonly stopPoints: StopPoint[] = [];
  private readonly blocks: readonly Block[];
  private readonly entries: ReadonlyMap<Addr, number>;
  private readonly slot: number;
  private readonly entry: Local;
  private readonly rip: Local;
  private readonly budget: Local;
  private readonly answer: Local;
  private readonly stopIndex: Local;
  private readonly registers = new Map<Gpr, { local: Local; written: boolean }>();
  private flags: { carry: Local; result: Local; x: Local } | undefined;
  private flagsWritten = false;
  private labels: Label[] = [];
  private top: Label | undefined;
  private stopped: Label | undefined;
  private leave: Label | undefined;
  private block = 0;

  constructor(f: FunctionBuilder, recording: boolean, blocks: readonly Block[], slot: number) {
    super(f, recording);
    this.blocks = blocks;
    this.entries = new Map(blocks.map(({ ip }, index) => [ip, index]));
    this.slot = slot;
    this.entry = f.param(1);
    this.rip = f.local("i64");
    this.budget = f.local("i64");
    this.answer = f.local("i32");
    this.stopIndex = f.local("i32");
  }

  // ---- The frame: br_table at the top of a loop; block i's code follows the end of label i, so that a
  // forward edge is a plain branch and only a backward one goes through the table.

  emitBlocks(): void {
    const { f, blocks } = this;
    this.leave = f.block();
    this.stopped = f.block();
    this.top = f.loop();
    for (let i = blocks.length - 1; i >= 0; i--) this.labels[i] = f.block();
    f.get(this.entry).brTable(this.labels, this.labels[0]!);
    for (this.block = 0; this.block < blocks.length; this.block++) {
      f.end();
      this.emitBlock(blocks[this.block]!);
    }
    f.end();
    f.end();
    f.get(this.cpu).get(this.stopIndex).store("i32.store", STATE.bailIndex);
    f.get(this.cpu).i32(this.slot).store("i32.store", STATE.bailSlot);
    f.i32(ANSWER.bail).set(this.answer);
    f.end();
  }

  preload(): void {
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
    f.get(cpu).load("i64.load", STATE.budget).set(this.budget);
  }

  spill(): void {
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
    f.get(cpu).get(this.budget).store("i64.store", STATE.budget);
    f.get(cpu).get(this.rip).store("i64.store", STATE.rip);
    f.get(this.answer);
  }

  private emitBlock({ ip, instructions }: Block): void {
    const { f } = this;
    f.get(this.budget).i64(instructions.length).op("i64.sub").tee(this.budget).i64(0).op("i64.lt_s").if();
    f.get(this.budget).i64(instructions.length).op("i64.add").set(this.budget);
    this.exit(BigInt(ip), ANSWER.budget);
    f.end();
    instructions.forEach((instruction, n) => {
      this.stopPoints.push({ ip: instruction.ip, unretired: instructions.length - n });
      const definition = definitionOf(instruction) ?? bug("a block holds what cannot be lifted");
      this.begin(instruction);
      const stackPointer = this.beginRecord();
      definition.lift(this);
      if (stackPointer) this.endRecord();
      if (n === instructions.length - 1 && definition.role === "straight") this.edge(instruction.next);
    });
  }

  /** Goes to `target`, inside the region if it holds a block there. */
  private edge(target: Addr): void {
    const index = this.entries.get(target);
    if (index === undefined) this.exit(BigInt(target), ANSWER.next);
    else if (index > this.block) this.f.br(this.labels[index]!);
    else this.f.i32(index).set(this.entry).br(this.top!);
  }

  private exit(rip: Value, answer: number): void {
    this.push64(rip);
    this.f.set(this.rip).i32(answer).set(this.answer).br(this.leave!);
  }

  // ---- Control.

  protected override stopIf(_stop: Stop): void {
    this.f
      .i32(this.stopPoints.length - 1)
      .set(this.stopIndex)
      .brIf(this.stopped!);
  }

  override branch(condition?: Bit): void {
    const operand = this.instruction.operands[0];
    const target = operand?.kind === "target" ? operand.at : bug("a branch without a target");
    if (condition !== undefined) {
      this.push32(condition);
      this.f.if();
      this.edge(target);
      this.f.end();
      this.edge(this.instruction.next);
    } else this.edge(target);
  }

  override jump(target: Value): void {
    const { f, cpu } = this;
    const to = this.copy(target);
    const cached = this.temp("i32");
    f.get(to).op("i32.wrap_i64").get(to).op("i32.wrap_i64").i32(12).op("i32.shr_u").op("i32.xor");
    f.i32(CACHE_ENTRIES - 1)
      .op("i32.and")
      .i32(4)
      .op("i32.shl")
      .get(cpu)
      .op("i32.add")
      .tee(cached);
    f.load("i64.load", STATE.jumpCache).get(to).op("i64.eq");
    f.get(cached)
      .load("i32.load", STATE.jumpCache + 8)
      .i32(this.slot)
      .op("i32.eq")
      .op("i32.and")
      .if();
    f.get(cached)
      .load("i32.load", STATE.jumpCache + 12)
      .set(this.entry)
      .br(this.top!);
    f.end();
    this.exit(to, ANSWER.next);
  }

  override skipIf(condition: Bit): void {
    this.push32(condition);
    this.f.if();
    this.edge(this.instruction.next);
    this.f.end();
  }

  override again(condition: Bit): void {
    this.push32(condition);
    this.f.if();
    this.edge(this.instruction.ip);
    this.f.end();
    this.edge(this.instruction.next);
  }

  override retire(): void {
    bug("an instruction that stops the machine inside a block");
  }

  // ---- Operands are constants and locals.

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

  private register(reg: Gpr): { local: Local; written: boolean } {
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
