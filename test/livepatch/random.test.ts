// Patches that come and go at random while the kernel runs with its patients: nobody runs what he must not, every transition ends, and
// at the end text is as it was. What is done wrong on purpose is found, and found again from the record.

import { describe, expect, test } from "vitest";
import { recorded, seeded } from "../../src/explore/chooser.ts";
import { type RunFacts, Runner } from "../../src/run.ts";
import { DEFAULT_SETTINGS } from "../../src/settings.ts";
import { NO_GCC, partsWith } from "../kernel/compiled.ts";

const SETTINGS = { ...DEFAULT_SETTINGS, vcpus: 4, rounds: 1, patches: true, budget: 3_000_000 };

/** The first run in which something is found, of so many. */
function firstFinding(runner: Runner, seeds: number): RunFacts | undefined {
  for (let seed = 0; seed < seeds; seed++) {
    const facts = runner.run(seeded(seed), { every: 1 });
    if (facts.finding !== null) return facts;
  }
  return undefined;
}

test("random patches over the patients: nothing is found", async () => {
  const runner = await Runner.open(SETTINGS);
  const log: string[] = [];
  for (let seed = 100; seed < 106; seed++) {
    const { finding, end } = runner.run(seeded(seed));
    expect([seed, finding, end]).toEqual([seed, null, "idle"]);
    log.push(...runner.patients.lab.kernel.log.lines);
  }
  runner.patients.lab.dispose();
  // They were enabled, turned round, applied to modules, and ended.
  for (const what of [
    /enabling patch/,
    /reversing transition/,
    /patching complete/,
    /unpatching complete/,
    /applying patch .* to loading module 'visitor'/,
    /reverting patch .* on unloading module 'visitor'/,
  ])
    expect(
      log.some((line) => what.test(line)),
      String(what),
    ).toBe(true);
});

describe("what is found, is found again from what was chosen:", () => {
  const again = (runner: Runner, facts: RunFacts | undefined) => {
    expect(facts?.finding).toBeDefined();
    const { finding, hash, instructions } = facts!;
    expect(runner.run(recorded(facts!.choices), { every: 1 })).toMatchObject({ finding, hash, instructions });
    runner.patients.lab.dispose();
    return finding;
  };

  test("functions on their stacks before they are in transition", async () => {
    const runner = await Runner.open(SETTINGS, { livepatch: { weakened: ["transition-before-stack"] } });
    expect(again(runner, firstFinding(runner, 10))).toMatch(/is in the original|is in a replacement/);
  });

  test.skipIf(NO_GCC !== undefined)("a task that begins in no universe", async () => {
    const before = "WRITE_ONCE(task->patch_state, READ_ONCE(current->patch_state));";
    const parts = partsWith({ file: "kernel/fork.c", before, after: "" });
    const runner = await Runner.open(SETTINGS, { parts });
    expect(again(runner, firstFinding(runner, 10))).toBeDefined();
  });
});
