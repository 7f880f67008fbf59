// What unwinders say of a stack with a trampoline on it, against the recorded truth.

import type { Addr } from "../../base/addr.ts";
import type { Task } from "../../kernel/kernel.ts";
import { liveStart } from "../../kernel/unwindContext.ts";
import { framePointerUnwinder } from "../../unwind/framePointer.ts";
import { orcUnwinder } from "../../unwind/orcWalker.ts";
import {
  DOUBTS,
  type Doubt,
  type Start,
  type UnwindContext,
  type Unwinder,
  type Walk,
} from "../../unwind/walk.ts";
import { isRight, whereTo } from "../truth.ts";
import type { Bench } from "./bench.ts";
import type { Trouble } from "./passage.ts";

/** Of a walk from live registers by frame pointers, always: whether a frame is set up it cannot tell. */
const ALLOWED: readonly Doubt[] = ["live-registers"];

export class Walks {
  private readonly bench: Bench;
  /** How many there were. */
  count = 0;

  constructor(bench: Bench) {
    this.bench = bench;
  }

  /** By ORC from the CPU's registers: right, and claimed to be. */
  live(): Trouble | undefined {
    const { vcpu, subject } = this.bench;
    return this.check(orcUnwinder, subject.contextOfCpu(vcpu), liveStart(vcpu), vcpu.rsp, false);
  }

  /** The same, but that it may say that it is not reliable. */
  liveOrDoubtful(): Trouble | undefined {
    const { vcpu, subject } = this.bench;
    return this.check(orcUnwinder, subject.contextOfCpu(vcpu), liveStart(vcpu), vcpu.rsp, true);
  }

  /** By frame pointers, where a frame is set up. */
  byFramePointer(): Trouble | undefined {
    const { vcpu, subject } = this.bench;
    return this.check(framePointerUnwinder, subject.contextOfCpu(vcpu), liveStart(vcpu), vcpu.rsp, false);
  }

  /** By ORC, of a task that was switched out. */
  switchedOut(task: Task): Trouble | undefined {
    const { subject, kernel } = this.bench;
    const start = kernel.startOf(task);
    if (start?.from !== "switched-out") return undefined;
    return this.check(orcUnwinder, subject.contextOfTask(task), start, start.slot, false);
  }

  private check(
    unwinder: Unwinder,
    context: UnwindContext,
    start: Start,
    sp: Addr,
    mayDoubt: boolean,
  ): Trouble | undefined {
    const { bench } = this;
    this.count++;
    const walk = unwinder.walk(context, start);
    const truth = bench.machine.trueChain(sp);
    const { doubt } = walk;
    const doubts = doubt !== null && !ALLOWED.includes(doubt.why);
    if (doubts && mayDoubt) return undefined;
    const named = unwinder === orcUnwinder ? "ORC" : "frame pointers";
    if (doubts)
      return this.trouble(
        `the walk by ${named} is not reliable: ${DOUBTS[doubt.why]} (${bench.describe(doubt.at)})`,
        walk,
        truth,
      );
    if (isRight(walk, truth, sp, bench.subject)) return undefined;
    return this.trouble(`the walk by ${named} is wrong and does not know`, walk, truth);
  }

  private trouble(why: string, { frames }: Walk, truth: ReturnType<Bench["machine"]["trueChain"]>): Trouble {
    const { bench } = this;
    const real = truth.map((frame) => whereTo(frame, bench.subject));
    const name = (at: Addr | undefined) => (at === undefined ? "(unmapped)" : bench.describe(at));
    return {
      why,
      differences: [],
      walked: frames.map(({ address }) => name(address)),
      true: real.map(name),
    };
  }
}
