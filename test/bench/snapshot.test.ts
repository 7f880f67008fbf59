// The snapshot benchmark's shape. Its timings are not tested: they are the machine's.

import { expect, test } from "vitest";
import { benchSnapshot, renderSnapshotReport, SNAPSHOT_ROWS } from "../../bench/snapshot.ts";
import { loadUnicorn } from "../../bench/unicorn.ts";

const QUICK = { rounds: 3, repetitions: 20 };
const unicorn = await loadUnicorn();

test("every row is reported, without Unicorn too", async () => {
  const seen: string[] = [];
  const report = await benchSnapshot({
    ...QUICK,
    unicorn: { missing: "not here" },
    progress: (done, total, what) => seen.push(`${done}/${total} ${what}`),
  });
  for (const row of SNAPSHOT_ROWS) {
    const { median, min, max } = report.fentrylab[row];
    expect(min).toBeGreaterThan(0);
    expect(median).toBeGreaterThanOrEqual(min);
    expect(max).toBeGreaterThanOrEqual(median);
  }
  expect(report.bytesPerSnapshot).toBeLessThan(5000);
  expect(report).not.toHaveProperty("peer");
  expect([seen[0], seen.at(-1)]).toEqual(["1/20 dirty", "20/20 archiveHashed"]);
  expect(JSON.parse(JSON.stringify(report))).toEqual(report);
  expect(renderSnapshotReport(report)).toContain("no Unicorn: not here");
});

test("with Unicorn beside it", async (ctx) => {
  if ("missing" in unicorn) {
    console.log(`skipped: ${unicorn.missing}`);
    return ctx.skip(unicorn.missing);
  }
  const report = await benchSnapshot({ ...QUICK, unicorn });
  expect(report.peer!.undo.min).toBeGreaterThan(report.peer!.dirty.min);
  expect(renderSnapshotReport(report)).toContain("Unicorn: copy out");
});
