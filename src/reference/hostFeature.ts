// Whether this host's processor has what an instruction needs: some are newer than most processors. Linux only.

import { readFileSync } from "node:fs";
import { CpuidFeature } from "iced-x86";

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

/** The kernel's name for the first of `features` that this processor lacks; undefined if it has them all. */
export function missingHostFeature(features: Iterable<CpuidFeature>): string | undefined {
  const found = hostFlags();
  for (const feature of features) {
    const flag = FLAGS.get(feature);
    if (flag !== undefined && !found.has(flag)) return flag;
  }
  return undefined;
}

let flags: ReadonlySet<string> | undefined;

function hostFlags(): ReadonlySet<string> {
  flags ??= new Set(/^flags\s*:(.*)$/m.exec(readFileSync("/proc/cpuinfo", "latin1"))?.[1]?.split(" "));
  return flags;
}
