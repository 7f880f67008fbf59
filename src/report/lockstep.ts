// What lockstep found, as a document and as people read it.

import { type Addr, hex } from "../base/addr.ts";
import { hexBytes } from "../base/bytes.ts";
import { describeExit } from "../machine/exit.ts";
import type { Difference, LockstepResult } from "../reference/lockstep.ts";
import type { State } from "../reference/stretch.ts";
import { FLAG, GPR } from "../x86/register.ts";
import { table } from "./text.ts";

/** Names a code address: `tail+0x3/0x8 [shapes]`. */
export type Describe = (at: Addr) => string;

const ROWS = [...GPR, "rip", "rflags"] as const;
/** More differing bytes of memory than this are in the document alone. */
const SHOWN_BYTES = 16;

/** For machines. Words are hexadecimal. */
export function lockstepDocument(result: LockstepResult, against: string, describe: Describe): object {
  const { steps, agreed, notJudged, referenceFaults, ended, difference } = result;
  return {
    against,
    steps,
    agreed,
    notJudged: Object.fromEntries(notJudged),
    referenceFaults: Object.fromEntries(referenceFaults),
    ended:
      ended.kind === "exit"
        ? { kind: "exit", exit: describeExit(ended.exit, describe), judged: ended.judged }
        : ended,
    ...(difference === undefined ? {} : { difference: differenceDocument(difference, describe) }),
  };
}

function differenceDocument(difference: Difference, describe: Describe): object {
  const { ip, bytes, text, before, ours, theirs, memory, stops, ...rest } = difference;
  return {
    ...rest,
    ip: hex(ip),
    place: describe(ip),
    bytes: hexBytes(bytes),
    text,
    before: words(before),
    ours: words(ours),
    theirs: words(theirs),
    stops: { ours: stops.ours ?? null, theirs: stops.theirs ?? null },
    memory: memory.map(({ at, ours, theirs }) => ({ at: hex(at), ours, theirs })),
  };
}

function words(state: State): Record<string, string> {
  return Object.fromEntries(ROWS.map((name) => [name, word(state[name])]));
}

/** For people. `outcome` is what to say of the end, if the two did not part. */
export function renderLockstep(
  result: LockstepResult,
  against: string,
  outcome: string,
  describe: Describe,
): string {
  const { agreed, notJudged, referenceFaults, difference } = result;
  const lines = [
    `${agreed} instructions agree with ${against}; ${difference === undefined ? outcome : "the next does not"}`,
    ...counted("not judged", notJudged),
    ...counted(`known faults of ${against}`, referenceFaults),
    ...(difference === undefined ? [] : ["", ...differenceLines(difference, against, describe)]),
  ];
  return lines.map((line) => `${line}\n`).join("");
}

function counted(what: string, counts: ReadonlyMap<string, number>): string[] {
  if (counts.size === 0) return [];
  const sorted = [...counts].sort(([a], [b]) => (a < b ? -1 : 1));
  return [`${what}: ${sorted.map(([name, count]) => `${count} ${name}`).join(", ")}`];
}

function differenceLines(difference: Difference, against: string, describe: Describe): string[] {
  const { step, since, ip, bytes, text, before, ours, theirs, fields, memory, stops } = difference;
  const marked = new Set(fields);
  const flags = Object.keys(FLAG).some((name) => marked.has(name));
  const rows = ROWS.map((name) => {
    const show = name === "rflags" ? flagsText : word;
    const mark = marked.has(name) || (name === "rflags" && flags) ? "*" : "";
    return [mark, name, ...[before, ours, theirs].map((state) => show(state[name]))];
  });
  const byte = (value: number) => `0x${value.toString(16).padStart(2, "0")}`;
  const shown = memory.slice(0, SHOWN_BYTES);
  const bytesRows = shown.map(({ at, ours: here, theirs: there }) => [
    "*",
    hex(at),
    "",
    byte(here),
    byte(there),
  ]);
  const stopRow = [
    marked.has("stop") ? "*" : "",
    "ends",
    "",
    stops.ours ?? "retired",
    stops.theirs ?? "retired",
  ];
  const left =
    memory.length > shown.length ? [`  and ${memory.length - shown.length} more bytes of memory`] : [];
  const doubt =
    since === step
      ? []
      : [`  memory may differ since instruction ${since}: it was not so when they were run again`];
  return [
    `  ${describe(ip)} at ${hex(ip)}: ${hexBytes(bytes)}  ${text}`,
    "",
    ...table([["", "", "before", "here", against], ...rows, stopRow, ...bytesRows]).map(
      (line) => `  ${line}`,
    ),
    ...left,
    ...doubt,
  ];
}

function word(value: bigint): string {
  return `0x${value.toString(16).padStart(16, "0")}`;
}

/** `0x0246 PF ZF IF` */
function flagsText(flags: bigint): string {
  const set = Object.entries(FLAG).flatMap(([name, bit]) => ((flags & bit) !== 0n ? [name] : []));
  return [`0x${flags.toString(16).padStart(4, "0")}`, ...set].join(" ");
}
