// NMIs that meet breakpoints: the iretq of a #BP unblocks them (SDM vol. 3, 6.7.1), so another NMI comes while one is handled.

import { beforeAll, beforeEach, describe, expect, test } from "vitest";
import type { Addr } from "../../src/base/addr.ts";
import { isRight } from "../../src/explore/truth.ts";
import { Lab } from "../../src/lab.ts";
import type { Snapshot } from "../../src/machine/snapshot.ts";
import type { Vcpu } from "../../src/machine/vcpu.ts";
import { framePointerUnwinder } from "../../src/unwind/framePointer.ts";
import { orcUnwinder } from "../../src/unwind/orcWalker.ts";

let lab: Lab;
let vcpu: Vcpu;
let fresh: Snapshot;

beforeAll(async () => {
  lab = await Lab.open({ recordCalls: true });
  vcpu = lab.machine.vcpus[0]!;
  fresh = lab.machine.snapshot();
});
beforeEach(() => lab.machine.restore(fresh));

const at = (name: string) => lab.symbol(name).address;
const breakpoints = (on: boolean) => lab.machine.memory.writeWord(at("nmi_breakpoints"), on ? 1n : 0n);
const nmis = () => lab.kernel.cpus[0]!.struct.getNumber("nmis");
const isBlocked = () => vcpu.system.getWord("nmiBlocked") !== 0n;

/** In the middle of loop(5), which is 20. */
function beginLoop(): void {
  lab.begin(at("loop"), [5n]);
  for (let n = 0; n < 12; n++) vcpu.step();
}

/** Instructions of an NMI's handling, from its entry to where it came: none of them is the interrupted code's. */
function handled(): number {
  const { rip, rsp } = vcpu;
  lab.kernel.nmi(0);
  for (let steps = 1; ; steps++) {
    expect(vcpu.step()).toBeUndefined();
    if (vcpu.rip === rip && vcpu.rsp === rsp) return steps;
  }
}

describe("an NMI", () => {
  test("blocks others until its iretq", () => {
    breakpoints(false);
    beginLoop();
    lab.kernel.nmi(0);
    const { rip } = vcpu;
    vcpu.step();
    while (vcpu.rip !== rip) {
      expect(isBlocked()).toBe(true);
      vcpu.step();
    }
    expect(isBlocked()).toBe(false);
    expect(lab.finish(vcpu)).toBe(20n);
  });

  test("that meets a breakpoint is unblocked by the return from that", () => {
    breakpoints(true);
    beginLoop();
    lab.kernel.nmi(0);
    const seen: boolean[] = [];
    const exception = at("do_exception");
    const { rip } = vcpu;
    vcpu.step();
    let met = false;
    while (vcpu.rip !== rip) {
      met ||= vcpu.rip === exception;
      const before = isBlocked();
      vcpu.step();
      if (before && !isBlocked()) seen.push(met);
    }
    expect(seen).toEqual([true]); // once, behind the breakpoint: its own iretq changes nothing
    expect(lab.finish(vcpu)).toBe(20n);
  });
});

describe("a second NMI, requested at any instruction of the first,", () => {
  test.each([false, true])(
    "is handled, and both return to where they came (breakpoint: %s)",
    (breakpoint) => {
      breakpoints(breakpoint);
      beginLoop();
      const snapshot = lab.machine.snapshot();
      const length = handled();
      expect(length).toBeGreaterThan(breakpoint ? 90 : 50);
      for (let boundary = 0; boundary < length; boundary++) {
        lab.machine.restore(snapshot);
        const before = nmis();
        lab.kernel.nmi(0);
        for (let n = 0; n <= boundary; n++) vcpu.step();
        lab.kernel.nmi(0);
        expect(lab.finish(vcpu)).toBe(20n);
        expect(nmis() - before).toBe(2);
        expect(lab.kernel.cpus[0]!.struct.getNumber("preempt_count")).toBe(0);
      }
    },
  );

  test("leaves stacks that no walker is both sure of and wrong about, at each instruction of the second", () => {
    breakpoints(true);
    beginLoop();
    const sites = { isSite: () => false, read: (at: Addr) => lab.machine.memory.readNumber(at) as Addr };
    lab.kernel.nmi(0);
    // Behind the breakpoint, in nmi_handler.
    while (vcpu.rip !== at("do_exception")) vcpu.step();
    while (isBlocked()) vcpu.step();
    lab.kernel.nmi(0);
    vcpu.step();
    expect(vcpu.rip).toBe(at("asm_exc_nmi"));
    const walked = { orc: 0, frame: 0 };
    while (isBlocked()) {
      for (const unwinder of [orcUnwinder, framePointerUnwinder]) {
        const { doubt, ...walk } = lab.walk(vcpu, unwinder);
        if (doubt === null) {
          walked[unwinder.name as keyof typeof walked]++;
          expect(isRight({ ...walk, doubt }, lab.machine.trueChain(vcpu.rsp), vcpu.rsp, sites)).toBe(true);
        } else if (unwinder === orcUnwinder) {
          // Until it has copied its frame down, that lies above what it interrupted: the walk would go back.
          expect(doubt.why).toBe("went-back");
        }
      }
      vcpu.step();
    }
    // Its own breakpoint included. Frame pointers are never sure of code that was interrupted.
    expect(walked.orc).toBeGreaterThan(100);
    expect(walked.frame).toBe(0);
    expect(lab.finish(vcpu)).toBe(20n);
  });

  test("in user mode's first instructions in the kernel finds the right gs", async () => {
    breakpoints(false);
    const entry = at("entry_SYSCALL_64");
    // syscall leaves gs, rsp and rflags as they are: here as the user had them.
    lab.begin(at("loop"), [5n]);
    const kernelGs = vcpu.gsBase;
    vcpu.gsBase = 0x1234n;
    vcpu.system.setWord("kernelGsBase", kernelGs);
    vcpu.rip = entry;
    const rsp = vcpu.rsp;
    lab.kernel.nmi(0);
    const before = nmis();
    vcpu.step();
    while (vcpu.rip !== entry) vcpu.step();
    expect(nmis() - before).toBe(1);
    expect(vcpu.gsBase).toBe(0x1234n);
    expect(vcpu.rsp).toBe(rsp);
    vcpu.gsBase = kernelGs;
  });
});
