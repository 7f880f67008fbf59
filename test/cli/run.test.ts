// `fentrylab run` and `fentrylab replay`: what they print, and that bad input is one line.

import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { DEFAULT_SETTINGS } from "../../src/explore/settings.ts";
import { Runner } from "../../src/run.ts";
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

  test("with patches, says what is in the way of the one that was under way", async () => {
    const settings = { ...DEFAULT_SETTINGS, rounds: 1, budget: 60_000, patches: true };
    const runner = await Runner.open(settings);
    const isInTheWay = ({ reason }: { readonly reason: string }) => reason === "on-stack";
    let seed = 0;
    let facts = runner.run(runner.chance(seed));
    while (facts.transition?.blockers.some(isInTheWay) !== true) {
      expect(seed).toBeLessThan(200);
      facts = runner.run(runner.chance(++seed));
    }
    runner.patients.lab.dispose();
    const { patch, target, blockers } = facts.transition;
    const { task, why, advice, stack } = blockers.find(isInTheWay)!;
    const { status, stdout } = await command(
      ...["run", "--patches", "--rounds", "1", "--budget", "60000", "--seed", String(seed)],
    );
    expect(status).toBe(0);
    expect(stdout).toContain(`At its end ${patch} was in transition to ${target}, and `);
    expect(stdout).toContain([`  ${task} ${why}; ${advice}`, ...stack, ""].join("\n    ").trimEnd());
  });

  test("what is weakened is found, and told how to be had again", async () => {
    const weak = join(folder, "weak.json");
    const args = ["run", "--patches", "--vcpus", "4", "--rounds", "1", "--budget", "100000"];
    const weakened = [
      ...args,
      "--every",
      "1",
      "--weaken",
      "newest-entry",
      "interrupted-frame",
      "--seeds",
      "50",
    ];
    const { status, stdout } = await command(...weakened, "--log", "--log-level", "notice", "--record", weak);
    expect([status, stdout]).toEqual([1, expect.stringMatching(/FOUND: .* is in /)]);
    expect(stdout).toMatch(
      /--patches --every 1 --log-level notice --weaken newest-entry interrupted-frame --seed \d+ --record FILE/,
    );
    expect(stdout).toMatch(/livepatch: enabling patch/);
    expect(stdout).not.toMatch(/initializing patching transition/);
    const { status: same, stdout: again } = await command("replay", weak);
    expect([same, again]).toEqual([0, expect.stringContaining("The same end, instruction for instruction.")]);
  });

  test.each([
    [["--weaken", "pending-ip"], "--weaken is about what --patches does"],
    [["--log-level", "err"], "--log-level is about what --patches does"],
    [["--patches", "--weaken", "everything"], "Allowed choices are target-before-pending"],
    [["--log-level", "loud"], "Allowed choices are err"],
    [["--vcpus", "9"], "--vcpus takes 8 at most"],
    [["--copies", "40"], "--copies takes 39 at most"],
    [["--seeds", "0"], "--seeds wants a whole number from 1 up"],
    // Before hours of runs, and not behind them.
    [["--seeds", "1000000", "--record", "/nowhere/run.json"], "/nowhere/run.json cannot be written (ENOENT)"],
    [["--seeds", "1000000", "--record", "/"], "/ cannot be written (EISDIR)"],
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

  test("that asks for less than was recorded, or ends otherwise, is not the same either", async () => {
    const other = join(folder, "longer.json");
    const record = JSON.parse(readFileSync(file, "utf8")) as {
      choices: { answers: number[]; count: number };
      end: { kind: string };
    };
    const { choices, end } = record;
    const longer = { ...choices, count: choices.count + 1, answers: [...choices.answers, 0, 1, 0] };
    for (const changed of [{ choices: longer }, { end: { ...end, kind: "hang" } }]) {
      writeFileSync(other, JSON.stringify({ ...record, ...changed }));
      const { status, stdout } = await command("replay", other);
      expect([status, stdout]).toEqual([
        1,
        expect.stringContaining("NOT the same: it was 60000 instructions"),
      ]);
    }
  });

  test.each([
    [{ copies: 1000 }, "settings has no copies that is a whole number from 1 to 39"],
    [{ vcpus: 99 }, "settings has no vcpus that is a whole number from 1 to 8"],
    [{ patches: false, weakened: ["fork"] }, "it weakens live patching, and has none"],
  ])("with settings that no run has, %j, is refused in one line", async (settings, problem) => {
    const other = join(folder, "settings.json");
    const record = JSON.parse(readFileSync(file, "utf8")) as { settings: object };
    writeFileSync(other, JSON.stringify({ ...record, settings: { ...record.settings, ...settings } }));
    const { status, stdout, stderr } = await command("replay", other);
    expect([status, stdout]).toEqual([2, ""]);
    expect(stderr).toContain(`${other} is no record of a run: ${problem}`);
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
