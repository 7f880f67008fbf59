// What runs came to, as a document and as people read it.

import { DEFAULT_SETTINGS, type RunSettings } from "../explore/settings.ts";
import { table } from "./text.ts";

/** A transition, and who holds it up. */
export interface UnderWay {
  readonly patch: string;
  /** The state that tasks are to get: KLP_PATCHED or KLP_UNPATCHED. */
  readonly target: string;
  readonly blockers: readonly {
    readonly task: string;
    /** The kind of `why`: running, unreliable, on-stack, not-tried. */
    readonly reason: string;
    readonly why: string;
    readonly advice: string;
    /** Return addresses, innermost first. */
    readonly stack: readonly string[];
  }[];
  /** What it waits for beside tasks, in words: a grace period, or sites that are being rewritten. */
  readonly waitsFor: string | null;
}

interface Facts {
  readonly settings: RunSettings;
  readonly seed: number;
  /** How it ended: idle, budget, stopped, oops, hang. */
  readonly end: string;
  readonly finding: string | null;
  readonly instructions: number;
  /** Nanoseconds of guest time. */
  readonly clock: number;
  readonly choices: number;
  readonly hash: string;
  readonly progress: readonly { readonly name: string; readonly count: number }[];
  /** What was under way at its end. */
  readonly transition: UnderWay | null;
  readonly log?: readonly string[];
  readonly tasks?: readonly string[];
}

export interface RunReport extends Facts {
  /** How many there were, each with the next seed; what else is here is of the last. */
  readonly runs: number;
  readonly totalInstructions: number;
}

export interface ReplayReport extends Facts {
  readonly recorded: {
    readonly kind: string;
    readonly finding: string | null;
    readonly instructions: number;
    readonly hash: string;
  };
  /** Its end, and as many choices. */
  readonly same: boolean;
}

const ENDS: Readonly<Record<string, string>> = {
  idle: "everybody is done, or sleeps",
  budget: "its instructions are used up",
  stopped: "a rule was broken",
  oops: "the kernel cannot go on",
  hang: "nothing goes on",
};
const COLUMNS = 4;

export function renderRun(report: RunReport): string {
  const { settings, seed, runs, totalInstructions, finding } = report;
  const { vcpus, copies, rounds } = settings;
  const cpus = counted(vcpus, "vCPU");
  const before = `${runs} runs, ${totalInstructions} instructions on ${cpus}; the last, with seed ${seed}:\n`;
  const again = ["fentrylab run", ...flags(settings), `--seed ${seed}`, "--record FILE"].join(" ");
  const hint =
    finding === null ? [] : ["", `Keep it with \`${again}\`; \`fentrylab replay FILE\` shows it again.`];
  return [
    ...(runs > 1 ? [before] : []),
    `seed ${seed}, ${cpus}, ${copies} of each user task, ${counted(rounds, "round")}`,
    ...facts(report),
    ...underWay(report),
    ...hint,
    ...extras(report),
    "",
  ].join("\n");
}

export function renderReplay(file: string, report: ReplayReport): string {
  const { recorded, same } = report;
  const verdict = same
    ? "The same end, instruction for instruction."
    : `NOT the same: it was ${recorded.instructions} instructions, hash ${recorded.hash}, ${recorded.finding ?? "nothing found"}; ended: ${ENDS[recorded.kind] ?? recorded.kind}.`;
  return [
    `${file}: seed ${report.seed}, ${counted(report.settings.vcpus, "vCPU")}`,
    ...facts(report),
    ...underWay(report),
    verdict,
    ...extras(report),
    "",
  ].join("\n");
}

function facts({ end, finding, instructions, clock, choices, hash, progress }: Facts): string[] {
  const cells = progress.map(({ name, count }) => `${name} ${count}`);
  const rows = Array.from({ length: Math.ceil(cells.length / COLUMNS) }, (_, n) =>
    cells.slice(COLUMNS * n, COLUMNS * (n + 1)),
  );
  return [
    `${instructions} instructions, ${(clock / 1e6).toFixed(3)} ms of guest time, ${choices} choices; ended: ${ENDS[end] ?? end}`,
    `hash ${hash}`,
    finding === null ? "nothing found wrong" : `FOUND: ${finding}`,
    "",
    ...table(rows),
  ];
}

function underWay({ transition }: Facts): string[] {
  if (transition === null) return [];
  const { patch, target, blockers, waitsFor } = transition;
  const where = `At its end ${patch} was in transition to ${target}`;
  if (blockers.length === 0)
    return ["", `${where}, and all tasks were there${waitsFor === null ? "" : `; it had to ${waitsFor}`}.`];
  const [count, are] = blockers.length === 1 ? ["one task", "is"] : [`${blockers.length} tasks`, "are"];
  const next = blockers.filter(({ reason }) => reason === "not-tried").map(({ task }) => task);
  return [
    "",
    `${where}, and ${count} ${are} not there yet:`,
    ...(next.length === 0 ? [] : [`  the next look switches ${next.join(", ")}`]),
    ...blockers
      .filter(({ reason }) => reason !== "not-tried")
      .flatMap(({ task, why, advice, stack }) => [
        `  ${task} ${why}; ${advice}`,
        ...stack.map((frame) => `    ${frame}`),
      ]),
  ];
}

function extras({ log, tasks }: Facts): string[] {
  return [...(log === undefined ? [] : ["", ...log]), ...(tasks === undefined ? [] : ["", ...tasks])];
}

function flags({ vcpus, copies, rounds, budget, patches, weakened, every, logLevel }: RunSettings): string[] {
  const all = [`--vcpus ${vcpus}`, `--copies ${copies}`, `--rounds ${rounds}`, `--budget ${budget}`];
  return [
    ...all,
    ...(patches ? ["--patches"] : []),
    ...(every === DEFAULT_SETTINGS.every ? [] : [`--every ${every}`]),
    ...(logLevel === DEFAULT_SETTINGS.logLevel ? [] : [`--log-level ${logLevel}`]),
    ...(weakened.length > 0 ? [`--weaken ${weakened.join(" ")}`] : []),
  ];
}

function counted(count: number, what: string): string {
  return `${count} ${what}${count === 1 ? "" : "s"}`;
}
