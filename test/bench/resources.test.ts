// The resource benchmark's measurements, each a few times, in this process: what they count, not what it costs.

import { expect, test } from "vitest";
import { type Growth, MEASUREMENTS, renderResourceReport } from "../../bench/resources.ts";

function expectGrowth({ count, microseconds, early, late }: Growth, expected: number): void {
  expect(count).toBe(expected);
  expect(microseconds).toBeGreaterThan(0);
  for (const memory of [early, late]) expect(memory.resident).toBeGreaterThan(memory.heap);
}

test("each measures, and looks at what it gets", async () => {
  const tasks = await MEASUREMENTS.tasks(64);
  // 64 stacks of 16 KiB and four vCPUs with their tables; the rest is structures and copies for the snapshot.
  expect(tasks.usage.bytes).toBeGreaterThan(64 * 16_384);
  expect(tasks.usage.bytes).toBeLessThan(4e6);
  const snapshots = await MEASUREMENTS.snapshots(300);
  expectGrowth(snapshots, 300);
  expect(snapshots.bytesPerSnapshot).toBeGreaterThan(10 * 64);
  const machines = MEASUREMENTS.machines(30);
  expectGrowth(machines, 30);
  const pokes = await MEASUREMENTS.pokes(300);
  expectGrowth(pokes, 300);
  // On and off, each in its version of the loop and of the function; forms are bounded by what was executed.
  expect(pokes.usage.regions + pokes.usage.retiredRegions).toBeLessThan(10);
  expect(pokes.usage.functions).toBe(pokes.usage.forms + pokes.usage.regions + pokes.usage.retiredRegions);

  const text = renderResourceReport({
    machine: { node: "v20", cpu: "a CPU" },
    tasks,
    snapshots,
    machines,
    pokes,
  });
  for (const line of [
    "64 tasks' stacks, 4 vCPUs: ",
    "300 snapshots kept: ",
    "30 machines made",
    "300 pokes of",
  ])
    expect(text).toContain(`\n${line}`);
});
