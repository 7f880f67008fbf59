// The engine benchmark's shape, counts and agreement. Its timings are not tested: they are the machine's.

import { describe, expect, test } from "vitest";
import { benchEngine, type EngineReport, WORKLOADS } from "../../bench/engine.ts";
import { renderEngineReport } from "../../bench/engineTable.ts";
import { SNAPSHOT_ROWS, type SnapshotRow } from "../../bench/snapshot.ts";
import type { Spread } from "../../bench/spread.ts";
import { loadUnicorn } from "../../src/reference/unicornLibrary.ts";

const QUICK = { rounds: 2, milliseconds: 0 };
const unicorn = await loadUnicorn();
const ROWS = Object.keys(SNAPSHOT_ROWS) as SnapshotRow[];

function expectSpread({ median, min, max }: Spread): void {
  expect(min).toBeGreaterThan(0);
  expect(median).toBeGreaterThanOrEqual(min);
  expect(max).toBeGreaterThanOrEqual(median);
}

function expectCounts(report: EngineReport): void {
  // As bench/workloads/loops.S counts them.
  expect(WORKLOADS.map((name) => report.workloads[name].instructionsPerIteration)).toEqual([4, 7, 37]);
  expect(report.snapshots).toMatchObject({ vcpus: 4 });
  // Ten lines, some of the vCPU's, and what holds them together.
  expect(report.snapshots.bytesPerSnapshot).toBeGreaterThan(10 * 64);
  expect(report.snapshots.bytesPerSnapshot).toBeLessThan(5000);
}

describe("with Unicorn", () => {
  test("both engines agree and are reported", async (ctx) => {
    if ("missing" in unicorn) {
      console.log(`skipped: ${unicorn.missing}`);
      return ctx.skip(unicorn.missing);
    }
    const report = await benchEngine({ ...QUICK, unicorn });
    expectCounts(report);
    expect(report.unicorn).toEqual({ version: unicorn.version });
    for (const name of WORKLOADS) {
      for (const subject of ["fentrylab", "unicorn"] as const) {
        expectSpread(report.workloads[name][subject]!.mips);
        expectSpread(report.workloads[name][subject]!.nsPerIteration);
        expectSpread(report.stepping[name][subject]!.stepsPerSecond);
      }
      expectSpread(report.ratios!.workloads[name]);
      expectSpread(report.ratios!.stepping[name]);
    }
    const { costs } = report.snapshots;
    for (const row of ["clean", "dirty", "dirtied"] as const) {
      expectSpread(costs[row].unicorn!);
      expectSpread(costs[row].ratio!);
    }
    expect(ROWS.filter((row) => costs[row].unicorn === undefined)).toEqual(ROWS.slice(3));
    const { mips, nsPerIteration } = report.workloads.redirected.unicorn!;
    // 37 instructions in that many nanoseconds: the slowest of one is the fastest of the other.
    expect((mips.min * nsPerIteration.max) / 1000).toBeCloseTo(37, 6);
    expect(JSON.parse(JSON.stringify(report))).toEqual(report);
  });

  test("disagreement is refused", async (ctx) => {
    if ("missing" in unicorn) return ctx.skip(unicorn.missing);
    const lying = {
      version: unicorn.version,
      open() {
        const engine = unicorn.open();
        const regRead = engine.regRead.bind(engine);
        engine.regRead = (register) => regRead(register) + 1n;
        return engine;
      },
    };
    await expect(benchEngine({ ...QUICK, unicorn: lying })).rejects.toThrow(
      /bug: run tight: unicorn got rax=\d+, fentrylab got rax=\d+/,
    );
  });
});

describe("without Unicorn", () => {
  test("the rest is reported", async () => {
    const seen: string[] = [];
    const report = await benchEngine({
      ...QUICK,
      unicorn: { missing: "not here" },
      progress: (done, total, what) => seen.push(`${done}/${total} ${what}`),
    });
    expectCounts(report);
    expect(report.machine).toEqual({ node: process.version, cpu: expect.any(String), rounds: 2 });
    expect(report.unicorn).toEqual({ missing: "not here" });
    expect(report).not.toHaveProperty("ratios");
    for (const name of WORKLOADS) {
      expect(report.workloads[name]).not.toHaveProperty("unicorn");
      expect(report.stepping[name]).not.toHaveProperty("unicorn");
      expectSpread(report.workloads[name].fentrylab.mips);
      expectSpread(report.stepping[name].fentrylab.stepsPerSecond);
    }
    for (const row of ROWS) {
      expect(Object.keys(report.snapshots.costs[row])).toEqual(["fentrylab"]);
      expectSpread(report.snapshots.costs[row].fentrylab);
    }
    // Three workloads, run and stepped, and seven rows of snapshots, warmed up and twice sampled.
    expect(seen).toHaveLength(39);
    expect(seen[0]).toBe("1/39 run tight on fentrylab");
    expect(seen.at(-1)).toBe(`39/39 ${SNAPSHOT_ROWS.keptHashed} on fentrylab`);
  });
});

test("the table is aligned and says what is missing", () => {
  const spread = (median: number): Spread => ({ median, min: median / 2, max: median * 2 });
  const run = (mips: number) => ({ mips: spread(mips), nsPerIteration: spread(1000 / mips) });
  const each = <T>(of: T) => ({ tight: of, calls: of, redirected: of });
  const cost = { fentrylab: spread(2), unicorn: spread(80), ratio: spread(40) };
  const report: EngineReport = {
    machine: { node: "v20", cpu: "a CPU", rounds: 3 },
    unicorn: { version: "2.0.1" },
    workloads: each({ instructionsPerIteration: 4, fentrylab: run(1000), unicorn: run(100) }),
    stepping: each({ fentrylab: { stepsPerSecond: spread(2e7) }, unicorn: { stepsPerSecond: spread(2e6) } }),
    ratios: { workloads: each(spread(10)), stepping: each(spread(10)) },
    snapshots: {
      vcpus: 4,
      bytesPerSnapshot: 1099.6,
      costs: Object.fromEntries(ROWS.map((row) => [row, cost])) as Record<SnapshotRow, typeof cost>,
    },
  };
  const lines = renderEngineReport(report).split("\n");
  expect(lines[0]).toBe("Node v20, a CPU, Unicorn 2.0.1");
  const table = lines.slice(3, -5);
  expect(table[0]).toMatch(/unit +fentrylab +min\.\.max +Unicorn +min\.\.max +ratio +min\.\.max$/);
  expect(table[1]).toMatch(
    /^run tight +MIPS +1000\.0 +500\.0\.\.2000\.0 +100\.0 .* 10\.00 +5\.00\.\.20\.00$/,
  );
  expect(table[7]).toMatch(/^step tight +M\/s +20\.0 +10\.0\.\.40\.0 +2\.0 /);
  expect(table[12]).toMatch(
    /^snapshot\+restore, ten pages +µs +2\.0 +1\.0\.\.4\.0 +80\.0 .* 40\.00 +20\.00\.\.80\.00$/,
  );
  expect(new Set(table.filter((line) => /\.\d\d$/.test(line)).map((line) => line.length)).size).toBe(1);
  expect(lines.at(-2)).toBe("A kept snapshot that differs on ten pages occupies 1100 bytes.");

  const { ratios: _, ...alone } = report;
  const missing = renderEngineReport({ ...alone, unicorn: { missing: "no library" } });
  expect(missing).toContain("no Unicorn: no library");
});
