// `fentrylab audit`: its document, its exit status, what it refuses.

import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import type { AuditReport } from "../../src/report/audit.ts";
import { command } from "./command.ts";

const folder = mkdtempSync(join(tmpdir(), "fentrylab-audit-"));
afterAll(() => rmSync(folder, { recursive: true }));

const TAIL = ["audit", "--image", "asm/shapes.S", "--call", "tail 20"];

test("reports boundaries, coverage, verdicts and violations", async () => {
  const { status, stdout, stderr } = await command(...TAIL, "--json");
  expect([status, stderr]).toEqual([0, ""]);
  const report = JSON.parse(stdout) as AuditReport;
  expect(report).toMatchObject({
    unwinder: "orc",
    violations: [],
    unfinished: [],
    verdicts: { reliableWrong: 0 },
  });
  expect(report.boundaries).toBeGreaterThan(100);
  expect(report.coverage.reached).toBeGreaterThan(5);
  expect(report.modes.preempted.reliableRight).toBeGreaterThan(100);
});

test("a walker that is wrong and claims to be right is status 1, with both stacks", async () => {
  const file = join(folder, "walk.mjs");
  writeFileSync(file, "export default () => ({ frames: [], doubt: null });");
  const { status, stdout } = await command(...TAIL, "--mode", "at-rest", "--unwinder", file);
  expect(status).toBe(1);
  expect(stdout).toMatch(/^RELIABLE AND WRONG, \d+ times at rest, at /m);
  expect(stdout).toMatch(/^ +walked +true$/m);
});

test("functions without arguments given are all called, those that go astray are named", async () => {
  const { status, stdout } = await command("audit", "--image", "asm/shapes.S", "--mode", "at-rest");
  expect(status).toBe(0);
  expect(stdout).toMatch(/workloads? did not come to/);
  expect(stdout).toContain("loop, sites off");
});

test.for([
  [["--unwinder", "dwarf"], /there is no unwinder 'dwarf'/],
  [["--unwinder", "/nowhere/walk.mjs"], /walk\.mjs is no unwinder: Cannot find module/],
  [["--mode", "asleep"], /there is no mode 'asleep'/],
  [["--call", "tail 20"], /give that with --image/],
  [["--image", "asm/shapes.S", "--call", "tial 20"], /no symbol 'tial'/],
  [["--image", "asm/shapes.S", "--call", "tail x"], /'x' is no 64-bit integer/],
] as const)("%j is refused in one line", async ([options, line]) => {
  const { status, stdout, stderr } = await command("audit", ...options);
  expect([status, stdout]).toEqual([2, ""]);
  expect(stderr).toMatch(line);
  expect(stderr.trim().split("\n")).toHaveLength(1);
});
