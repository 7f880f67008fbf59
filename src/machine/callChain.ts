// What is live of a stack, as a chain of frames that goes on to wherever execution came from, to other stacks too.
//
// Chains are never changed, so that stacks and snapshots share them.

import type { Addr } from "../base/addr.ts";

/** A call that has not returned. */
export interface CallFrame {
  readonly kind: "call";
  /** The call instruction, or the breakpoint that stood in for it; undefined if there was neither (`CallRecord.plant`). */
  readonly call: Addr | undefined;
  /** Where its return address lies on the stack, or did: it may have been overwritten since. */
  readonly slot: Addr;
  readonly returnAddress: Addr;
  /** It has returned, but to a return trampoline, which is going to go on to `returnAddress`. */
  readonly owed?: true;
}

/** An exception or interrupt whose handler has not returned. */
export interface InterruptFrame {
  readonly kind: "interrupt";
  readonly vector: number;
  /** Where the interrupted code goes on. */
  readonly ip: Addr;
  /** Where that is saved in the hardware's frame. */
  readonly slot: Addr;
  /** rsp of what was interrupted, in this stack or another. */
  readonly rsp: Addr;
  /** Whether that was user mode, where the kernel's chain ends. */
  readonly user: boolean;
}

export type TrueFrame = CallFrame | InterruptFrame;

/** Links of a chain that are no frames. */
type Mark =
  /** The kernel was entered by `syscall`, which pushes nothing: lives until user mode's rsp is above `slot`. */
  | { readonly kind: "entry"; readonly slot: number }
  /** What runs came here from another stack, by setting rsp. Nothing that rsp does on this stack ends it. */
  | { readonly kind: "moved"; readonly slot: number }
  /** Execution began on this stack. */
  | { readonly kind: "begun"; readonly slot: number };

/** From the innermost frame outwards. */
export interface Chain {
  /** Which one the frame is on, as the record numbers them. */
  readonly stack: number;
  readonly frame: TrueFrame | Mark;
  readonly outer: Chain | undefined;
  /** Links that `crossed` made, here and further out. */
  readonly crossings: number;
}

/** Far more than kernels nest. */
const MAX_CROSSINGS = 256;

/**
 * `outer` with what is no call further in. A guest whose handlers fault for ever, or that sets rsp to ever another stack,
 * would make a chain without end: it begins anew instead, and the truth with it.
 */
export function crossed(stack: number, frame: InterruptFrame | Mark, outer: Chain | undefined): Chain {
  const crossings = (outer?.crossings ?? 0) + 1;
  return crossings > MAX_CROSSINGS
    ? { stack, frame, outer: undefined, crossings: 1 }
    : { stack, frame, outer, crossings };
}

/** `outer` with a call on `stack` further in. */
export function called(
  outer: Chain | undefined,
  stack: number,
  call: Addr | undefined,
  slot: Addr,
  returnAddress: Addr,
): Chain {
  const crossings = outer?.crossings ?? 0;
  return { stack, frame: { kind: "call", call, slot, returnAddress }, outer, crossings };
}

/** The end of a chain: a stack that execution began on. */
export function begun(stack: number): Chain {
  return crossed(stack, { kind: "begun", slot: Number.POSITIVE_INFINITY }, undefined);
}

/** An empty stack that rsp was set into, from a stack with chain `outer`. */
export function moved(stack: number, outer: Chain): Chain {
  return crossed(stack, { kind: "moved", slot: Number.POSITIVE_INFINITY }, outer);
}

/** What is left of `chain`, which is that of `stack`, when rsp is there. */
export function live(chain: Chain | undefined, stack: number, rsp: number): Chain | undefined {
  let rest = chain;
  while (rest !== undefined && rest.stack === stack && rest.frame.slot < rsp && !isOwed(rest, rsp))
    rest = rest.outer;
  return rest?.stack === stack ? rest : undefined;
}

/** Whether a return trampoline still owes the return of a frame that rsp has just left. */
function isOwed({ frame }: Chain, rsp: number): boolean {
  return frame.kind === "call" && frame.owed === true && frame.slot + 8 >= rsp;
}

/** What is left of `chain` behind a return by `slot` to `to`, a return trampoline if `owes`. */
export function returned(
  chain: Chain | undefined,
  stack: number,
  slot: number,
  to: Addr,
  owes: boolean,
): Chain | undefined {
  const before = live(chain, stack, slot);
  const after = live(before, stack, slot + 8);
  if (before?.frame.kind !== "call" || before.frame.slot !== slot) return after;
  if (owes) return { ...before, frame: { ...before.frame, owed: true } };
  return before === after && to === before.frame.returnAddress ? before.outer : after;
}

/** The innermost link of a chain that passes `test`. */
export function find(chain: Chain | undefined, test: (link: Chain) => boolean): Chain | undefined {
  for (let link = chain; link !== undefined; link = link.outer) if (test(link)) return link;
  return undefined;
}

/** Whether the kernel was entered from user mode there: what is further out is user mode's own. */
export function isEntry({ frame }: Chain): boolean {
  return frame.kind === "entry" || (frame.kind === "interrupt" && frame.user);
}

/** The frames on the stack that `chain` is of. */
export function framesOnStack(chain: Chain | undefined): TrueFrame[] {
  const frames: TrueFrame[] = [];
  for (let link = chain; link !== undefined; link = link.outer) {
    const { stack, frame } = link;
    if (stack !== chain!.stack || frame.kind === "moved" || frame.kind === "begun") break;
    if (isFrame(frame)) frames.push(frame);
  }
  return frames;
}

/** All frames, to where the kernel was entered from user mode, or where execution began. */
export function framesOf(chain: Chain | undefined): TrueFrame[] {
  const frames: TrueFrame[] = [];
  for (let link = chain; link !== undefined; link = link.outer) {
    if (isFrame(link.frame)) frames.push(link.frame);
    if (isEntry(link)) break;
  }
  return frames;
}

function isFrame(frame: TrueFrame | Mark): frame is TrueFrame {
  return frame.kind === "call" || frame.kind === "interrupt";
}
