// The frame-pointer walk.
//
// For every frame: the caller's rbp is *(rbp), the return address *(rbp + 8). It holds between a function's
// `mov %rsp,%rbp` and its `pop %rbp`; elsewhere the caller is lost, and nothing here can tell. So a
// walk from live registers is never more than a claim.

import type { Addr } from "../base/addr.ts";
import { isCanonical } from "../base/addr.ts";

/** What a walk reads and how it judges what it read. */
export interface UnwindContext {
  /** The word at `at`, or undefined if it is not on the stack that is walked. */
  readonly readStack: (at: Addr) => bigint | undefined;
  readonly isText: (at: Addr) => boolean;
}

export type Doubt =
  /** rbp does not point into the stack, or not eight-aligned. */
  | "frame-outside-stack"
  /** Frames must go up the stack. */
  | "frame-went-back"
  /** A return address that is no code. */
  | "not-text";

export interface Frame {
  readonly returnAddress: Addr;
  /** Where it was found on the stack. */
  readonly slot: Addr;
}

export interface Walk {
  /** Innermost first. */
  readonly frames: readonly Frame[];
  /** The first thing that was wrong, which ended the walk; null if it reached a frame whose rbp is zero. */
  readonly doubt: { readonly why: Doubt; readonly at: Addr } | null;
}

/** Walks from the frame that `rbp` points at. */
export function walkFramePointers(context: UnwindContext, rbp: bigint): Walk {
  const frames: Frame[] = [];
  const stop = (why: Doubt, at: Addr): Walk => ({ frames, doubt: { why, at } });
  let frame = BigInt.asIntN(64, rbp);
  let previous: Addr | undefined;
  while (frame !== 0n) {
    const at = Number(frame) as Addr;
    if (!isCanonical(frame) || at % 8 !== 0) return stop("frame-outside-stack", previous ?? (0 as Addr));
    if (previous !== undefined && at <= previous) return stop("frame-went-back", at);
    const slot = (at + 8) as Addr;
    const caller = context.readStack(at);
    const word = context.readStack(slot);
    if (caller === undefined || word === undefined) return stop("frame-outside-stack", at);
    const returnAddress = BigInt.asIntN(64, word);
    if (!isCanonical(returnAddress) || !context.isText(Number(returnAddress) as Addr))
      return stop("not-text", slot);
    frames.push({ returnAddress: Number(returnAddress) as Addr, slot });
    previous = at;
    frame = BigInt.asIntN(64, caller);
  }
  return { frames, doubt: null };
}
