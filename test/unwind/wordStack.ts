// Stacks made of words, and what walkers ask of them: for walks over what no kernel would leave.

import { type Addr, addr } from "../../src/base/addr.ts";
import type { OrcRule } from "../../src/unwind/orc/entry.ts";
import type { StackInfo, UnwindContext } from "../../src/unwind/walk.ts";

/** Sixteen pages of code, the last of which is a trampoline; functions begin at multiples of 256. */
export const TEXT = addr(0xffffffff81000000n);
export const TEXT_SIZE = 0x10000;
export const TRAMPOLINE = addr(TEXT + TEXT_SIZE - 0x1000);
/** Where functions return to whose return address was replaced. */
export const RETURN_TRAMPOLINE = addr(TEXT + 0x8000);

export class WordStack {
  readonly low: Addr;
  readonly info: StackInfo;
  readonly words: bigint[];

  /** `words` by index; the others are no addresses of anything. */
  constructor(
    low: Addr,
    count: number,
    words: Readonly<Record<number, bigint>> = {},
    kind: StackInfo["kind"] = "task",
  ) {
    this.low = low;
    this.words = Array.from({ length: count }, (_, n) => words[n] ?? 0x5a5an);
    this.info = { kind, low, high: addr(low + 8 * count) };
  }

  /** The address of a word. */
  at(n: number): Addr {
    return addr(this.low + 8 * n);
  }

  /** The same as a word. */
  place(n: number): bigint {
    return BigInt.asUintN(64, BigInt(this.low + 8 * n));
  }
}

/** What a walk of these stacks may ask; reads are counted. */
export class WordContext implements UnwindContext {
  reads = 0;
  /** Rules by address of code, each up to the next. */
  readonly rules = new Map<Addr, OrcRule>();
  /** Return addresses that were replaced, by slot. */
  readonly replaced = new Map<Addr, Addr>();
  readonly orc = {
    find: (at: Addr) => {
      const known = [...this.rules.keys()].filter((from) => from <= at).sort((a, b) => a - b);
      const last = known.at(-1);
      return last === undefined ? undefined : this.rules.get(last);
    },
  };
  private readonly stacks: readonly WordStack[];

  constructor(...stacks: WordStack[]) {
    this.stacks = stacks;
  }

  read(at: Addr): number | undefined {
    this.reads++;
    const stack = this.stackOf(at);
    if (stack === undefined) return undefined;
    const word = BigInt.asIntN(64, stack.words[(at - stack.low) / 8]!);
    return word >= -(2n ** 47n) && word < 2n ** 47n ? Number(word) : Number.NaN;
  }

  stackAt(at: Addr): StackInfo | undefined {
    return this.stackOf(at)?.info;
  }

  isText(at: Addr): boolean {
    return at >= TEXT && at < TEXT + TEXT_SIZE;
  }

  isTrampoline(at: Addr): boolean {
    return at >= TRAMPOLINE && at < TEXT + TEXT_SIZE;
  }

  isFunctionStart(at: Addr): boolean {
    return at % 256 === 0;
  }

  recover(address: Addr, slot: Addr): Addr | undefined {
    return address === RETURN_TRAMPOLINE ? this.replaced.get(slot) : address;
  }

  private stackOf(at: Addr): WordStack | undefined {
    return this.stacks.find(({ info }) => at >= info.low && at < info.high);
  }
}

/** `TEXT + n` as a word. */
export function code(n: number): bigint {
  return BigInt.asUintN(64, BigInt(TEXT + n));
}
