// Whether a walk is right: the recorded truth, frame by frame.
//
// A frame is right if it names the slot that a live return address or interrupted instruction pointer lies in, and
// where execution goes on from it. That is what the call pushed, with one exception: code that call sites call may
// send its return elsewhere, and then what it left in the slot is where it goes. Instead of the slot, a copy of it
// further in will do: trampolines leave such for frame pointers, and an NMI's entry code one of the hardware's frame. A
// breakpoint's entry code moves that frame, and then only the copy is right.

import type { Addr } from "../base/addr.ts";
import type { TrueFrame } from "../machine/callChain.ts";
import { STACK_SIZE } from "../machine/callRecord.ts";
import { INT3_GAP } from "../machine/ptRegs.ts";
import type { Walk } from "../unwind/walk.ts";

const NMI = 2;
const BREAKPOINT = 3;

/** What the truth has to be told of the system. */
export interface Sites {
  /** Whether the instruction at `at` is a call site that is directed to a trampoline, which may send it elsewhere. */
  isSite(at: Addr): boolean;
  read(at: Addr): Addr | undefined;
}

/** `sp` is the stack pointer of what was walked. */
export function isRight({ frames }: Walk, chain: readonly TrueFrame[], sp: Addr, sites: Sites): boolean {
  const truth = withoutUser(chain);
  if (frames.length !== truth.length) return false;
  for (let n = 0; n < frames.length; n++) {
    const walked = frames[n]!;
    const real = settled(truth[n]!, reached(truth[n - 1]) ?? sp);
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

/** The frame as it is when what it holds up has come to `inner`: a breakpoint's in the kernel is moved, once it is whole. */
export function settled(frame: TrueFrame, inner: Addr): TrueFrame {
  if (frame.kind !== "interrupt" || frame.vector !== BREAKPOINT || frame.user) return frame;
  const moved = (frame.slot - INT3_GAP) as Addr;
  return inner <= moved ? { ...frame, slot: moved } : frame;
}

/** How far down the stack was in use when `frame` came about. */
export function reached(frame: TrueFrame | undefined): Addr | undefined {
  return frame?.kind === "interrupt" ? frame.rsp : frame?.slot;
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
