// Laboratories that are disposed of, and what one of 64 tasks and four vCPUs takes.

import { expect, test } from "vitest";
import { Lab } from "../../src/lab.ts";
import { pooledMemories } from "../../src/machine/host.ts";

test("a disposed one gives its memory to the next, and is not used any more", async () => {
  const lab = await Lab.open();
  expect(lab.call("leaf", [1]).result).toBe(2n);
  const pooled = pooledMemories();
  lab.dispose();
  lab.dispose();
  expect(pooledMemories()).toBe(pooled + 1);
  for (const use of [
    () => lab.call("leaf", [1]),
    () => lab.kernel.createTask(),
    () => lab.machine.snapshot(),
  ])
    expect(use).toThrow("the machine was disposed of; keep it for as long as anything of it is used");
  const next = await Lab.open();
  expect(pooledMemories()).toBe(pooled);
  expect(next.call("leaf", [1]).result).toBe(2n);
});

test("64 tasks' stacks and 4 vCPUs take a few megabytes, snapshots and all", async () => {
  const lab = await Lab.open({ vcpus: 4, recordCalls: true });
  while (lab.kernel.tasks.length < 64) lab.kernel.createTask();
  const callAll = () => {
    for (const [n, task] of lab.kernel.tasks.entries())
      lab.call("loop", [20], { task, vcpu: lab.machine.vcpus[n % 4]! });
  };
  callAll();
  const stacks = 64 * 16_384;
  expect(lab.machine.usage.bytes).toBeGreaterThan(stacks);
  const before = lab.machine.usage.bytes;
  expect(before).toBeLessThan(stacks + 1.5 * 2 ** 20);
  const snapshot = lab.machine.snapshot();
  for (let n = 0; n < 5; n++) {
    callAll();
    lab.machine.restore(snapshot);
  }
  // A copy of each page that is written: of every stack, of the tasks, of the vCPUs' states.
  expect(lab.machine.usage.bytes).toBeLessThan(before + 2 ** 20);
  expect(lab.machine.snapshotStats.bytes).toBeLessThan(2 ** 20);
});
