// Snapshots and vCPUs: registers, rights, what is due, the record of calls.

import { describe, expect, test } from "vitest";
import { FLAG } from "../../src/x86/register.ts";
import { makeGuest, restart, STACK_TOP, stateOf, TEXT } from "./guest.ts";
import { run, STORE } from "./snapshotGuest.ts";

describe("a vCPU", () => {
  test("gets back registers, flags, bases and the count of instructions; others too", () => {
    const guest = makeGuest(STORE, { vcpus: 3 });
    const { machine, vcpu } = guest;
    run(guest, 10);
    const other = machine.vcpus[2]!;
    other.gsBase = 0xffff_8880_0000_1000n;
    vcpu.rflags = 0x8d7n;
    const before = [stateOf(guest), vcpu.instructions, other.gsBase, machine.instructions];
    const snapshot = machine.snapshot();
    expect([stateOf(guest), vcpu.instructions, other.gsBase, machine.instructions]).toEqual(before);
    run(guest, 300);
    other.gsBase = 1n;
    machine.restore(snapshot);
    expect([stateOf(guest), vcpu.instructions, other.gsBase, machine.instructions]).toEqual(before);
    vcpu.rip = TEXT;
    vcpu.set("rcx", 1n);
    vcpu.run();
    expect(vcpu.instructions).toBe((before[1] as number) + 5);
  });

  test("goes on with the rights that it had", () => {
    const guest = makeGuest(STORE);
    const { machine, vcpu } = guest;
    run(guest, 2);
    const kernel = machine.snapshot();
    vcpu.system.setPrivilege(3);
    const user = machine.snapshot();
    for (const [snapshot, kind] of [
      [kernel, "hypercall"],
      [user, "fault"],
      [kernel, "hypercall"],
      [user, "fault"],
    ] as const) {
      machine.restore(snapshot);
      vcpu.rip = TEXT;
      vcpu.set("rcx", 2n);
      expect(vcpu.run().kind).toBe(kind);
    }
  });

  test("gets back what is due: interrupts, traps, breakpoints", () => {
    const guest = makeGuest(STORE);
    const { machine, vcpu } = guest;
    vcpu.rflags = FLAG.IF;
    run(guest, 300);
    const outcomes = {
      nothing: () => {},
      interrupt: () => vcpu.interrupt(33),
      "interrupt of the other kind": () => vcpu.nmi(),
      "fault, after a step": () => {
        vcpu.rflags = FLAG.TF;
      },
      "fault, at a breakpoint": () => {
        vcpu.system.setWord("dr", BigInt.asUintN(64, BigInt(TEXT)), 0);
        vcpu.system.setWord("dr", 0x401n, 7);
        vcpu.rflags = FLAG.IF; // has them looked at
      },
    };
    const start = machine.snapshot();
    const made = Object.values(outcomes).map((prepare) => {
      machine.restore(start);
      vcpu.rip = TEXT;
      vcpu.set("rcx", 2n);
      prepare();
      return machine.snapshot();
    });
    const kinds = ["hypercall", "interrupt", "interrupt", "fault", "fault"];
    for (const n of [0, 1, 0, 3, 2, 4, 0, 2, 3, 1, 4, 1, 0]) {
      machine.restore(made[n]!);
      expect(vcpu.run().kind, Object.keys(outcomes)[n]).toBe(kinds[n]);
    }
  });

  test("gets back its chain of calls", () => {
    // 0: call 8; vmcall; 8: test %rcx,%rcx; je 15; dec %rcx; call 8; 15: ret
    const code = "e8 03 00 00 00 0f 01 c1 48 85 c9 74 08 48 ff c9 e8 f3 ff ff ff c3";
    const guest = makeGuest(code, { recordCalls: true });
    const { machine, vcpu } = guest;
    const depth = () => machine.trueStack(vcpu.rsp).length;
    restart(guest, { rsp: STACK_TOP - 64, rcx: 30 });
    const made = [5, 40, 30].map((budget) => {
      vcpu.run({ budget });
      return { snapshot: machine.snapshot(), chain: machine.trueStack(vcpu.rsp) };
    });
    vcpu.run();
    expect(depth()).toBe(0);
    for (const n of [1, 0, 2, 0, 1]) {
      machine.restore(made[n]!.snapshot);
      expect(machine.trueStack(vcpu.rsp)).toEqual(made[n]!.chain);
      expect(depth()).toBeGreaterThan(0);
      vcpu.run();
      expect(depth()).toBe(0);
    }
  });
});
