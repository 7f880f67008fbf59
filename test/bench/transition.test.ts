// That the benchmark of transitions measures what it says, in the form that it promises: figures are not looked at.

import { expect, test } from "vitest";
import { benchTransition, renderTransitionReport } from "../../bench/transition.ts";
import { command } from "../cli/command.ts";

test("each row has all tasks there are, sleepers and those of the kernel, and what they took", async () => {
  const seen: string[] = [];
  const progress = (done: number, total: number, what: string) => seen.push(`${done}/${total} ${what}`);
  const report = await benchTransition({ rounds: 1, counts: [3, 60], progress });
  expect(seen).toEqual([1, 2, 3, 4, 5, 6, 7, 8].map((n) => `${n}/8 ${n < 5 ? 3 : 60} tasks`));
  // An idle task, a stopper and a task of the laboratory's for each of two CPUs.
  expect(report.rows.map(({ tasks }) => tasks)).toEqual([9, 66]);
  // For each task: its state, its flag, its switch, and its state again.
  const [few, many] = report.rows.map(({ tasks, steps }) => tasks * steps) as [number, number];
  expect(many - few).toBe(4 * 57);
  for (const { tasks, seconds, perTask, spread } of report.rows) {
    expect(seconds).toBeGreaterThan(0);
    expect(spread.min).toBeLessThanOrEqual(seconds);
    expect(spread.max).toBeGreaterThanOrEqual(seconds);
    expect(perTask * tasks).toBeCloseTo(seconds * 1e6, 3);
  }
  const text = renderTransitionReport(report);
  for (const line of text.split("\n")) expect(line).toBe(line.trimEnd());
  for (const { tasks } of report.rows) expect(text).toMatch(RegExp(`^ +${tasks} +\\d+\\.\\d{4} `, "m"));
});

test("the command knows it", async () => {
  const { status, stderr } = await command("bench", "transitions");
  expect(status).toBe(2);
  expect(stderr).toContain("transition");
});
