// What every walker of stacks answers: the frames that it found, and the first reason to doubt them.
//
// A walk without a doubt claims to be reliable: that it names every function that the task may return into. A doubt
// never clears; what is walked beyond it is for people to look at. Here too is what a walker may ask.

import type { Addr } from "../base/addr.ts";
import type { OrcRule } from "./orc/entry.ts";

/** ORC by address of code. */
export interface OrcLookup {
  find(at: Addr): OrcRule | undefined;
}

/** Why a walk may not be believed: the rules of a reliable stack trace, one sentence for each that can be broken. */
export const DOUBTS = {
  "no-orc": "no ORC entry covers this address",
  "orc-undefined": "the ORC entry of this address says that nothing is known there",
  "orc-ambiguous-end":
    "the ORC entry of this address has 6.1's `end` bit, which may mean the end of the stack or that nothing is known",
  "orc-register": "the ORC entry of this address needs a register that was not saved",
  "outside-stack": "the frame is on none of the stacks that the task may be on",
  misaligned: "the stack pointer or frame pointer is not a multiple of eight",
  "went-back": "the walk came back to a part of the stack that it had left",
  "not-text": "what should be a return address is no address of code",
  "return-replaced": "the return address was replaced, and what it was is not recorded",
  "early-end": "the stack ends here, but not where this task's stack begins",
  "too-deep": "the trace fills all its entries, so that more may follow",
  "saved-sp": "the saved registers have a stack pointer that was not in use when they were saved there",
  "live-registers": "between a function's entry and the set-up of its frame, rbp leads past its caller",
  "exception-frame": "kernel code was interrupted here, and rbp may not be its frame pointer",
  guess: "every word that looks like an address of code was taken for one",
} as const;

export type Doubt = keyof typeof DOUBTS;

/** A trace that fills so many entries is not reliable (Linux kernel/livepatch/transition.c). */
export const MAX_ENTRIES = 100;

export interface Frame {
  /** `return`: an address that a call pushed, and where it returns to. `interrupted`: what an exception came between. */
  readonly kind: "return" | "interrupted";
  readonly address: Addr;
  /** Where the address lies on the stack. */
  readonly slot: Addr;
}

export interface Walk {
  /** Innermost first, without the code that a walk from live registers started in. */
  readonly frames: readonly Frame[];
  /** The first thing that was wrong, and the address of the code or of the stack where; null for a reliable walk. */
  readonly doubt: { readonly why: Doubt; readonly at: Addr } | null;
}

/** Registers that a few frames are found by, beside rsp and rbp. */
export type ExtraRegister = "dx" | "di" | "r10" | "r13";

/** Where a walk starts. */
export type Start =
  /** The registers of a CPU that was stopped between two instructions. rbp may hold anything. */
  | {
      readonly from: "live";
      readonly ip: Addr;
      readonly sp: Addr;
      readonly bp: number;
      readonly register: (name: ExtraRegister) => number;
    }
  /** A task that is not on a CPU: the return address of its switch, and the slot that holds it. */
  | { readonly from: "switched-out"; readonly ip: Addr; readonly slot: Addr; readonly bp: number }
  /** A task that was never run, at its first instruction. */
  | { readonly from: "unstarted"; readonly ip: Addr; readonly sp: Addr }
  /** A pt_regs that an exception's entry code saved. */
  | { readonly from: "registers"; readonly regs: Addr };

export interface StackInfo {
  readonly kind: "task" | "irq" | "exception";
  /** Lowest address, and the one past the highest. */
  readonly low: Addr;
  readonly high: Addr;
}

/** What a walker may ask of one task and the kernel it runs in. */
export interface UnwindContext {
  /** The 64-bit word at `at` if it is on a stack that `stackAt` knows: NaN for one that is no canonical address. */
  read(at: Addr): number | undefined;
  /** The stack that holds `at`, of those that the task may be on. */
  stackAt(at: Addr): StackInfo | undefined;
  isText(at: Addr): boolean;
  /** Whether `at` is in code that call sites call, which may replace the address that it returns to. */
  isTrampoline(at: Addr): boolean;
  /** Whether a function begins at `at`. */
  isFunctionStart(at: Addr): boolean;
  /**
   * What the return address in `slot` was before a return trampoline's took its place; `address` itself if it is no
   * return trampoline's, undefined if it is one and nothing is recorded for that slot.
   */
  recover(address: Addr, slot: Addr): Addr | undefined;
  readonly orc: OrcLookup;
}

export interface Unwinder {
  readonly name: string;
  walk(context: UnwindContext, start: Start): Walk;
}

/** Collects frames up to the first that may not be there. */
export class Trace {
  readonly frames: Frame[] = [];
  private doubt: Walk["doubt"] = null;

  /** The first doubt stays. */
  suspect(why: Doubt, at: Addr): void {
    this.doubt ??= { why, at };
  }

  /** False if the trace is full, and so in doubt. */
  push(kind: Frame["kind"], address: Addr, slot: Addr): boolean {
    this.frames.push({ kind, address, slot });
    if (this.frames.length < MAX_ENTRIES) return true;
    this.suspect("too-deep", slot);
    return false;
  }

  end(why?: Doubt, at?: Addr): Walk {
    if (why !== undefined && at !== undefined) this.suspect(why, at);
    return { frames: this.frames, doubt: this.doubt };
  }
}

/** What a walk may go on to from each kind of stack: what can have been interrupted there, on another stack. */
const INTERRUPTED: Readonly<Record<StackInfo["kind"], readonly StackInfo["kind"][]>> = {
  task: [],
  irq: ["task"],
  exception: ["exception", "irq", "task"],
};

/**
 * Which stacks a walk has been on: it may go up the one that it is on, and to one that it has not left yet
 * (Linux arch/x86/kernel/dumpstack_64.c).
 */
export class StackCursor {
  private stack: StackInfo | undefined;
  private readonly left: StackInfo[] = [];
  private top: number = Number.NEGATIVE_INFINITY;
  private readonly context: UnwindContext;

  constructor(context: UnwindContext) {
    this.context = context;
  }

  get current(): StackInfo | undefined {
    return this.stack;
  }

  /** Goes to `[at, at + size)`; why that may not be, if it may not. */
  moveTo(at: number, size: number): Doubt | undefined {
    if ((at & 7) !== 0) return "misaligned"; // all of an address's low bits, whatever is above them
    const { stack } = this;
    if (stack !== undefined && at >= stack.low && at + size <= stack.high) {
      if (at <= this.top) return "went-back";
    } else {
      const next = this.context.stackAt(at as Addr);
      if (next === undefined || at + size > next.high) return "outside-stack";
      if (this.left.some(({ low }) => low === next.low)) return "went-back";
      if (stack !== undefined && !INTERRUPTED[stack.kind].includes(next.kind)) return "outside-stack";
      if (stack !== undefined) this.left.push(stack);
      this.stack = next;
    }
    this.top = at;
    return undefined;
  }
}
