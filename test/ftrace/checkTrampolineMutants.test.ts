// One mistake at a time in good.S: each is found by the clause that says so, before any other.

import { readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { packagePath } from "../../src/base/file.ts";
import { CLAUSE_NAMES } from "../../src/explore/trampoline/contract.ts";
import { TrampolineChecker } from "../../src/trampolineCheck.ts";
import { MUTANTS, mutate } from "./mutants.ts";

const PATH = "asm/trampolines/good.S";
const GOOD = readFileSync(packagePath(PATH), "utf8");

let checker: TrampolineChecker;
beforeAll(async () => {
  checker = await TrampolineChecker.open();
});
afterAll(() => checker.dispose());

test("every clause has a mistake that it finds", () => {
  expect(CLAUSE_NAMES.filter((name) => !MUTANTS.some(({ clause }) => clause === name))).toEqual([]);
});

describe.each(MUTANTS)("$mistake", (mutant) => {
  test(`${mutant.clause} fails first, and shows where`, async () => {
    const report = await checker.source(PATH, "regs", { cases: 40, seed: 0 }, mutate(GOOD, mutant));
    const first = report.clauses.find(({ holds }) => holds === false);
    expect(first?.name).toBe(mutant.clause);
    const { problem } = first!.evidence;
    expect(problem!.why).not.toBe("");
    expect(problem!.place).toMatch(/\+0x[0-9a-f]+\/0x[0-9a-f]+/);
    expect(problem!.code.filter((line) => line.startsWith("> "))).toHaveLength(1);
    // Before it, nothing is left open; what is open behind it, says why.
    const index = report.clauses.indexOf(first!);
    if (mutant.clause !== "ends" && mutant.clause !== "stack")
      expect(report.clauses.slice(0, index).every(({ holds }) => holds === true)).toBe(true);
    for (const { holds, evidence } of report.clauses)
      if (holds === null) expect(evidence.executed).toMatch(/^nothing: /);
  });
});
