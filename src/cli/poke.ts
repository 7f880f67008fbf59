// fentrylab poke [--writer WRITER] [--vcpus N] [--calls N] [--way on|off|both] [--record FILE]
// fentrylab poke --replay FILE

import { refuseUnwritable, writeOutput } from "../base/file.ts";
import { refuse } from "../base/refuse.ts";
import { POKE_WAYS } from "../explore/settings.ts";
import { WRITERS, type Writer } from "../ftrace/textPoke.ts";
import { readPokeRecord, writePokeRecord } from "../pokeRecord.ts";
import { explorePoke, type PokeFacts, replayPoke } from "../pokeRun.ts";
import { renderPoke, renderPokeReplay } from "../report/poke.ts";
import { type CommonOptions, printJson } from "./option.ts";

interface PokeCommandOptions extends CommonOptions {
  readonly writer?: string;
  readonly vcpus?: number;
  readonly calls?: number;
  readonly way?: string;
  readonly record?: string;
  readonly replay?: string;
}

const DEFAULT_CALLS = 2;
const DEFAULT_VCPUS = [1, 2];

/** Explores with one number of vCPUs after the other, up to the first with which something is found. False if something is. */
export async function printPoke({ replay, ...options }: PokeCommandOptions): Promise<boolean> {
  if (replay !== undefined) return printReplay(replay, options);
  const writer = oneOf("writer", options.writer ?? "breakpoint", Object.keys(WRITERS) as Writer[]);
  const way = oneOf("way", options.way ?? "both", POKE_WAYS);
  const { calls = DEFAULT_CALLS, record } = options;
  if (record !== undefined) refuseUnwritable(record);
  const all: PokeFacts[] = [];
  for (const vcpus of options.vcpus === undefined ? DEFAULT_VCPUS : [options.vcpus]) {
    const onProgress = (states: number) => showProgress(`${vcpus} vCPUs: ${states} states`);
    all.push(await explorePoke({ vcpus, calls, way, writer }, { onProgress }));
    showProgress("");
    if (all.at(-1)?.finding !== null) break;
  }
  const last = all.at(-1);
  const held = all.every(({ finding }) => finding === null);
  const explored = all.map(({ settings, states, transitions, deepest, finding }) => ({
    ...{ settings, states, transitions, deepest, finding },
  }));
  const report = { explored, ...(held || last === undefined ? {} : { lines: last.lines }) };
  if (options.json) printJson(report);
  else process.stdout.write(renderPoke(report, record));
  if (record !== undefined && last !== undefined) writeOutput(record, writePokeRecord(last.record));
  return held;
}

/** Goes a way again that was written down. False if it does not come to the same end. */
async function printReplay(file: string, options: Omit<PokeCommandOptions, "replay">): Promise<boolean> {
  for (const option of ["writer", "vcpus", "calls", "way", "record"] as const)
    if (options[option] !== undefined) refuse("replay-alone", { option: `--${option}` });
  const record = readPokeRecord(file);
  const { lines, end, same } = await replayPoke(file, record);
  const report = { settings: record.settings, lines, end, same };
  if (options.json) printJson(report);
  else process.stdout.write(renderPokeReplay(file, report));
  return same;
}

function oneOf<T extends string>(what: string, name: string, known: readonly T[]): T {
  return (
    known.find((each) => each === name) ?? refuse("unknown-choice", { what, name, known: known.join(", ") })
  );
}

function showProgress(text: string): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${text}`);
}
