// What can be wrong with the words of a stack that a walk goes by, and what no walk can tell from a stack that is right.
//
// Cannot be told, and is not made here:
// - another address of code where one has to be: an unwinder knows frames by such addresses, and finds this one's. But one
//   where stacks end, or where nothing is known, is made: it has to be noticed.
// - a saved rbp that leads to another frame further out: at the distance of one from a word that is an address of code.
// - a saved rsp that does, by the rule of the code that was interrupted there: where the registers lie leaves open by how
//   much rsp was aligned, and on the stack of an NMI or double fault all of it.
// - where stacks end in the place of what was interrupted, if nothing was on its stack.
// - registers of user mode at the beginning of an NMI's stack, or a double fault's: they come from there too.
// - the interrupt stack's link leading to other registers that an interrupt has saved.

import { type Addr, addr, toWord } from "../../src/base/addr.ts";
import type { TrueFrame } from "../../src/machine/callChain.ts";
import type { Memory } from "../../src/machine/memory.ts";
import { NMI_COPY, PT_REGS } from "../../src/machine/ptRegs.ts";
import type { OrcRule } from "../../src/unwind/orc/entry.ts";
import { HARDWARE_FRAME, HARDWARE_FRAME_SIZE, isBeginning } from "../../src/unwind/savedRegisters.ts";
import type { StackInfo, UnwindContext } from "../../src/unwind/walk.ts";

/** What a word is for. */
export type Role = "address" | "cs" | "ss" | "sp" | "rbp" | "link";

/** Addresses of code that are no caller's, as far as an unwinder knows. */
export interface Landmarks {
  /** Where stacks end, which is right only at a stack's beginning. */
  readonly ends: readonly Addr[];
  /** Return trampolines; code where nothing is known. */
  readonly unknown: readonly Addr[];
  /** Where tasks begin, which a task that is off its CPU says of itself if it was never run. */
  readonly starts: readonly Addr[];
  /** Around code and data: no code, but next to it. */
  readonly outside: readonly Addr[];
}

export interface CorruptionParts {
  readonly memory: Memory;
  readonly context: UnwindContext;
  readonly truth: readonly TrueFrame[];
  /** The rules by which the walk of the stack found its frames. */
  readonly rules: Iterable<OrcRule>;
  readonly landmarks: Landmarks;
  readonly choose: (limit: number) => number;
  /** Whether the walk begins by the innermost address on the stack. */
  readonly switchedOut: boolean;
}

/** One stack with what may be written over it. */
export class Corruption {
  private readonly memory: Memory;
  private readonly context: UnwindContext;
  private readonly truth: readonly TrueFrame[];
  private readonly landmarks: Landmarks;
  private readonly choose: (limit: number) => number;
  /** The slot that the walk begins by. */
  private readonly start: Addr | undefined;
  /** Where addresses are found from rbp. */
  private readonly fromRbp: ReadonlySet<number>;
  private readonly stacks: readonly StackInfo[];

  constructor({ memory, context, truth, rules, landmarks, choose, switchedOut }: CorruptionParts) {
    this.memory = memory;
    this.context = context;
    this.truth = truth;
    this.landmarks = landmarks;
    this.start = switchedOut ? truth[0]?.slot : undefined;
    this.choose = choose;
    const byRbp = [...rules].filter(({ cfa }) => cfa.register === "bp");
    this.fromRbp = new Set([8, ...byRbp.map(({ cfa }) => cfa.offset - 8)]);
    const found = new Map<Addr, StackInfo>();
    for (const { slot } of truth) {
      const stack = context.stackAt(slot);
      if (stack !== undefined) found.set(stack.low, stack);
    }
    this.stacks = [...found.values()];
  }

  /** What the word at `at` is for, among those that a walk has read. */
  role(at: Addr): Role {
    for (const frame of this.truth) {
      if (frame.slot === at) return "address";
      if (frame.kind !== "interrupt") continue;
      for (const field of ["cs", "sp", "ss"] as const)
        if (at === frame.slot + PT_REGS.fields[field].offset - HARDWARE_FRAME) return field;
    }
    const stack = this.context.stackAt(at);
    return stack?.kind === "irq" && at === stack.high - 8 ? "link" : "rbp";
  }

  /** What may take the place of the word at `at`. */
  values(at: Addr): bigint[] {
    const role = this.role(at);
    const before = this.memory.readWord(at);
    const values = [...this.garbage(before), ...this.pointers(at, before)];
    if (role === "address") {
      const { unknown, ends, starts } = this.landmarks;
      values.push(...[...unknown, ...ends, ...starts].map(toWord));
    }
    if (role === "cs" || role === "ss") values.push(0x33n, 0x2bn, 1n, 2n, 3n, 0x10n, 0x18n);
    return [...new Set(values)].filter((word) => word !== before && this.canBeTold(role, at, word));
  }

