// `npm run fuzz`: random instructions on this engine, held against the host's processor.
//
// Exit status: 0 when nothing differs, 1 when something does, 2 for options that make no sense and where the host cannot
// be the oracle. Progress goes to stderr, the summary to stdout.

import { parseArgs } from "node:util";
import { Code, Mnemonic } from "iced-x86";
import { liftedMnemonics } from "../../src/x86/lift/table.ts";
import { nativeSkipReason } from "../native/oracle.ts";
import type { EngineKind } from "./bulkEngine.ts";
import { forms, REASONS, type Reason } from "./forms.ts";
import { describeDifference } from "./report.ts";
import { type FuzzOptions, type FuzzResult, fuzz } from "./run.ts";

const USAGE =
  "npm run fuzz -- [--cases N] [--seed S] [--engine stepped|regions|both] [--only MNEMONIC] [--case N] [--regions-every N]";
const ENGINES: Readonly<Record<string, readonly EngineKind[]>> = {
  stepped: ["stepped"],
  regions: ["regions"],
  both: ["stepped", "regions"],
};
/** With "both", where stepping is what most of the time goes to. */
const REGIONS_EVERY = 8;
/** Encodings whose differences are described in full. */
const DESCRIBED = 60;

class UsageError extends Error {}

interface Options extends FuzzOptions {
  readonly engineName: string;
  readonly onlyName: string | undefined;
}

process.exitCode = await main(process.argv.slice(2));

async function main(args: readonly string[]): Promise<number> {
  try {
    const options = readOptions(args);
    const skip = await nativeSkipReason();
    if (skip !== undefined) throw new UsageError(`the host cannot judge: ${skip}`);
    const started = performance.now();
    const result = await fuzz({
      ...options,
      onProgress: (cases, differences) => {
        const seconds = (performance.now() - started) / 1000;
        const rate = Math.round(cases / seconds / 1000);
        process.stderr.write(
          `${cases} cases in ${seconds.toFixed(0)} s, ${rate} 000/s, ${differences} differences\n`,
        );
      },
    });
    printSummary(options, result);
    await printDifferences(options, result);
    return result.differenceCount === 0 ? 0 : 1;
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    process.stderr.write(`fuzz: ${error.message}\n`);
    return 2;
  }
}

function readOptions(args: readonly string[]): Options {
  const values = parseOrRefuse(args);
  const engineName = values.engine ?? "both";
  const engines = ENGINES[engineName];
  if (engines === undefined) throw new UsageError(`there is no engine '${engineName}'; ${USAGE}`);
  const number = values.case === undefined ? undefined : whole("--case", values.case, 0);
  const every = number !== undefined || engines.length === 1 ? 1 : REGIONS_EVERY;
  return {
    seed: whole("--seed", values.seed ?? "0", 0),
    cases: whole("--cases", values.cases ?? "1000000", 1),
    engines,
    engineName,
    regionsEvery:
      values["regions-every"] === undefined ? every : whole("--regions-every", values["regions-every"], 1),
    only: values.only === undefined ? undefined : mnemonic(values.only),
    onlyName: values.only,
    number,
  };
}

function parseOrRefuse(args: readonly string[]) {
  const option = { type: "string" } as const;
  try {
    return parseArgs({
      args: [...args],
      options: {
        ...{
          cases: option,
          seed: option,
          engine: option,
          only: option,
          case: option,
          "regions-every": option,
        },
      },
    }).values;
  } catch (error) {
    throw new UsageError(`${error instanceof Error ? error.message.split(". ")[0] : error}; ${USAGE}`);
  }
}

function whole(option: string, text: string, least: number): number {
  const value = Number(text);
  if (/^\d+$/.test(text) && Number.isSafeInteger(value) && value >= least) return value;
  throw new UsageError(`${option} wants a whole number from ${least} up, not '${text}'`);
}

function mnemonic(name: string): Mnemonic {
  const found = liftedMnemonics().find((known) => Mnemonic[known]!.toLowerCase() === name.toLowerCase());
  if (found === undefined) throw new UsageError(`'${name}' is no instruction that is lifted`);
  if (forms(found).included.length === 0)
    throw new UsageError(
      `'${name}' is not generated: ${REASONS[forms(found).excluded[0]?.reason ?? "operands"]}`,
    );
  return found;
}

function printSummary(options: Options, { families, cases, ran, differenceCount }: FuzzResult): void {
  const rows = [...families].map(([name, { cases: n, faults, differences }]) => [
    ...[name, String(n), String(faults)],
    ...options.engines.map((kind) => String(differences[kind])),
  ]);
  const head = ["", "cases", "faults", ...options.engines.map((kind) => `differ ${kind}`)];
  const widths = head.map((_, n) => Math.max(...[head, ...rows].map((row) => row[n]!.length)));
  for (const row of [head, ...rows])
    console.log(
      row.map((cell, n) => (n === 0 ? cell.padEnd(widths[n]!) : cell.padStart(widths[n]!))).join("  "),
    );
  console.log();
  for (const [reason, codes] of leftOut(options.only))
    console.log(`not generated: ${codes.join(" ")}: ${REASONS[reason]}`);
  const each = options.engines.map((kind) => `${ran[kind]} ${kind}`).join(", ");
  console.log(`${cases} cases of seed ${options.seed} (${each}): ${differenceCount} differences`);
}

function leftOut(only: Mnemonic | undefined): Map<Reason, string[]> {
  const byReason = new Map<Reason, string[]>();
  for (const { code, reason } of forms(only).excluded)
    byReason.set(reason, [...(byReason.get(reason) ?? []), Code[code]!]);
  return byReason;
}

async function printDifferences(options: Options, { shown }: FuzzResult): Promise<void> {
  for (const difference of shown.slice(0, DESCRIBED)) {
    console.log();
    for (const line of await describeDifference(difference)) console.log(line);
    const only = options.onlyName === undefined ? "" : ` --only ${options.onlyName}`;
    console.log(
      `  again: npm run fuzz -- --seed ${options.seed}${only} --engine ${difference.engine} --case ${difference.number}`,
    );
  }
  if (shown.length > DESCRIBED) console.log(`\nand ${shown.length - DESCRIBED} more encodings`);
}
