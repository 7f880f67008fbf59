// Whether this host's processor can judge a case: some instructions are newer than most processors, and of some Intel's
// manual, which the cases follow, says what AMD's processors do otherwise.

import { missingHostFeature } from "../../src/reference/hostFeature.ts";
import { isAmdHost, makersDifference } from "../../src/reference/makers.ts";
import { decodeAll } from "./cases-flags.ts";
import { type Case, CODE, type Program } from "./cases-model.ts";

/** The feature that `program` needs and this processor lacks; undefined if it can run. Linux only. */
export function missingFeature(program: Program): string | undefined {
  const instructions = decodeAll(program.bytes);
  const needed = instructions.flatMap((instruction) => [...instruction.cpuidFeatures()]);
  for (const instruction of instructions) instruction.free();
  return missingHostFeature(needed);
}

/** What this processor does otherwise than the manual, if that concerns the case. Linux only. */
export function othersWay({ bytes, after }: Case): string | undefined {
  if (!isAmdHost()) return undefined;
  const instructions = decodeAll(bytes);
  const starts = instructions.map(({ ip }) => Number(ip) - CODE);
  for (const instruction of instructions) instruction.free();
  for (const start of starts) {
    const found = makersDifference(bytes.subarray(start));
    if (found === undefined) continue;
    if (found.differs === "end" || after?.fault !== null) return `AMD's processors differ (${found.name})`;
  }
  return undefined;
}
