// The true call chain: every call and return as it was executed, kept per stack.
//
// A return address is live from the call that pushed it until it is returned to, or rsp is set above its
// slot. What an unwinder finds is judged against this record, which never reads the stack's memory.

import type { Addr } from "../base/addr.ts";
import { EVENT } from "../x86/state.ts";
import type { Host, HostAddress } from "./host.ts";
import type { Journal } from "./journal.ts";

/** Kernel stacks are 16 KiB and aligned to that, so that an address in one says which it is. */
export const STACK_SIZE = 16384;

export interface TrueFrame {
  /** Address of the call instruction. */
  readonly call: Addr;
  /** Where its return address lies on the stack. */
  readonly slot: Addr;
  readonly returnAddress: Addr;
}

/** The frames of a stack, from the innermost: never changed, so that snapshots share them. */
export interface Chain {
  readonly frame: TrueFrame;
  readonly outer: Chain | undefined;
}

export class CallRecord {
  /** What the stacks that change had before; absent until the first snapshot. */
  journal: Journal<number, Chain> | undefined;
  private readonly stacks = new Map<number, Chain>();

  /** Takes the events in `[from, to)` of host memory. */
  drain(host: Host, from: HostAddress, to: HostAddress): void {
    for (let event = from; event < to; event += EVENT.size) {
      const slot = host.getNumber(event + EVENT.slot) as Addr;
      const kind = host.i32[(event + EVENT.kind) >> 2]!;
      // rsp itself may be one past a stack's highest address; below it nothing lives any more.
      const live = kind === EVENT.stackPointer ? slot : slot + 8;
      const stack = stackOf((live - 1) as Addr);
      const before = this.stacks.get(stack);
      let chain = before;
      while (chain !== undefined && chain.frame.slot < live) chain = chain.outer;
      if (kind === EVENT.call) {
        const call = host.getNumber(event + EVENT.ip) as Addr;
        const returnAddress = host.getNumber(event + EVENT.address) as Addr;
        chain = { frame: { call, slot, returnAddress }, outer: chain };
      }
      if (chain !== before) this.set(stack, chain);
    }
  }

  /** The live frames of the stack that `rsp` points into, innermost first. */
  chain(rsp: Addr): TrueFrame[] {
    const frames: TrueFrame[] = [];
    for (let chain = this.stacks.get(stackOf(rsp)); chain !== undefined; chain = chain.outer)
      if (chain.frame.slot >= rsp) frames.push(chain.frame);
    return frames;
  }

  /** Forgets the stack that holds `address`: it is going to be used anew. */
  forget(address: Addr): void {
    this.set(stackOf(address), undefined);
  }

  /** The chain of a stack, for the journal. */
  get(stack: number): Chain | undefined {
    return this.stacks.get(stack);
  }

  set(stack: number, chain: Chain | undefined): void {
    this.journal?.note(stack, this.stacks.get(stack));
    if (chain === undefined) this.stacks.delete(stack);
    else this.stacks.set(stack, chain);
  }
}

/** Stacks are known by their number in the address space. */
function stackOf(address: Addr): number {
  return Math.floor(address / STACK_SIZE);
}
