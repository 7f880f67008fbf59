// fentrylab bench [engine]

import { refuse } from "../base/refuse.ts";
import { type CommonOptions, printJson } from "./option.ts";

export async function printBench(
  what: string,
  { json, rounds }: CommonOptions & { readonly rounds?: number },
): Promise<void> {
  if (what !== "engine") refuse("unknown-bench", { what });
  const { benchEngine, renderEngineReport } = await import("../../bench/engine.ts");
  const report = await benchEngine({ ...(rounds === undefined ? {} : { rounds }), progress });
  if (process.stderr.isTTY) process.stderr.write("\r\x1b[K");
  if (json) printJson(report);
  else process.stdout.write(renderEngineReport(report));
}

function progress(done: number, total: number, what: string): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${done}/${total} ${what}`);
}
