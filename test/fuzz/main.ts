// `npm run fuzz`: random instructions on this engine, held against the host's processor, against Unicorn, or, for
// regions, against stepping.
//
// Exit status: 0 when nothing differs but what is explained, 1 when something does, 2 for options that make no sense
// and where there is no such oracle. Progress goes to stderr, the summary to stdout.

import { parseArgs } from "node:util";
import { Code, Mnemonic } from "iced-x86";
import { liftedMnemonics } from "../../src/x86/lift/table.ts";
import { nativeSkipReason } from "../native/oracle.ts";
import type { EngineKind } from "./bulkMachine.ts";
import { forms, REASONS, type Reason } from "./forms.ts";
import { close, openHost, openSteps, openUnicorn, type Reference } from "./reference.ts";
import { describeDifference } from "./report.ts";
import { type Explained, type FuzzOptions, type FuzzResult, fuzz } from "./run.ts";
import { MAX_LENGTH } from "./sequence.ts";

const USAGE = `npm run fuzz -- [options]
  --against host|unicorn|steps   whom it is held against (host)
  --cases N                      how many cases (1000000)
  --seed S                       which ones (0)
  --engine stepped|regions|both  (both; with --against steps: regions)
  --length N                     instructions in a row, 1 to ${MAX_LENGTH} (mostly 1, in every tenth code more; Unicorn: 1)
  --states N                     states that each code is run with (32)
  --only MNEMONIC                single instructions of that name
  --case N                       just this case, by the number that a difference is printed with
  --regions-every N              regions for one in so many single instructions (8 with both engines)`;
const ENGINES: Readonly<Record<string, readonly EngineKind[]>> = {
  stepped: ["stepped"],
  regions: ["regions"],
  both: ["stepped", "regions"],
};
/** Encoding and decoding one instruction costs as much as running it thirty times. */
const STATES = 32;
/** With "both", where stepping is what most of the time goes to. */
const REGIONS_EVERY = 8;
/** Encodings whose differences are described in full. */
const DESCRIBED = 60;

class UsageError extends Error {}

const AGAINST = ["host", "unicorn", "steps"] as const;
type Against = (typeof AGAINST)[number];

interface Options extends FuzzOptions {
  readonly against: Against;
  readonly engineName: string;
  readonly onlyName: string | undefined;
}

process.exitCode = await main(process.argv.slice(2));

async function main(args: readonly string[]): Promise<number> {
  try {
    const options = readOptions(args);
    const reference = await open(options.against);
    try {
      const result = await fuzz({ ...options, onProgress: progress() }, reference);
      printSummary(options, reference, result);
      await printDifferences(options, reference, result);
      return result.differenceCount === 0 ? 0 : 1;
    } finally {
      close(reference);
    }
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    process.stderr.write(`fuzz: ${error.message}\n`);
    return 2;
  }
}

async function open(against: Against): Promise<Reference> {
  if (against === "steps") return openSteps();
  if (against === "unicorn") {
    const unicorn = await openUnicorn();
    if ("missing" in unicorn) throw new UsageError(`there is no Unicorn: ${unicorn.missing}`);
    return unicorn;
  }
  const skip = await nativeSkipReason();
  if (skip !== undefined) throw new UsageError(`the host cannot judge: ${skip}`);
  return openHost();
}

function progress(): (cases: number, differences: number) => void {
  const started = performance.now();
  return (cases, differences) => {
    const seconds = (performance.now() - started) / 1000;
    const rate = Math.round(cases / seconds / 1000);
    process.stderr.write(
      `${cases} cases in ${seconds.toFixed(0)} s, ${rate} 000/s, ${differences} differences\n`,
    );
  };
}

