// Whether this host's processor has what a case executes: some instructions are newer than most processors.

import { readFileSync } from "node:fs";
import { CpuidFeature } from "iced-x86";
import { decodeAll } from "./cases-flags.ts";
import type { Program } from "./cases-model.ts";

/** What the kernel calls the features that not every processor of 64 bits has. */
const FLAGS = new Map<CpuidFeature, string>([
  [CpuidFeature.ADX, "adx"],
  [CpuidFeature.BMI1, "bmi1"],
  [CpuidFeature.BMI2, "bmi2"],
  [CpuidFeature.CLFLUSHOPT, "clflushopt"],
  [CpuidFeature.CLWB, "clwb"],
  [CpuidFeature.CMPCCXADD, "cmpccxadd"],
  [CpuidFeature.LZCNT, "abm"],
  [CpuidFeature.MOVBE, "movbe"],
  [CpuidFeature.MOVDIR64B, "movdir64b"],
  [CpuidFeature.MOVDIRI, "movdiri"],
  [CpuidFeature.POPCNT, "popcnt"],
  [CpuidFeature.RAO_INT, "raoint"],
  [CpuidFeature.SERIALIZE, "serialize"],
  [CpuidFeature.SSE4_2, "sse4_2"],
]);

/** The feature that `program` needs and this processor lacks; undefined if it can run. Linux only. */
export function missingFeature(program: Program): string | undefined {
  const found = hostFlags();
  for (const instruction of decodeAll(program.bytes)) {
    const needed = [...instruction.cpuidFeatures()];
    instruction.free();
    for (const feature of needed) {
      const flag = FLAGS.get(feature);
      if (flag !== undefined && !found.has(flag)) return flag;
    }
  }
  return undefined;
}

let flags: ReadonlySet<string> | undefined;

function hostFlags(): ReadonlySet<string> {
  flags ??= new Set(/^flags\s*:(.*)$/m.exec(readFileSync("/proc/cpuinfo", "latin1"))?.[1]?.split(" "));
  return flags;
}
