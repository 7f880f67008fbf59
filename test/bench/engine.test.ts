// The engine benchmark's shape, counts and agreement. Its timings are not tested: they are the machine's.

import { describe, expect, test } from "vitest";
import {
  benchEngine,
  type EngineReport,
  renderEngineReport,
  type Spread,
  WORKLOADS,
} from "../../bench/engine.ts";
import { loadUnicorn } from "../../bench/unicorn.ts";

const QUICK = { rounds: 2, milliseconds: 0 };
const unicorn = await loadUnicorn();

function expectSpread({ median, min, max }: Spread): void {
  expect(min).toBeGreaterThan(0);
  expect(median).toBeGreaterThanOrEqual(min);
  expect(max).toBeGreaterThanOrEqual(median);
}

function expectCounts(report: EngineReport): void {
  // As bench/workloads/loops.S counts them.
  expect(WORKLOADS.map((name) => report.workloads[name].instructionsPerIteration)).toEqual([4, 7, 37]);
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
    // Three workloads, run and stepped, warmed up and twice sampled.
    expect(seen).toHaveLength(18);
    expect(seen[0]).toBe("1/18 run tight on fentrylab");
    expect(seen.at(-1)).toBe("18/18 step redirected on fentrylab");
  });
});

test("the table is aligned and says what is missing", () => {
  const spread = (median: number): Spread => ({ median, min: median / 2, max: median * 2 });
  const run = (mips: number) => ({ mips: spread(mips), nsPerIteration: spread(1000 / mips) });
  const each = <T>(of: T) => ({ tight: of, calls: of, redirected: of });
  const report: EngineReport = {
    machine: { node: "v20", cpu: "a CPU", rounds: 3 },
    unicorn: { version: "2.0.1" },
    workloads: each({ instructionsPerIteration: 4, fentrylab: run(1000), unicorn: run(100) }),
    stepping: each({ fentrylab: { stepsPerSecond: spread(2e7) }, unicorn: { stepsPerSecond: spread(2e6) } }),
    ratios: { workloads: each(spread(10)), stepping: each(spread(10)) },
  };
  const lines = renderEngineReport(report).split("\n");
  expect(lines[0]).toBe("Node v20, a CPU, Unicorn 2.0.1");
  const table = lines.slice(3, -1);
  expect(table[0]).toMatch(/unit +fentrylab +min\.\.max +Unicorn +min\.\.max +ratio +min\.\.max$/);
  expect(table[1]).toMatch(
    /^run tight +MIPS +1000\.0 +500\.0\.\.2000\.0 +100\.0 .* 10\.00 +5\.00\.\.20\.00$/,
  );
  expect(table[7]).toMatch(/^step tight +M\/s +20\.0 +10\.0\.\.40\.0 +2\.0 /);
  expect(new Set(table.filter((line) => /\.\d\d$/.test(line)).map((line) => line.length)).size).toBe(1);

  const { ratios: _, ...alone } = report;
  const missing = renderEngineReport({ ...alone, unicorn: { missing: "no library" } });
  expect(missing).toContain("no Unicorn: no library");
});
