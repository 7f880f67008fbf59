// fentrylab run [--vcpus N] [--copies N] [--rounds N] [--budget N] [--seed N] [--seeds N] [--every N] [--patches]
//   [--weaken WHAT] [--record FILE] [--log] [--log-level LEVEL] [--tasks]
// fentrylab replay FILE [--log] [--tasks]

import { refuseUnwritable, writeOutput } from "../base/file.ts";
import { refuse } from "../base/refuse.ts";
import { countOf, recorded } from "../explore/chooser.ts";
import { DEFAULT_SETTINGS, type RunSettings } from "../explore/settings.ts";
import type { LogLevel, Weakening } from "../livepatch/options.ts";
import { readRecord, writeRecord } from "../record.ts";
import { type ReplayReport, type RunReport, renderReplay, renderRun } from "../report/run.ts";
import { type RunFacts, Runner } from "../run.ts";
import { type CommonOptions, printJson } from "./option.ts";

interface ShownOptions extends CommonOptions {
  readonly log?: boolean;
  readonly tasks?: boolean;
}

interface RunCommandOptions extends ShownOptions, Omit<RunSettings, "patches" | "weakened"> {
  readonly patches?: boolean;
  readonly weaken: readonly Weakening[];
  readonly logLevel: LogLevel;
  readonly seeds: number;
  readonly record?: string;
}

/** Runs with one seed after another, to the first in which something is found. False if something is. */
export async function printRun(options: RunCommandOptions): Promise<boolean> {
  const { seed: first, seeds, every, vcpus, copies, rounds, budget, record, logLevel } = options;
  const { patches = false, weaken: weakened } = options;
  if (weakened.length > 0 && !patches) refuse("without-patches", { option: "--weaken" });
  if (logLevel !== DEFAULT_SETTINGS.logLevel && !patches)
    refuse("without-patches", { option: "--log-level" });
  if (record !== undefined) refuseUnwritable(record); // now, and not when all is over
  const settings: RunSettings = { vcpus, copies, rounds, budget, patches, weakened, every, logLevel };
  const runner = await Runner.open(settings);
  let [seed, total] = [first, 0];
  for (;;) {
    const which = seeds === 1 ? `seed ${seed}` : `seed ${seed} (${seed - first + 1} of ${seeds})`;
    const facts = runner.run(runner.chance(seed), { onProgress: (done) => showProgress(which, done) });
    total += facts.instructions;
    const last = facts.finding !== null || seed + 1 === first + seeds;
    if (!last) {
      seed++;
      continue;
    }
    clearProgress();
    const { end: kind, finding, instructions, hash, choices } = facts;
    const end = { kind, finding, instructions, hash };
    const report: RunReport = {
      settings,
      seed,
      runs: seed - first + 1,
      totalInstructions: total,
      ...shownFacts(facts),
      progress: runner.patients.progress,
      ...shown(runner, options),
    };
    if (options.json) printJson(report);
    else process.stdout.write(renderRun(report));
    if (record !== undefined)
      writeOutput(record, writeRecord({ settings, seed, origin: runner.origin, choices, end }));
    return facts.finding === null;
  }
}

/** Repeats a recorded run. False if it does not come to the same end. */
export async function printReplay(path: string, options: ShownOptions): Promise<boolean> {
  const record = readRecord(path);
  const runner = await Runner.open(record.settings);
  if (runner.origin !== record.origin)
    refuse("record-origin", { file: path, recorded: record.origin, now: runner.origin });
  const facts = runner.run(recorded(record.choices), {
    onProgress: (done) => showProgress(path, done),
  });
  clearProgress();
  const { end } = record;
  const same =
    facts.hash === end.hash &&
    facts.instructions === end.instructions &&
    facts.finding === end.finding &&
    facts.end === end.kind &&
    countOf(facts.choices) === countOf(record.choices);
  const report: ReplayReport = {
    settings: record.settings,
    seed: record.seed,
    ...shownFacts(facts),
    recorded: end,
    same,
    progress: runner.patients.progress,
    ...shown(runner, options),
  };
  if (options.json) printJson(report);
  else process.stdout.write(renderReplay(path, report));
  return same;
}

function shownFacts({
  choices,
  ...facts
}: RunFacts): Omit<RunFacts, "choices"> & { readonly choices: number } {
  return { ...facts, choices: countOf(choices) };
}

function shown(
  { patients: { lab } }: Runner,
  { log, tasks }: ShownOptions,
): Pick<RunReport, "log" | "tasks"> {
  return {
    ...(log === true ? { log: lab.kernel.log.lines } : {}),
    ...(tasks === true ? { tasks: lab.dumper.tasks() } : {}),
  };
}

function showProgress(which: string, instructions: number): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${which}: ${instructions} instructions`);
}

function clearProgress(): void {
  if (process.stderr.isTTY) process.stderr.write("\r\x1b[K");
}
