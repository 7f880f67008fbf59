// The recorded truth against what is executed afterwards: a frame is live if it is returned to, and only then.

import { beforeAll, describe, expect, test } from "vitest";
import { type Addr, offset } from "../../src/base/addr.ts";
import type { Workload } from "../../src/explore/audit.ts";
import { whereTo } from "../../src/explore/truth.ts";
import { VECTORS } from "../../src/kernel/layout.ts";
import type { TrueFrame } from "../../src/machine/callChain.ts";
import { INT3_GAP, NMI_COPY } from "../../src/machine/ptRegs.ts";
import { SITE_STATES, Workloads } from "../../src/workloads.ts";
import { FLAG } from "../../src/x86/register.ts";
import { chooser } from "../kernel/interleave.ts";
import { Prophecy, stackOf } from "./prophecy.ts";

const BREAKPOINT = 3;

let workloads: Workloads;

beforeAll(async () => {
  workloads = await Workloads.open();
});

/** How many instructions there are at most between two interrupts. */
const EVERY = [Number.POSITIVE_INFINITY, 150, 400];
const SHORT = /^(leaf|tail|loop|nap|sys_read|fault)/;

interface Live {
  readonly slot: Addr;
  readonly to: Addr | undefined;
  /** Whether that is settled already. */
  readonly sure: boolean;
}

/** Where a call site goes on is up to a handler that may not have run yet, and so it is after an exception. */
function liveOf(frame: TrueFrame): Live {
  const { subject } = workloads;
  const sure =
    frame.kind === "interrupt"
      ? frame.vector === VECTORS.TIMER_VECTOR || frame.vector === VECTORS.NMI_VECTOR
      : frame.call === undefined || !subject.isSite(frame.call);
  // NMIs and breakpoints return by the copy that their entry code makes of the hardware's frame.
  const vector = frame.kind === "interrupt" ? frame.vector : undefined;
  const copied = vector === VECTORS.NMI_VECTOR ? NMI_COPY : vector === BREAKPOINT ? INT3_GAP : 0;
  const slot = offset(frame.slot, -copied);
  return { slot, to: whereTo(frame, subject), sure };
}

/** What was live before each step of a workload, which is interrupted within `every` so many, and what was told later. */
function follow(workload: Workload, every: number, choose: (limit: number) => number) {
  const { lab, subject } = workloads;
  const vcpu = workload.begin();
  const prophecy = new Prophecy(lab.machine, vcpu);
  const seen: { at: Addr; rsp: Addr; live: Live[] }[] = [];
  for (let left = choose(every); ; left--) {
    seen.push({ at: vcpu.rip, rsp: vcpu.rsp, live: lab.machine.trueChain(vcpu.rsp).map(liveOf) });
    if (left <= 0) {
      left = choose(every);
      if ((vcpu.rflags & FLAG.IF) !== 0n && choose(2) === 0) vcpu.interrupt(VECTORS.TIMER_VECTOR);
      else if (vcpu.system.getWord("nmiBlocked") === 0n) vcpu.nmi();
    }
    const exit = prophecy.step();
    if (exit === undefined || subject.skipException(vcpu, exit)) continue;
    if (lab.kernel.answer(vcpu, exit) === "answered") continue;
    if (lab.kernel.returned(exit)) break;
    expect(exit.kind).toBe("halt");
    subject.switchTo(vcpu, subject.switchedOut()[0]!);
  }
  return { seen, told: prophecy.told() };
}

describe.each(SITE_STATES)("with sites %s", (state) => {
  test.each(EVERY)(
    "interrupted within %d instructions: what the true chain has is returned to, and nothing else is",
    (every) => {
      const { lab } = workloads;
      const idle = stackOf(lab.kernel.cpus[0]!.idle.stack.low);
      const choose = chooser(1);
      let frames = 0;
      let several = 0;
      for (const workload of workloads.each()) {
        if (!workload.name.endsWith(`sites ${state}`) || !SHORT.test(workload.name)) continue;
        const { seen, told } = follow(workload, every, choose);
        for (const [n, { at, rsp, live }] of seen.entries()) {
          const here = `${workload.name}, ${n}: ${lab.code.describe(at)}`;
          const stacks = new Set([stackOf((rsp - 1) as Addr), ...live.map(({ slot }) => stackOf(slot))]);
          for (const stack of stacks) {
            const real = live.filter(({ slot }) => stackOf(slot) === stack);
            const later = told[n]!.get(stack) ?? [];
            // Nobody sees the idle task to its end: what it has not returned to yet is only recorded.
            const due = stack === idle ? real.slice(0, later.length) : real;
            const same = (one: Live, k: number) =>
              one.slot === later[k]?.slot && (!one.sure || one.to === later[k].to);
            // Only then is it worth what a comparison with a message costs.
            if (due.length !== later.length || !due.every(same)) expect(due, here).toEqual(later);
            frames += due.length;
          }
          if (stacks.size > 1) several++;
        }
      }
      expect(frames).toBeGreaterThan(2_000);
      expect(several).toBeGreaterThan(every === Number.POSITIVE_INFINITY ? 0 : 100);
    },
  );
});
