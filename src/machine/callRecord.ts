// The true call chain: every call and return as it was executed, kept per stack.
//
// A return address is live from the call that pushed it until it is returned to, or rsp is set above its
// slot. What an unwinder finds is judged against this record, which never reads the stack's memory.

import type { Addr } from "../base/addr.ts";
import { EVENT } from "../x86/state.ts";
import type { Host, HostAddress } from "./host.ts";

/** Kernel stacks are 16 KiB and aligned to that, so that an address in one says which it is. */
export const STACK_SIZE = 16384;

export interface TrueFrame {
  /** Address of the call instruction. */
  readonly call: Addr;
  /** Where its return address lies on the stack. */
  readonly slot: Addr;
  readonly returnAddress: Addr;
}

export class CallRecord {
  private readonly stacks = new Map<number, TrueFrame[]>();

  /** Takes the events in `[from, to)` of host memory. */
  drain(host: Host, from: HostAddress, to: HostAddress): void {
    for (let event = from; event < to; event += EVENT.size) {
      const slot = host.getNumber(event + EVENT.slot) as Addr;
      const kind = host.i32[(event + EVENT.kind) >> 2]!;
      // rsp itself may be one past a stack's highest address; below it nothing lives any more.
      const live = kind === EVENT.stackPointer ? slot : slot + 8;
      const frames = this.stackOf((live - 1) as Addr);
      while (frames.length > 0 && frames.at(-1)!.slot < live) frames.pop();
      if (kind === EVENT.call) {
        frames.push({
          call: host.getNumber(event + EVENT.ip) as Addr,
          slot,
          returnAddress: host.getNumber(event + EVENT.address) as Addr,
        });
      }
    }
  }

  /** The live frames of the stack that `rsp` points into, innermost first. */
  chain(rsp: Addr): TrueFrame[] {
    return this.stackOf(rsp)
      .filter((frame) => frame.slot >= rsp)
      .reverse();
  }

  /** Forgets the stack that holds `address`: it is going to be used anew. */
  forget(address: Addr): void {
    this.stacks.delete(Math.floor(address / STACK_SIZE));
  }

  private stackOf(address: Addr): TrueFrame[] {
    const key = Math.floor(address / STACK_SIZE);
    let frames = this.stacks.get(key);
    if (frames === undefined) {
      frames = [];
      this.stacks.set(key, frames);
    }
    return frames;
  }
}
