// `npm run hostile`: hostile code for as long as one likes.
//
// Exit status: 0 when every case ended with a value and memory stayed what it was, 1 when not, 2 for options that make no
// sense. Progress goes to stderr, the summary to stdout. The clock says only when to stop: what a case does is its own.

import { parseArgs } from "node:util";
import { HostileError, type Progress, replay, runHostile } from "./run.ts";

const USAGE = "npm run hostile -- [--minutes N] [--seed S] [--from CASE] [--case N [--stepped]]";
/** Bytes of JavaScript heap, and of the process, that may come in after the first minute. */
const HEAP_GROWTH = 100e6;
const PROCESS_GROWTH = 700e6;
const REPORT_EVERY_MS = 10_000;

process.exitCode = main(process.argv.slice(2));

function main(args: readonly string[]): number {
  const options = readOptions(args);
  if (typeof options === "string") {
    process.stderr.write(`hostile: ${options}\n`);
    return 2;
  }
  try {
    if (options.number !== undefined) {
      const { lines, digest } = replay(options.seed, options.number, options.stepped ? "stepped" : "run");
      for (const line of lines) console.log(line);
      console.log(digest);
      return 0;
    }
    return runFor(options);
  } catch (error) {
    if (!(error instanceof HostileError)) throw error;
    console.log(error.message);
    console.log(`again: npm run hostile -- --seed ${options.seed} --case ${error.number}`);
    return 1;
  }
}

interface Options {
  readonly minutes: number;
  readonly seed: number;
  readonly from: number;
  readonly number: number | undefined;
  readonly stepped: boolean;
}

function readOptions(args: readonly string[]): Options | string {
  const option = { type: "string" } as const;
  try {
    const { values } = parseArgs({
      args: [...args],
      options: { minutes: option, seed: option, from: option, case: option, stepped: { type: "boolean" } },
    });
    const whole = (text: string, least = 0): number => {
      if (/^\d+$/.test(text) && Number(text) >= least) return Number(text);
      throw new Error(`'${text}' is no whole number from ${least} up`);
    };
    return {
      minutes: whole(values.minutes ?? "1", 1),
      seed: whole(values.seed ?? "0"),
      from: whole(values.from ?? "0"),
      number: values.case === undefined ? undefined : whole(values.case),
      stepped: values.stepped === true,
    };
  } catch (error) {
    return `${error instanceof Error ? error.message.split(". ")[0] : error}; ${USAGE}`;
  }
}

function runFor({ minutes, seed, from }: Options): number {
  const started = performance.now();
  const elapsed = () => performance.now() - started;
  let reported = 0;
  let settled: NodeJS.MemoryUsage | undefined;
  let failure: string | undefined;
  const onEpoch = (progress: Progress) => {
    if (elapsed() - reported < REPORT_EVERY_MS) return;
    reported = elapsed();
    globalThis.gc?.();
    const now = process.memoryUsage();
    process.stderr.write(`${progressLine(progress, elapsed(), now)}\n`);
    if (settled === undefined && elapsed() > 60_000) settled = now;
    if (settled === undefined || globalThis.gc === undefined) return;
    const heap = now.heapUsed - settled.heapUsed;
    const all = now.rss - settled.rss;
    if (heap > HEAP_GROWTH || all > PROCESS_GROWTH)
      failure = `memory grew by ${heap} bytes of heap, ${all} in all`;
  };
  const more = () => failure === undefined && elapsed() < minutes * 60_000;
  const total = runHostile({ seed, first: from, more, onEpoch });
  console.log(`seed ${seed}: ${progressLine(total, elapsed(), process.memoryUsage())}`);
  if (failure !== undefined) console.log(failure);
  return failure === undefined ? 0 : 1;
}

function progressLine(progress: Progress, ms: number, memory: NodeJS.MemoryUsage): string {
  const { cases, instructions, spent, usage } = progress;
  const millions = (count: number) => `${Math.round(count / 1e6)} million`;
  const mb = (bytes: number) => `${Math.round(bytes / 1e6)} MB`;
  const regions = `${usage.regions} regions, ${usage.retiredRegions} retired`;
  return [
    `${cases} cases in ${Math.round(ms / 1000)} s`,
    `${millions(spent)} of budget, ${millions(instructions)} instructions`,
    `heap ${mb(memory.heapUsed)}, process ${mb(memory.rss)}`,
    `most in a machine: ${mb(usage.bytes)}, ${regions}, ${usage.forms} forms, ${usage.instructions} decoded`,
  ].join("; ");
}
