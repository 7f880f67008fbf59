// Whether a walk is right: the recorded truth, frame by frame.
//
// A frame is right if it names the slot that a live return address or interrupted instruction pointer lies in, and
// where execution goes on from it. That is what the call pushed, with one exception: code that call sites call may
// send its return elsewhere, and then what it left in the slot is where it goes. Instead of the slot, a copy of it
// further in will do: trampolines leave such for frame pointers.

import type { Addr } from "../base/addr.ts";
import type { TrueFrame } from "../machine/callChain.ts";
import { STACK_SIZE } from "../machine/callRecord.ts";
import type { Walk } from "../unwind/walk.ts";

/** What the truth has to be told of the system. */
export interface Sites {
  /** Whether the instruction at `at` is a call site that is directed to a trampoline, which may send it elsewhere. */
  isSite(at: Addr): boolean;
  read(at: Addr): Addr | undefined;
}

export function isRight({ frames }: Walk, truth: readonly TrueFrame[], sites: Sites): boolean {
  if (frames.length !== truth.length) return false;
  for (let n = 0; n < frames.length; n++) {
    const [walked, real] = [frames[n]!, truth[n]!];
    if (walked.slot !== real.slot && !mayBeCopy(walked.slot, real)) return false;
    if (walked.address !== whereTo(real, sites)) return false;
  }
  return true;
}

function mayBeCopy(slot: Addr, { kind, slot: real }: TrueFrame): boolean {
  return kind === "call" && slot < real && Math.floor(slot / STACK_SIZE) === Math.floor(real / STACK_SIZE);
}

/** Where execution goes on from a frame. */
export function whereTo(frame: TrueFrame, sites: Sites): Addr | undefined {
  // The handler may go on elsewhere: iretq takes it from there.
  if (frame.kind === "interrupt") return sites.read(frame.slot);
  return frame.call !== undefined && sites.isSite(frame.call) ? sites.read(frame.slot) : frame.returnAddress;
}
