// The guessing walker: every word on the stack that is an address of code, whoever left it there. Never reliable.

import type { Addr } from "../base/addr.ts";
import { PT_REGS } from "../machine/ptRegs.ts";
import { type StackInfo, type Start, Trace, type UnwindContext, type Unwinder, type Walk } from "./walk.ts";

export const guessUnwinder: Unwinder = { name: "guess", walk };

/** How far below its end a stack holds the pointer of the one that was interrupted. */
const LINKS = { task: undefined, irq: 8, exception: 16 } as const;

function walk(context: UnwindContext, start: Start): Walk {
  const trace = new Trace();
  let at: number = firstWord(start);
  trace.suspect("guess", at as Addr);
  const seen = new Set<Addr>();
  for (let stack = context.stackAt(at as Addr); stack !== undefined; stack = context.stackAt(at as Addr)) {
    if (seen.has(stack.low)) break;
    seen.add(stack.low);
    for (at = Math.ceil(at / 8) * 8; at < stack.high; at += 8) {
      const word = context.read(at as Addr) ?? Number.NaN;
      if (!context.isText(word as Addr)) continue;
      const address = context.recover(word as Addr, at as Addr) ?? (word as Addr);
      if (!trace.push("return", address, at as Addr)) return trace.end();
    }
    at = nextStack(context, stack) ?? Number.NaN;
  }
  return trace.end();
}

/** The pointer, into the stack that was left for `stack`, where `stack` ends; undefined for a task's. */
export function nextStack(context: UnwindContext, { kind, high }: StackInfo): Addr | undefined {
  const link = LINKS[kind];
  return link && (context.read((high - link) as Addr) as Addr | undefined);
}

function firstWord(start: Start): Addr {
  switch (start.from) {
    case "live":
    case "unstarted":
      return start.sp;
    case "switched-out":
      return start.slot;
    case "registers":
      return (start.regs + PT_REGS.fields.ip.offset) as Addr;
  }
}
