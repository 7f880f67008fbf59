// Several random instructions in a row, with forward branches between them and now and then a loop, as one code to run.
//
// Where a memory operand goes by a register that was computed on the way, a `mov` of a constant comes before it, so that
// it accesses what it may; where an instruction reads a flag that the manual leaves undefined by then, a `cmp` does.
// What is left out is what would not be the same on all processors however it is put together.

import { Code, Mnemonic } from "iced-x86";
import { makersDifference } from "../../src/reference/makers.ts";
import { CODE, CODE_PAGE, DATA, DATA_SIZE, FLAG_MASK, FLAGS } from "../x86/cases-model.ts";
import { OWN_SIZE } from "./address.ts";
import type { Access, FuzzCode } from "./code.ts";
import { type Effects, effectsOf } from "./effects.ts";
import { compare, jumpIfNotZero, littleEndian, moveConstant, subtractOne } from "./encode.ts";
import type { Form } from "./forms.ts";
import { whole } from "./halves.ts";
import type { InstructionMaker } from "./instruction.ts";
import { Knowledge } from "./knowledge.ts";
import type { Random } from "./random.ts";
import { StateMaker } from "./state.ts";

/** The longest sequence. */
export const MAX_LENGTH = 12;

const ATTEMPTS = 40;
const RCX = 1;
const RSP = 4;
/** How far a branch goes at most, in instructions: a short one must reach. */
const REACH = 4;
const STATUS = FLAG_MASK & ~FLAGS.df;
/** In a hundred: sequences with a loop, and with many pushes and pops; branches that leave; accesses aimed without need. */
const LOOPS = 30;
const STACKS = 30;
const OUT = 10;
const AIMED = 15;
const STACK = [Mnemonic.Push, Mnemonic.Pop, Mnemonic.Pushf, Mnemonic.Pushfq];
/** All but rsp. */
const COUNTERS = [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
const WIDE_SHIFTS = [Mnemonic.Shld, Mnemonic.Shrd];
/** Which of its accesses comes first; what other flags it may set, a trap's among them. */
const LEFT_OUT = [Mnemonic.Enter, Mnemonic.Popf, Mnemonic.Popfq];

/** Makes sequences of the forms that `chooseForm` gives, in some of them with more of those that push and pop. */
export class SequenceMaker {
  private readonly maker: InstructionMaker;
  private readonly chooseForm: () => Form;
  private readonly stackForms: readonly Form[];
  private readonly aims = new StateMaker(true);

  constructor(maker: InstructionMaker, included: readonly Form[], chooseForm: () => Form) {
    this.maker = maker;
    this.chooseForm = chooseForm;
    this.stackForms = included.filter(({ mnemonic }) => STACK.includes(mnemonic));
  }

  /** One attempt at a sequence of `length` instructions, those in between not counted. */
  make(random: Random, length: number): FuzzCode | undefined {
    const sequence = new Sequence(random, this.aims, length);
    const stacks = random.chance(STACKS);
    for (let n = 0; n < length; n++) {
      let added = sequence.begin(n);
      for (let attempt = 0; !added; attempt++) {
        if (attempt === ATTEMPTS) return undefined;
        added = this.addOne(sequence, random, stacks);
      }
    }
    return sequence.finish();
  }

  private addOne(sequence: Sequence, random: Random, stacks: boolean): boolean {
    const form = stacks && random.chance(50) ? random.pick(this.stackForms) : this.chooseForm();
    const code = this.maker.make(random, form, sequence.ip);
    return code !== undefined && sequence.add(code, form);
  }
}

interface Fixup {
  /** Behind the branch. */
  readonly end: number;
  readonly size: number;
  /** Of the instruction that it goes to. */
  readonly target: number;
}

interface Loop {
  /** The first instruction of it, and the one that is its end. */
  readonly first: number;
  readonly last: number;
  readonly counter: number;
  /** Registers that nothing in it writes, a bit for each. */
  readonly kept: number;
  /** Where it goes back to. */
  head: number;
}

/** A sequence in the making. */
class Sequence {
  private readonly random: Random;
  private readonly aims: StateMaker;
  private readonly length: number;
  private readonly loop: Loop | undefined;
  private readonly bytes: number[] = [];
  private readonly accesses: Access[] = [];
  private readonly starts: number[] = [];
  private readonly fixups: Fixup[] = [];
  /** What is known where branches arrive. */
  private readonly arrivals: (Knowledge | undefined)[] = [];
  /** Undefined flags before the instruction at an offset. */
  private readonly flagsAt = new Map<number, number>();
  private current = 0;
  /** What is known before the next instruction, if execution gets there. */
  private knowledge = Knowledge.atFirst();
  private isReached = true;
  private branches = false;
  private leftFlags = 0;

  constructor(random: Random, aims: StateMaker, length: number) {
    this.random = random;
    this.aims = aims;
    this.length = length;
    this.loop = length > 2 && random.chance(LOOPS) ? this.planLoop() : undefined;
  }

  /** Where the next instruction will stand, unless something has to come before it. */
  get ip(): number {
    return CODE + this.bytes.length;
  }

  private planLoop(): Loop {
    const { random, length } = this;
    const last = 1 + random.below(length - 1);
    const counter = random.pick(COUNTERS);
    const kept = (random.word() & random.word() & 0xffff) | (1 << counter);
    return { first: random.below(last), last, counter, kept, head: 0 };
  }

  /** Instruction `n` comes next; true if it is the end of the loop, which is made here. */
  begin(n: number): boolean {
    const { loop } = this;
    this.current = n;
    this.arrive(n);
    if (loop?.first === n) {
      this.emit(moveConstant(loop.counter, BigInt(2 + this.random.below(4))));
      this.knowledge.forget(~loop.kept | (1 << loop.counter));
      loop.head = this.bytes.length;
    }
    if (loop?.last !== n) return false;
    this.emit(subtractOne(loop.counter));
    this.knowledge.undefinedFlags = 0;
    this.emit(jumpIfNotZero(loop.head - this.bytes.length));
    return true;
  }

  /** Adds the instruction if it fits in here. */
  add(code: FuzzCode, form: Form): boolean {
    const effects = effectsOf(code, this.ip);
    const kept = this.keptHere();
    if (effects.writes & kept || this.isOutOfPlace(code, effects)) return false;
    if (effects.reads & this.knowledge.undefinedFlags) {
      this.defineFlags();
      if (effects.ipRelative) return false; // it was made for another place
    }
    const accesses = this.reach(code, kept, effects.ipRelative);
    if (accesses === undefined) return false;
    this.accesses.push(...accesses);
    if (makersDifference(code.bytes)?.differs === "flags of a fault")
      this.flagsAt.set(this.bytes.length, STATUS);
    this.emit(code.bytes);
    const { knowledge } = this;
    knowledge.forget(effects.moves === undefined ? effects.writes : effects.writes & ~(1 << RSP));
    if (effects.moves !== undefined) knowledge.move(RSP, effects.moves);
    knowledge.undefinedFlags = (knowledge.undefinedFlags & ~effects.defines) | effects.spoils;
    this.goOn(code, effects, form);
    return true;
  }

  /** The sequence; undefined if a branch does not reach. */
  finish(): FuzzCode | undefined {
    this.begin(this.length);
    const { bytes, flagsAt } = this;
    for (const { end, size, target } of this.fixups) {
      const distance = this.starts[target]! - end;
      if (size === 1 && distance > 127) return undefined;
      bytes.splice(end - size, size, ...littleEndian(distance, size));
    }
    const atEnd = this.knowledge.undefinedFlags | this.leftFlags;
    return {
      bytes: Uint8Array.from(bytes),
      count: this.length,
      code: Code.INVALID,
      mnemonic: Mnemonic.INVALID,
      family: "sequence",
      accesses: this.accesses,
      target: "none",
      calls: false,
      branches: this.branches,
      repeated: false,
      size: 0,
      countInCl: false,
      undefinedFlags: (_, fault) => (fault === undefined ? undefined : flagsAt.get(fault)) ?? atEnd,
      scanDestination: -1,
    };
  }

  private keptHere(): number {
    const { loop, current } = this;
    return loop !== undefined && loop.first <= current && current < loop.last ? loop.kept : 0;
  }

  private isOutOfPlace(code: FuzzCode, { flow }: Effects): boolean {
    const isLast = this.current === this.length - 1;
    if (flow === "elsewhere" && (!isLast || code.target === "memory" || code.target === "stack")) return true;
    if (flow === "call" && !isLast) return true;
    const wideShift = WIDE_SHIFTS.includes(code.mnemonic) && code.countInCl && code.size === 2;
    const narrowString = code.repeated && code.accesses[0]!.narrow;
    return (
      wideShift ||
      narrowString ||
      code.scanDestination >= 0 ||
      LEFT_OUT.includes(code.mnemonic) ||
      makersDifference(code.bytes)?.differs === "end"
    );
  }

  /**
   * Makes sure that all accesses go where they may, and says where that is; undefined if it cannot be done. `fixed`:
   * nothing may be put before the instruction.
   */
  private reach(code: FuzzCode, kept: number, fixed: boolean): Access[] | undefined {
    const { random, knowledge, aims } = this;
    const { target } = code;
    const asItIs = resolveAll(knowledge, code.accesses);
    const varies = asItIs?.some(({ base, index }) => base >= 0 || index >= 0);
    const comes = !code.repeated && typeof target !== "object" && !comparesMemory(code);
    if (asItIs !== undefined && comes && (varies ? !random.chance(AIMED) : aims.allows(code, asItIs)))
      return asItIs;
    let involved = 0;
    for (const { base, index, bits } of code.accesses)
      for (const register of [base, index, bits]) if (register >= 0) involved |= 1 << register;
    if (code.repeated) involved |= 1 << RCX;
    if (typeof target === "object") involved |= 1 << target.register;
    if (fixed || involved & kept || !aims.make(random, code)) return undefined;
    for (let n = 0; n < 16; n++) {
      if (!(involved & (1 << n))) continue;
      const value = whole({ low: aims.registers[2 * n]!, high: aims.registers[2 * n + 1]! });
      this.emit(moveConstant(n, value));
      knowledge.setConstant(n, value);
    }
    return resolveAll(knowledge, code.accesses);
  }

  private defineFlags(): void {
    this.emit(compare(this.random.below(16), this.random.below(16)));
    this.knowledge.undefinedFlags = 0;
  }

  private emit(bytes: Iterable<number>): void {
    const at = this.bytes.length;
    this.flagsAt.set(at, (this.flagsAt.get(at) ?? 0) | this.knowledge.undefinedFlags);
    this.bytes.push(...bytes);
  }

  // ---- Where execution goes.

  private arrive(n: number): void {
    const arriving = this.arrivals[n];
    if (arriving !== undefined) {
      this.knowledge = this.isReached ? this.knowledge.meet(arriving) : arriving;
      this.isReached = true;
    }
    this.starts[n] = this.bytes.length;
  }

  private goOn(code: FuzzCode, { flow }: Effects, form: Form): void {
    if (flow === "next") return;
    if (flow !== "branch" || !this.branchWithin(form)) this.branchOut(code, flow);
    const conditional = flow === "branch" && code.mnemonic !== Mnemonic.Jmp;
    if (!conditional) this.isReached = false;
  }

  /** To one of the instructions that follow; false if it is to go elsewhere. */
  private branchWithin(form: Form): boolean {
    const { random, loop, current } = this;
    const size = form.operands.includes("br64_4") ? 4 : 1;
    if (size === 4 && random.chance(OUT)) return false;
    // Into a loop only by its beginning, where the counter is set.
    const farthest = loop !== undefined && current < loop.first ? loop.first : this.length;
    const target = current + 1 + random.below(Math.min(REACH, farthest - current));
    this.fixups.push({ end: this.bytes.length, size, target });
    this.arrivals[target] = this.arrivals[target]?.meet(this.knowledge) ?? this.knowledge.copy();
    return true;
  }

  /** Ends it: at an int3 far from here, or where nothing can be executed. */
  private branchOut({ target }: FuzzCode, flow: Effects["flow"]): void {
    const { random, bytes } = this;
    this.leftFlags |= this.knowledge.undefinedFlags;
    this.branches ||= flow !== "elsewhere" || typeof target === "object";
    if (flow === "elsewhere") return;
    const kind = random.below(100);
    const to =
      kind < 45
        ? CODE + OWN_SIZE + random.below(0x3e0)
        : kind < 90
          ? CODE_PAGE + random.below(0x7f0)
          : DATA + random.below(DATA_SIZE);
    bytes.splice(-4, 4, ...littleEndian(to - this.ip, 4));
  }
}

function resolveAll(knowledge: Knowledge, accesses: readonly Access[]): Access[] | undefined {
  const resolved = accesses.map((access) => knowledge.resolve(access));
  return resolved.includes(undefined) ? undefined : (resolved as Access[]);
}

/** cmps: which of two reads faults first is nowhere said. */
function comparesMemory({ accesses }: FuzzCode): boolean {
  return accesses.length === 2 && accesses.every(({ write }) => !write);
}