  /** Words that are no address of anything, or of something else. */
  garbage(before: bigint): bigint[] {
    const random = () => (BigInt(this.choose(2 ** 32)) << 32n) | BigInt(this.choose(2 ** 32));
    return [
      random(),
      random(),
      // Like an address, but of nothing that is there.
      BigInt.asUintN(64, -(random() & 0x7fff_ffff_ffffn)),
      random() & 0x7fff_ffffn,
      0n,
      1n,
      2n ** 64n - 1n,
      before ^ (1n << 63n),
      before ^ (1n << BigInt(47 + this.choose(16))),
      before ^ (1n << BigInt(32 + this.choose(15))),
      ...this.landmarks.outside.map(toWord),
    ];
  }

  /** Places on the stacks, and next to them, and between their words. */
  private pointers(at: Addr, before: bigint): bigint[] {
    const near = [-16, -8, -4, -1, 1, 2, 4, 8, 16].map((distance) =>
      BigInt.asUintN(64, before + BigInt(distance)),
    );
    const places = this.stacks.flatMap(({ low, high }) => {
      const any = () => low + 8 * this.choose((high - low) / 8);
      // The first eighth below the top is where frames are.
      const live = () => high - 8 * (1 + this.choose((high - low) / 64));
      return [
        low - 8,
        low,
        high - 168,
        high - 16,
        high - 8,
        high,
        high + 8,
        any(),
        live(),
        live(),
        live() + 1,
        live() + 4,
      ];
    });
    const frames = this.truth.flatMap(({ slot }) => [slot, slot - 8, slot - 7, slot + 8]);
    const pick = () => frames[this.choose(frames.length)]!;
    const own = [at, at - 8, at + 8, at + 1, ...(frames.length === 0 ? [] : [pick(), pick(), pick()])];
    return [...near, ...[...places, ...own].map((place) => toWord(addr(place)))];
  }

  private canBeTold(role: Role, at: Addr, word: bigint): boolean {
    const signed = BigInt.asIntN(64, word);
    const value = Number(signed) as Addr;
    if (BigInt(value) !== signed) return true;
    switch (role) {
      case "address": {
        const { unknown, ends, starts } = this.landmarks;
        const isInner = this.truth.at(-1)?.slot !== at && !this.isAtBeginning(at);
        if (unknown.includes(value) || (isInner && ends.includes(value))) return true;
        return (at === this.start && starts.includes(value)) || !this.context.isText(value);
      }
      case "rbp":
        return ![...this.fromRbp].some((distance) => this.isFurtherOut(at, (value + distance) as Addr));
      case "sp":
        return !this.mayBeRsp(at, value) || !this.leadsToFrame(at, value);
      case "link":
        return !this.isEndOfRegisters((value + PT_REGS.size) as Addr);
      default:
        return true;
    }
  }

  /** Whether `at` has what was interrupted with nothing on its stack: between a return and what puts its slot back. */
  private isAtBeginning(at: Addr): boolean {
    const frame = this.truth.find(({ slot }) => slot === at);
    return frame?.kind === "interrupt" && isBeginning(this.context, frame.rsp);
  }

  /** Whether the hardware would have saved `sp` at `at`. */
  private mayBeRsp(at: Addr, sp: Addr): boolean {
    const end = at + PT_REGS.size - PT_REGS.fields.sp.offset;
    const stack = this.context.stackAt(at);
    const isFirst = end === stack?.high || end + NMI_COPY === stack?.high;
    return alignedDown(sp) === end || (stack?.kind === "exception" && isFirst);
  }

  /** Whether the code that was interrupted with the rsp saved at `at` would find a frame by `sp` instead. */
  private leadsToFrame(at: Addr, sp: Addr): boolean {
    const frame = (at - PT_REGS.fields.sp.offset + HARDWARE_FRAME) as Addr;
    const { cfa, type } = this.context.orc.find(this.memory.readNumber(frame) as Addr) ?? {};
    const anchor = sp + (cfa?.offset ?? 0);
    if (type === "REGS") return this.isEndOfRegisters((anchor + PT_REGS.size) as Addr);
    if (type === "REGS_PARTIAL") return this.isEndOfRegisters((anchor + HARDWARE_FRAME_SIZE) as Addr);
    return this.isAddress((anchor - 8) as Addr);
  }

  /** Whether `slot` is an address of code, where a walk may go from `at`. */
  private isFurtherOut(at: Addr, slot: Addr): boolean {
    const [from, to] = [this.context.stackAt(at)!, this.context.stackAt(slot)];
    const isOutwards =
      from.low === to?.low
        ? slot > at
        : from.kind === "exception" || (from.kind === "irq" && to?.kind === "task");
    return isOutwards && this.isAddress(slot);
  }

  private isAddress(slot: Addr): boolean {
    const word = slot % 8 === 0 ? this.context.read(slot) : undefined;
    return word !== undefined && this.context.isText(word as Addr);
  }

  /** Whether below `end` lies what the hardware pushes: an rsp that was there. */
  private isEndOfRegisters(end: Addr): boolean {
    const sp = end % 8 === 0 ? this.context.read((end - 16) as Addr) : undefined;
    return sp !== undefined && alignedDown(sp) === end;
  }
}

function alignedDown(sp: number): number {
  return Math.floor(sp / 16) * 16;
}
