// Every case on this engine, in each of its tiers.

import { describe, expect, test } from "vitest";
import { Mnemonic } from "../../src/x86/decode.ts";
import { system } from "../../src/x86/lift/system.ts";
import { liftedMnemonics } from "../../src/x86/lift/table.ts";
import { caseFiles, loadCases } from "./cases.ts";
import { type Engine, regionEngine, steppedEngine } from "./cases-engine.ts";
import { decodeAll } from "./cases-flags.ts";
import { differences } from "./cases-verdict.ts";

const ENGINES: Record<string, () => Engine> = { stepped: steppedEngine, regions: regionEngine };

describe.each(Object.keys(ENGINES))("%s", (name) => {
  test.each(caseFiles())("%s", (file) => {
    const engine = ENGINES[name]!();
    const wrong = loadCases(file.replace(/\.case$/, "")).flatMap((theCase) => {
      const found = differences(theCase, engine(theCase));
      return found.length === 0 ? [] : [`${theCase.name}: ${found.join("; ")}`];
    });
    expect(wrong).toEqual([]);
  });
});

/** Not for a user's program to execute, or not twice alike: test/machine has tests of them. */
const WITHOUT_CASES = [
  ...[Mnemonic.Cli, Mnemonic.Sti, Mnemonic.Hlt, Mnemonic.Vmcall],
  ...Object.keys(system).map((name) => Mnemonic[name as keyof typeof Mnemonic]),
];

test("every instruction that is lifted has cases", () => {
  const covered = new Set(
    loadCases().flatMap(({ bytes }) => decodeAll(bytes).map(({ mnemonic }) => mnemonic)),
  );
  for (const mnemonic of WITHOUT_CASES) covered.add(mnemonic);
  const without = liftedMnemonics().filter((mnemonic) => !covered.has(mnemonic));
  expect(without.map((mnemonic) => Mnemonic[mnemonic])).toEqual([]);
});
