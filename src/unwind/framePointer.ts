// The frame-pointer walker.
//
// For every frame: the caller's rbp is *(rbp), the return address *(rbp + 8). That holds between a function's
// `mov %rsp,%rbp` and its `pop %rbp`; elsewhere the caller is lost, and nothing here can tell. So a walk from live
// registers, or across interrupted kernel code, is never reliable. Entry code marks saved registers by an odd rbp,
// one above their address. The chain ends with rbp zero, in the function at the stack's very beginning.

import type { Addr } from "../base/addr.ts";
import { PT_REGS } from "../machine/ptRegs.ts";
import { HARDWARE_FRAME, interrupted, isBeginning } from "./savedRegisters.ts";
import {
  type Doubt,
  StackCursor,
  type Start,
  Trace,
  type UnwindContext,
  type Unwinder,
  type Walk,
} from "./walk.ts";

export const framePointerUnwinder: Unwinder = {
  name: "frame",
  walk: (context, start) => new FramePointerWalk(context).from(start),
};

class FramePointerWalk {
  private readonly context: UnwindContext;
  private readonly trace = new Trace();
  private readonly cursor: StackCursor;
  /** Where the last address was found. */
  private slot: Addr | undefined;

  constructor(context: UnwindContext) {
    this.context = context;
    this.cursor = new StackCursor(context);
  }

  from(start: Start): Walk {
    switch (start.from) {
      case "live":
        this.trace.suspect("live-registers", start.ip);
        return this.follow(start.bp);
      case "switched-out":
        return this.switchedOut(start);
      case "unstarted":
        return this.unstarted(start);
      case "registers":
        return this.follow(start.regs + 1);
    }
  }

  /** A record below where the task was switched out is none. */
  private switchedOut({ ip, slot, bp }: Extract<Start, { from: "switched-out" }>): Walk {
    const why = this.cursor.moveTo(slot, 8);
    if (why !== undefined) return this.stop(why, slot);
    return this.found("return", ip, slot) ?? this.follow(bp);
  }

  /** What comes first of a task: the registers that it goes to user mode with, or its own beginning. */
  private unstarted({ ip, sp }: Extract<Start, { from: "unstarted" }>): Walk {
    if (isBeginning(this.context, sp)) return this.trace.end();
    return isBeginning(this.context, (sp + PT_REGS.size) as Addr)
      ? this.follow(sp + 1)
      : this.trace.end("early-end", ip);
  }

  private follow(from: number): Walk {
    for (let bp = from; bp !== 0; ) {
      const marked = Math.abs(bp % 2) === 1;
      const next = marked ? this.cross((bp - 1) as Addr) : this.frame(bp as Addr);
      if (typeof next !== "number") return next;
      bp = next;
    }
    const { slot } = this;
    return slot === undefined || isBeginning(this.context, (slot + 8) as Addr)
      ? this.trace.end()
      : this.trace.end("early-end", slot);
  }

  /** Past the frame at `bp`: the caller's rbp. */
  private frame(bp: Addr): number | Walk {
    const why = this.cursor.moveTo(bp, 16);
    if (why !== undefined) return this.stop(why, bp);
    const slot = (bp + 8) as Addr;
    return this.found("return", this.context.read(slot)!, slot) ?? this.context.read(bp)!;
  }

  /** Past saved registers: the interrupted code's rbp. */
  private cross(regs: Addr): number | Walk {
    const why = this.cursor.moveTo(regs, PT_REGS.size);
    if (why !== undefined) return this.stop(why, regs);
    const frame = (regs + HARDWARE_FRAME) as Addr;
    const what = interrupted(this.context, frame, this.cursor.current!);
    if (what === "user") return this.trace.end();
    if (what !== "kernel") return this.stop(what, regs);
    this.trace.suspect("exception-frame", regs);
    return (
      this.found("interrupted", this.context.read(frame)!, frame) ??
      this.context.read((regs + PT_REGS.fields.bp.offset) as Addr)!
    );
  }

  /** Notes an address; the walk's end if it ends here. */
  private found(kind: "return" | "interrupted", word: number, slot: Addr): Walk | undefined {
    const address = kind === "return" ? this.recovered(word, slot) : (word as Addr);
    if (address === undefined) return this.trace.end("return-replaced", slot);
    if (!this.context.isText(address)) return this.trace.end("not-text", slot);
    this.slot = slot;
    return this.trace.push(kind, address, slot) ? undefined : this.trace.end();
  }

  private recovered(word: number, slot: Addr): Addr | undefined {
    return Number.isNaN(word) ? (word as Addr) : this.context.recover(word as Addr, slot);
  }

  private stop(why: Doubt, at: number): Walk {
    return this.trace.end(why, this.slot ?? (at as Addr));
  }
}
