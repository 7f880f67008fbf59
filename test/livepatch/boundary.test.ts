// At the boundary to user mode and in the idle loop a task is switched without a look at its stack: nothing may be there that a patch
// could replace.

import { expect, test } from "vitest";
import { offset } from "../../src/base/addr.ts";
import { seeded } from "../../src/explore/chooser.ts";
import { THREAD_FLAG } from "../../src/kernel/layout.ts";
import { Patients } from "../../src/patients.ts";

test("nothing that leads to a switch without a look at the stack has a call site", async () => {
  const patients = await Patients.open({ vcpus: 2, rounds: 1, recordCalls: true, compile: false });
  const { lab } = patients;
  const { machine, kernel, code, livepatch, ftrace } = lab;
  const interruptions = [...new Array<"none">(1000).fill("none"), "timer" as const, "device" as const];
  const conductor = lab.conductor({ chooser: seeded(1), slices: [1], interruptions });
  patients.begin();
  const traced = new Set(ftrace.records.map(({ ip }) => code.symbolAt(ip)?.symbol));
  const { address } = lab.symbol("klp_update_patch_state");
  const ways = new Map<string, number>();
  let looks = 0;
  const watch = () => {
    if (looks++ % 500 === 0)
      for (const task of livepatch.tasks.all)
        livepatch.tasks.setFlag(task, THREAD_FLAG.TIF_PATCH_PENDING, true);
    for (const vcpu of machine.vcpus) {
      if (vcpu.rip !== address) continue;
      const on = machine.trueChain(vcpu.rsp).flatMap((frame) => {
        if (frame.kind === "interrupt") return frame.user ? [] : [code.symbolAt(frame.ip)?.symbol];
        return [code.symbolAt(offset(frame.returnAddress, -1))?.symbol];
      });
      const way = on.map((symbol) => symbol?.name ?? "?").join(" < ");
      ways.set(way, (ways.get(way) ?? 0) + 1);
      expect(
        on.filter((symbol) => symbol === undefined || traced.has(symbol)).map((symbol) => symbol?.name),
        way,
      ).toEqual([]);
    }
    return undefined;
  };
  kernel.setTargetState("KLP_UNDEFINED");
  conductor.run({ budget: 150_000, watch });
  // From system calls, from interrupts of user code, from a new task, and in the idle loop.
  expect([...ways.keys()].sort()).toEqual([
    "cpu_idle < start_cpu",
    "exit_to_user_mode < do_syscall_64 < entry_SYSCALL_64",
    "exit_to_user_mode < ret_from_fork",
    "exit_to_user_mode < return_to_user",
  ]);
  lab.dispose();
});
