// Every committed right-hand side against this host's processor.
//
// `UPDATE=1 npx vitest run test/x86/cases.native` writes the right-hand sides instead; read the diff.

import { readFileSync, writeFileSync } from "node:fs";
import { beforeAll, describe, expect, test } from "vitest";
import { nativeSkipReason, runNative } from "../native/oracle.ts";
import { CASES_FOLDER, caseFiles, loadCases } from "./cases.ts";
import { flagEffect } from "./cases-flags.ts";
import { missingFeature, othersWay } from "./cases-host.ts";
import type { Case, Outcome } from "./cases-model.ts";
import { parseCase, withRightSide } from "./cases-text.ts";
import { differences, settle } from "./cases-verdict.ts";

const skip = await nativeSkipReason();
if (skip !== undefined) console.log(`cases are not compared with the processor: ${skip}`);

/** Of a family's cases those that this processor can judge; says which it cannot, and why. */
function runnable(family: string): Case[] {
  const reasons = new Map<string, number>();
  const cases = loadCases(family).filter((theCase) => {
    const missing = missingFeature(theCase);
    const reason = missing === undefined ? othersWay(theCase) : `this processor has no ${missing}`;
    if (reason !== undefined) reasons.set(reason, (reasons.get(reason) ?? 0) + 1);
    return reason === undefined;
  });
  for (const [reason, count] of reasons)
    console.log(`${family}.case: ${count} cases are not compared: ${reason}`);
  return cases;
}

/** Rewrites one file's right-hand sides from what the processor did. */
async function update(file: string): Promise<void> {
  const path = new URL(file, CASES_FOLDER);
  const lines = readFileSync(path, "utf8").split("\n");
  const cases = runnable(file.replace(/\.case$/, ""));
  for (const [i, outcome] of (await runNative(cases)).entries()) {
    const theCase = cases[i]!;
    const effect = flagEffect(theCase, outcome.fault !== null);
    const after = settle(theCase, outcome, effect.undefined);
    lines[theCase.line - 1] = withRightSide(lines[theCase.line - 1]!, theCase, after, effect.written);
  }
  writeFileSync(path, lines.join("\n"));
}

describe.skipIf(skip !== undefined).each(caseFiles())("%s", (file) => {
  const family = file.replace(/\.case$/, "");
  let cases: Case[];
  let outcomes: Outcome[];

  beforeAll(async () => {
    if (process.env.UPDATE) await update(file);
    cases = runnable(family);
    outcomes = await runNative(cases);
  });

  test("the processor does what every line says", () => {
    const wrong = cases.flatMap((theCase, i) => {
      const found = differences(theCase, outcomes[i]!);
      return found.length === 0 ? [] : [`${theCase.name}: ${found.join("; ")}`];
    });
    expect(wrong).toEqual([]);
  });

  test("the processor changes only flags that the manual says it may", () => {
    const wrong = cases.flatMap((theCase, i) => {
      const { rflags, fault } = outcomes[i]!;
      const effect = flagEffect(theCase, fault !== null);
      const stray = (rflags ^ theCase.before.rflags) & ~(effect.written | effect.undefined);
      // Those of the instructions before the one that faulted are its own affair
      return stray === 0 || fault !== null ? [] : [`${theCase.name}: 0x${stray.toString(16)}`];
    });
    expect(wrong).toEqual([]);
  });
});

test.skipIf(skip !== undefined)(
  "a wrong right-hand side is reported with case, expected and got",
  async () => {
    const line = "01 d8 | add %ebx,%eax | rax=7 rbx=1 => rax=9 cf=0 pf=0 af=0 zf=0 sf=0 of=1 ; seeded";
    const theCase = parseCase(line, "seeded.case", 3)!;
    const [outcome] = await runNative([theCase]);
    expect(theCase.name).toBe("seeded.case:3 add %ebx,%eax");
    expect(differences(theCase, outcome!)).toEqual(["rax: expected 9, got 8", "of: expected 1, got 0"]);
  },
);
