// `fentrylab run` and `fentrylab replay`: what they print, and that bad input is one line.

import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { command } from "./command.ts";

let folder: string;
let file: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "fentrylab-"));
  file = join(folder, "run.json");
});
afterAll(() => rmSync(folder, { recursive: true }));

describe("run", () => {
  test("says what a run came to, and keeps a record of it", async () => {
    const { status, stdout, stderr } = await command(
      ...["run", "--vcpus", "3", "--seed", "4", "--budget", "60000", "--record", file],
    );
    expect([status, stderr]).toEqual([0, ""]);
    expect(stdout).toMatch(
      /^seed 4, 3 vCPUs, 1 of each user task, 3 rounds\n60000 instructions, .* choices; ended: its instructions are used up\nhash [0-9a-f]{16}\nnothing found wrong\n/,
    );
    expect(existsSync(file)).toBe(true);
    expect(existsSync(`${file}.unfinished`)).toBe(false);
  });

  test("with several seeds, log and tasks, as one document", async () => {
    const { status, stdout, stderr } = await command(
      ...["run", "--seeds", "2", "--budget", "40000", "--log", "--tasks", "--json"],
    );
    expect([status, stderr]).toEqual([0, ""]);
    const document = JSON.parse(stdout) as Record<string, unknown>;
    expect(document).toMatchObject({
      runs: 2,
      seed: 1,
      totalInstructions: 80_000,
      finding: null,
      end: "budget",
    });
    expect((document.log as string[])[0]).toBe("[    0.000000] smp: Brought up 1 node, 2 CPUs");
    expect((document.tasks as string[])[0]).toBe("sysrq: Show State");
  });

  test.each([
    [["--vcpus", "9"], "--vcpus takes 8 at most"],
    [["--copies", "40"], "--copies takes 39 at most"],
    [["--seeds", "0"], "--seeds wants a whole number from 1 up"],
    [["--budget", "1000", "--record", "/nowhere/run.json"], "/nowhere/run.json cannot be written (ENOENT)"],
  ])("%j is refused in one line", async (args, problem) => {
    const { status, stdout, stderr } = await command("run", ...args);
    expect([status, stdout]).toEqual([2, ""]);
    expect(stderr).toMatch(/^fentrylab: .*\n$/);
    expect(stderr).toContain(problem);
  });
});

describe("replay", () => {
  test("comes to the same end", async () => {
    const { status, stdout, stderr } = await command("replay", file);
    expect([status, stderr]).toEqual([0, ""]);
    expect(stdout).toContain("60000 instructions");
    expect(stdout).toContain("The same end, instruction for instruction.");
  });

  test("that comes to another end says so, and fails", async () => {
    const other = join(folder, "other.json");
    const record = JSON.parse(readFileSync(file, "utf8")) as { end: { hash: string } };
    record.end.hash = "0123456789abcdef";
    writeFileSync(other, JSON.stringify(record));
    const { status, stdout } = await command("replay", other);
    expect(status).toBe(1);
    expect(stdout).toContain("NOT the same: it was 60000 instructions, hash 0123456789abcdef");
  });

  test("of another kernel, of nothing, and of no record is refused in one line", async () => {
    const other = join(folder, "origin.json");
    const record = JSON.parse(readFileSync(file, "utf8")) as { origin: string };
    writeFileSync(other, JSON.stringify({ ...record, origin: "0".repeat(16) }));
    for (const [path, problem] of [
      [other, "is of another kernel"],
      [join(folder, "nothing.json"), "cannot be read (ENOENT)"],
      ["package.json", "is no record of a run"],
    ] as const) {
      const { status, stdout, stderr } = await command("replay", path);
      expect([status, stdout]).toEqual([2, ""]);
      expect(stderr).toMatch(/^fentrylab: .*\n$/);
      expect(stderr).toContain(problem);
    }
  });
});
