// Whether a walk is right: the recorded truth, frame by frame.
//
// A frame is right if it names the slot that a live return address or interrupted instruction pointer lies in, and
// where execution goes on from it. That is what the call pushed, with one exception: code that call sites call may
// send its return elsewhere, and then what it left in the slot is where it goes. Instead of the slot, a copy of it
// further in will do: trampolines leave such for frame pointers, and an NMI's entry code one of the hardware's frame.

import type { Addr } from "../base/addr.ts";
import type { TrueFrame } from "../machine/callChain.ts";
import { STACK_SIZE } from "../machine/callRecord.ts";
import type { Walk } from "../unwind/walk.ts";

const NMI = 2;

/** What the truth has to be told of the system. */
export interface Sites {
  /** Whether the instruction at `at` is a call site that is directed to a trampoline, which may send it elsewhere. */
  isSite(at: Addr): boolean;
  read(at: Addr): Addr | undefined;
}

export function isRight({ frames }: Walk, chain: readonly TrueFrame[], sites: Sites): boolean {
  const truth = withoutUser(chain);
  if (frames.length !== truth.length) return false;
  for (let n = 0; n < frames.length; n++) {
    const [walked, real] = [frames[n]!, truth[n]!];
    if (walked.slot !== real.slot && !mayBeCopy(walked.slot, real)) return false;
    if (walked.address !== whereTo(real, sites)) return false;
  }
  return true;
}

/** Up to user mode, which has the lower half of all addresses: what was interrupted there, and calls on its stack, no walk names. */
function withoutUser(chain: readonly TrueFrame[]): readonly TrueFrame[] {
  const user = chain.findIndex((frame) => frame.slot >= 0 || (frame.kind === "interrupt" && frame.ip >= 0));
  return user < 0 ? chain : chain.slice(0, user);
}

function mayBeCopy(slot: Addr, frame: TrueFrame): boolean {
  const { slot: real } = frame;
  const copied = frame.kind === "call" || frame.vector === NMI;
  return copied && slot < real && Math.floor(slot / STACK_SIZE) === Math.floor(real / STACK_SIZE);
}

/** Where execution goes on from a frame. */
export function whereTo(frame: TrueFrame, sites: Sites): Addr | undefined {
  // The handler may go on elsewhere: iretq takes it from there. Not an NMI's, of whose frame only the copy lasts.
  if (frame.kind === "interrupt") return frame.vector === NMI ? frame.ip : sites.read(frame.slot);
  return frame.call !== undefined && sites.isSite(frame.call) ? sites.read(frame.slot) : frame.returnAddress;
}
