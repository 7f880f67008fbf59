// What AMD's processors do otherwise than Intel's manual: every entry of the table still shows, and on no other host.

import { describe, expect, test } from "vitest";
import { isAmdHost, MAKERS_DIFFERENCES, makersDifference } from "../../src/reference/makers.ts";
import { regionEngine, steppedEngine } from "../x86/cases-engine.ts";
import { parseCase } from "../x86/cases-text.ts";
import { differences } from "../x86/cases-verdict.ts";
import { nativeSkipReason, runNative } from "./oracle.ts";

const skip = await nativeSkipReason();
if (skip !== undefined) console.log(`the makers' differences are not looked for: ${skip}`);

describe.each(MAKERS_DIFFERENCES)("$name", (difference) => {
  const example = parseCase(difference.example, "makers.ts", 1)!;

  test("concerns its example", () => {
    expect(makersDifference(example.bytes)).toBe(difference);
  });

  test("here is as Intel's manual has it", () => {
    for (const engine of [steppedEngine(), regionEngine()])
      expect(differences(example, engine(example))).toEqual([]);
  });

  test.skipIf(skip !== undefined)("on this host is as on its maker's", async () => {
    const [outcome] = await runNative([example]);
    expect(differences(example, outcome!).length > 0).toBe(isAmdHost());
  });
});
