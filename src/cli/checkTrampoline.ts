// fentrylab check-trampoline FILE.S [--regs | --ipmodify] [--cases N] [--seed N] [--json]

import { refuse } from "../base/refuse.ts";
import { renderTrampoline } from "../report/trampoline.ts";
import { TrampolineChecker } from "../trampolineCheck.ts";
import { type CommonOptions, printJson } from "./option.ts";

interface CheckTrampolineOptions extends CommonOptions {
  readonly regs?: boolean;
  readonly ipmodify?: boolean;
  readonly cases: number;
}

/** False if a clause of the contract does not hold. */
export async function printTrampolineCheck(path: string, options: CheckTrampolineOptions): Promise<boolean> {
  const { json, regs, ipmodify, cases, seed } = options;
  if (!/\.[sS]$/.test(path)) refuse("trampoline-source", { file: path });
  const kind = regs ? "regs" : ipmodify ? "ipmodify" : "plain";
  const checker = await TrampolineChecker.open();
  const report = await checker.source(path, kind, { cases, seed, onProgress: progress });
  checker.dispose();
  if (process.stderr.isTTY) process.stderr.write("\r\x1b[K");
  if (json) printJson(report);
  else process.stdout.write(renderTrampoline(report));
  return report.holds;
}

function progress(what: string, done: number): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${what}: ${done}`);
}