function readOptions(args: readonly string[]): Options {
  const values = parseOrRefuse(args);
  const against = AGAINST.find((name) => name === (values.against ?? "host"));
  if (against === undefined) throw new UsageError(`nobody is called '${values.against}'\n${USAGE}`);
  const engineName = values.engine ?? (against === "steps" ? "regions" : "both");
  const engines = ENGINES[engineName];
  if (engines === undefined) throw new UsageError(`there is no engine '${engineName}'\n${USAGE}`);
  const number = values.case === undefined ? undefined : whole("--case", values.case, 0);
  const every = number !== undefined || engines.length === 1 ? 1 : REGIONS_EVERY;
  const length = values.length === undefined ? undefined : whole("--length", values.length, 1);
  if (length !== undefined && length > MAX_LENGTH)
    throw new UsageError(`--length is at most ${MAX_LENGTH}, not ${length}`);
  if (length !== undefined && length > 1 && against === "unicorn")
    throw new UsageError("what comes after one of Unicorn's faults is its fault, too: --length is 1");
  return {
    against,
    states: whole("--states", values.states ?? String(STATES), 1),
    length: against === "unicorn" ? 1 : length,
    seed: whole("--seed", values.seed ?? "0", 0),
    cases: whole("--cases", values.cases ?? "1000000", 1),
    engines,
    engineName,
    regionsEvery:
      values["regions-every"] === undefined ? every : whole("--regions-every", values["regions-every"], 1),
    only: values.only === undefined ? undefined : mnemonic(values.only, against === "steps"),
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
        ...{ against: option, cases: option, seed: option, engine: option, length: option },
        ...{ states: option, only: option, case: option, "regions-every": option },
      },
    }).values;
  } catch (error) {
    throw new UsageError(`${error instanceof Error ? error.message.split(". ")[0] : error}\n${USAGE}`);
  }
}

function whole(option: string, text: string, least: number): number {
  const value = Number(text);
  if (/^\d+$/.test(text) && Number.isSafeInteger(value) && value >= least) return value;
  throw new UsageError(`${option} wants a whole number from ${least} up, not '${text}'`);
}

function mnemonic(name: string, anywhere: boolean): Mnemonic {
  const found = liftedMnemonics().find((known) => Mnemonic[known]!.toLowerCase() === name.toLowerCase());
  if (found === undefined) throw new UsageError(`'${name}' is no instruction that is lifted`);
  const { included, excluded } = forms(found, anywhere);
  if (included.length > 0) return found;
  throw new UsageError(`'${name}' is not generated: ${REASONS[excluded[0]?.reason ?? "operands"]}`);
}

function printSummary(options: Options, { anywhere }: Reference, result: FuzzResult): void {
  const { families, cases, codes, forms: compiled, ran, differenceCount, explained } = result;
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
  for (const [reason, codes] of leftOut(options.only, anywhere))
    console.log(`not generated: ${codes.join(" ")}: ${REASONS[reason]}`);
  for (const [why, one] of explained) console.log(`explained: ${count(one)}: ${why}`);
  const each = options.engines.map((kind) => `${ran[kind]} ${kind}`).join(", ");
  console.log(`${codes} different codes; ${compiled} step functions were compiled`);
  console.log(`${cases} cases of seed ${options.seed} (${each}): ${differenceCount} differences`);
}

function count({ count: all, confirmed, open }: Explained): string {
  const judged = confirmed + open === 0 ? "" : `, the host agrees with us in ${confirmed}`;
  return `${all}${judged}${open === 0 ? "" : `, and is no judge of ${open}`}`;
}

function leftOut(only: Mnemonic | undefined, anywhere: boolean): Map<Reason, string[]> {
  const byReason = new Map<Reason, string[]>();
  for (const { code, reason } of forms(only, anywhere).excluded)
    byReason.set(reason, [...(byReason.get(reason) ?? []), Code[code]!]);
  return byReason;
}

async function printDifferences(
  options: Options,
  reference: Reference,
  { shown }: FuzzResult,
): Promise<void> {
  for (const difference of shown.slice(0, DESCRIBED)) {
    console.log();
    for (const line of await describeDifference(difference, reference)) console.log(line);
    console.log(
      `  again: npm run fuzz -- ${again(options)} --engine ${difference.engine} --case ${difference.number}`,
    );
  }
  if (shown.length > DESCRIBED) console.log(`\nand ${shown.length - DESCRIBED} more encodings`);
}

/** The options that say which cases there are. */
function again({ against, seed, states, length, onlyName }: Options): string {
  return [
    `--against ${against} --seed ${seed}`,
    ...(states === STATES ? [] : [`--states ${states}`]),
    ...(length === undefined ? [] : [`--length ${length}`]),
    ...(onlyName === undefined ? [] : [`--only ${onlyName}`]),
  ].join(" ");
}
