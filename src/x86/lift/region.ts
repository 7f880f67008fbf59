// A region: basic blocks that branch to one another, as one WebAssembly function.
//
// (cpu: i32, entry: i32) -> i32, an ANSWER. Guest registers and flags live in locals from entry to exit.
// `entry` is the block to start with; edges between blocks are branches inside the function, everything
// else leaves with rip set. Whatever a block cannot do (a TLB miss, a fault, a full record) it leaves to the
// interpreter: it stops before that instruction and says which one it was.

import type { Addr } from "../../base/addr.ts";
import { bug } from "../../base/refuse.ts";
import { FunctionBuilder, type Label, type Local } from "../../wasm/function.ts";
import type { Instruction } from "../decode.ts";
import { ANSWER, CACHE_ENTRIES, STATE, USER_BANK } from "../state.ts";
import type { Stop } from "./emitter.ts";
import { returnPoints } from "./returnPoint.ts";
import { StackWindowEmitter } from "./stackWindow.ts";
import { definitionOf } from "./table.ts";
import type { Bit, Value } from "./values.ts";

/** Blocks that the target of an indirect jump is compared with before the jump cache is asked. */
const MAX_GUESSES = 2;

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

export interface RegionOptions {
  /** Where instructions went when they were last seen. */
  readonly went: ReadonlyMap<Addr, Addr>;
  /** By which the region knows its own jump-cache entries. */
  readonly slot: number;
  readonly recording: boolean;
  /** It is for user code, or for the kernel. */
  readonly user: boolean;
}

/** Emits `blocks`, entries in that order. */
export function emitRegion(blocks: readonly Block[], options: RegionOptions): EmittedRegion {
  const f = new FunctionBuilder({ params: ["i32", "i32"], results: ["i32"] });
  const emitter = new RegionEmitter(f, blocks, options);
  const body = f.capture(() => emitter.emitBlocks());
  emitter.preload();
  f.append(body);
  emitter.spill();
  return { function: f, stopPoints: emitter.stopPoints };
}

class RegionEmitter extends StackWindowEmitter {
  readonly stopPoints: StopPoint[] = [];
  private readonly blocks: readonly Block[];
  private readonly entries: ReadonlyMap<Addr, number>;
  private readonly slot: number;
  private readonly entry: Local;
  private readonly rip: Local;
  private readonly budget: Local;
  private readonly answer: Local;
  private readonly stopIndex: Local;
  private readonly went: ReadonlyMap<Addr, Addr>;
  private readonly bank: number;
  private readonly returns: ReadonlyMap<number, readonly number[]>;
  private labels: Label[] = [];
  /** The start of the block being emitted, if it branches to itself. */
  private self: Label | undefined;
  private top: Label | undefined;
  private stopped: Label | undefined;
  private leave: Label | undefined;
  private block = 0;

  constructor(f: FunctionBuilder, blocks: readonly Block[], { went, slot, recording, user }: RegionOptions) {
    super(f, recording);
    this.blocks = blocks;
    this.entries = new Map(blocks.map(({ ip }, index) => [ip, index]));
    this.went = went;
    this.returns = returnPoints(blocks);
    this.slot = slot;
    this.bank = user ? USER_BANK : 0;
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
      const block = blocks[this.block]!;
      this.self = branchesTo(block, block.ip) ? f.loop() : undefined;
      this.emitBlock(block);
      if (this.self !== undefined) f.end();
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
    this.loadLocals();
    f.get(cpu).load("i64.load", STATE.budget).set(this.budget);
  }

  spill(): void {
    const { f, cpu } = this;
    this.storeLocals();
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
    const first = this.stopPoints.length;
    this.emitWindowed(
      () => this.emitInstructions(instructions),
      () => {
        this.stopPoints.length = first;
      },
    );
  }

  private emitInstructions(instructions: readonly Instruction[]): void {
    instructions.forEach((instruction, n) => {
      this.stopPoints.push({ ip: instruction.ip, unretired: instructions.length - n });
      const definition = definitionOf(instruction) ?? bug("a block holds what cannot be lifted");
      this.begin(instruction);
      const before = this.beginRecord();
      definition.lift(this);
      if (before !== undefined) this.endRecord(before);
      if (n === instructions.length - 1 && definition.role === "straight") this.edge(instruction.next);
    });
  }

  /** Goes to `target`, inside the region if it holds a block there. */
  private edge(target: Addr): void {
    const index = this.entries.get(target);
    if (index === undefined) this.exit(BigInt(target), ANSWER.next);
    else if (index === this.block && this.self !== undefined) this.f.br(this.self);
    else if (index > this.block) this.f.br(this.labels[index]!);
    else this.f.i32(index).set(this.entry).br(this.top!);
  }

  private exit(rip: Value, answer: number): void {
    this.push64(rip);
    this.f.set(this.rip).i32(answer).set(this.answer).br(this.leave!);
  }

  protected override pushBank(): number {
    this.f.get(this.cpu);
    return this.bank;
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
    const { f } = this;
    const to = this.copy(target);
    for (const index of this.guesses()) {
      const { ip } = this.blocks[index]!;
      f.get(to).i64(ip).op("i64.eq").if();
      this.edge(ip);
      f.end();
    }
    const cached = this.temp("i32");
    f.get(to).op("i32.wrap_i64").get(to).op("i32.wrap_i64").i32(12).op("i32.shr_u").op("i32.xor");
    f.i32(CACHE_ENTRIES - 1)
      .op("i32.and")
      .i32(4)
      .op("i32.shl");
    const cache = STATE.jumpCache + this.pushBank();
    f.op("i32.add").tee(cached).load("i64.load", cache).get(to).op("i64.eq");
    f.get(cached)
      .load("i32.load", cache + 8)
      .i32(this.slot)
      .op("i32.eq")
      .op("i32.and")
      .if();
    f.get(cached)
      .load("i32.load", cache + 12)
      .set(this.entry)
      .br(this.top!);
    f.end();
    this.exit(to, ANSWER.next);
  }

  /** Blocks that an indirect jump probably leads to, the likeliest first. */
  private guesses(): Iterable<number> {
    const to = this.went.get(this.instruction.ip);
    const seen = to === undefined ? undefined : this.entries.get(to);
    return new Set(
      [...(seen === undefined ? [] : [seen]), ...(this.returns.get(this.block) ?? [])].slice(0, MAX_GUESSES),
    );
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
}

function branchesTo({ instructions }: Block, ip: Addr): boolean {
  const last = instructions.at(-1)!;
  const target = last.operands[0];
  return (target?.kind === "target" && target.at === ip) || (last.repeat !== undefined && last.ip === ip);
}
