// Each seeded defect of the guest's kernel is found in runs with some seeds, and said in a sentence.

import { describe, expect, test } from "vitest";
import { seeded } from "../../src/explore/chooser.ts";
import { DEFAULT_SETTINGS } from "../../src/explore/settings.ts";
import { Runner } from "../../src/run.ts";
import { NO_GCC, partsWith } from "../kernel/compiled.ts";
import { KERNEL_DEFECTS } from "./kernelDefects.ts";

/** Seeds that are tried until one of them shows it. */
const SEEDS = 30;

describe("a defect", () => {
  test.for(KERNEL_DEFECTS)("$name", async (defect, ctx) => {
    if (NO_GCC !== undefined && defect.file.startsWith("kernel/")) ctx.skip(NO_GCC);
    const { found, vcpus = 2 } = defect;
    const parts = partsWith(defect);
    const settings = { ...DEFAULT_SETTINGS, vcpus, budget: 2_000_000 }; // three times as much as a run takes
    const runner = await Runner.open(settings, { parts });
    const findings: string[] = [];
    for (let seed = 0; seed < SEEDS && findings.length === 0; seed++) {
      const { finding, end } = runner.run(seeded(seed), { every: 2 });
      if (finding !== null || end === "budget") findings.push(finding ?? "no end");
    }
    runner.patients.lab.dispose();
    expect(findings).toEqual([expect.stringMatching(found)]);
  });
});

test("there are at least twenty, no two alike", () => {
  expect(KERNEL_DEFECTS.length).toBeGreaterThanOrEqual(20);
  expect(new Set(KERNEL_DEFECTS.map(({ name }) => name)).size).toBe(KERNEL_DEFECTS.length);
});
