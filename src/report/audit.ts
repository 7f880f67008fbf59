// What an audit found, as a document and as people read it.

import { CELLS, type Cell, MODES, type Mode, type Verdicts } from "../explore/findings.ts";
import { sideBySide, table } from "./text.ts";

export interface CoverageFact {
  /** In the functions that are audited, and how many of them were reached. */
  readonly instructions: number;
  readonly reached: number;
  readonly percent: number;
  /** Those that were not. */
  readonly missed: readonly string[];
}

/** Where a verdict other than reliable and right was given. */
export interface PlaceFact {
  readonly mode: Mode;
  readonly verdict: Cell;
  readonly place: string;
  /** Walks. */
  readonly count: number;
  /** The assembly says that nothing is known of the stack there. */
  readonly declaredUndefined: boolean;
  /** Of the first walk. */
  readonly doubt: string | null;
}

/** A place where the walk was wrong, with the first such walk. */
export interface WrongFact {
  readonly mode: Mode;
  readonly verdict: "reliableWrong" | "unreliableWrong";
  readonly place: string;
  readonly count: number;
  readonly workload: string;
  readonly doubt: string | null;
  /** Innermost first. */
  readonly walked: readonly string[];
  readonly true: readonly string[];
  /** Instructions around the place, which is marked. */
  readonly code: readonly string[];
}

export interface AuditReport {
  readonly unwinder: string;
  /** Instruction boundaries that were passed. At each there may be more than one walk. */
  readonly boundaries: number;
  /** Workloads that did not come to their end: what they stopped at. */
  readonly unfinished: readonly string[];
  readonly coverage: CoverageFact;
  /** Walks by verdict and truth, of all modes together. */
  readonly verdicts: Verdicts;
  readonly modes: Readonly<Record<Mode, Verdicts>>;
  readonly places: readonly PlaceFact[];
  /** Every place where a walk claimed to be reliable and was wrong. */
  readonly violations: readonly WrongFact[];
  /** Every place where a walk was wrong and said that it may be. */
  readonly wrong: readonly WrongFact[];
}

const MODE_NAMES: Readonly<Record<Mode, string>> = {
  atRest: "at rest",
  preempted: "preempted",
  nmi: "from inside an NMI",
  sleeping: "sleeping",
};
/** Places and examples that are printed; all are in the document. */
const SHOWN_PLACES = 12;
const SHOWN_EXAMPLES = 3;

export function renderAudit(report: AuditReport): string {
  const { unwinder, boundaries, coverage, modes, verdicts } = report;
  const rows = [["walks", "reliable, right", "reliable, WRONG", "unreliable, right", "unreliable, wrong"]];
  const row = (name: string, counts: Verdicts) =>
    rows.push([name, ...CELLS.map((cell) => String(counts[cell]))]);
  for (const mode of MODES)
    if (CELLS.some((cell) => modes[mode][cell] > 0)) row(MODE_NAMES[mode], modes[mode]);
  row("all", verdicts);
  const lines = [
    `${unwinder}: ${boundaries} instruction boundaries; ${coverage.reached} of ${coverage.instructions} instructions reached (${coverage.percent.toFixed(1)} %).`,
    "",
    ...table(rows),
    ...listPlaces(report, "unreliableRight", "Right, but not claimed to be reliable"),
    ...listPlaces(report, "unreliableWrong", "Wrong, and not claimed to be reliable"),
    ...report.wrong.slice(0, report.violations.length === 0 ? 1 : 0).flatMap(renderWrong),
    ...report.violations.slice(0, SHOWN_EXAMPLES).flatMap(renderWrong),
  ];
  const { unfinished } = report;
  if (unfinished.length > 0) {
    lines.push("", `${unfinished.length} workloads did not come to their end:`);
    lines.push(...unfinished.slice(0, SHOWN_PLACES).map((what) => `  ${what}`));
  }
  if (report.violations.length > SHOWN_EXAMPLES)
    lines.push("", `and ${report.violations.length - SHOWN_EXAMPLES} more violations; --json has all.`);
  lines.push(
    "",
    report.violations.length === 0
      ? "No walk claimed to be reliable and was wrong."
      : `VIOLATED at ${report.violations.length} places: a walk claimed to be reliable and was wrong.`,
    "",
  );
  return lines.join("\n");
}

function listPlaces(report: AuditReport, verdict: Cell, title: string): string[] {
  const places = report.places.filter((place) => place.verdict === verdict);
  if (places.length === 0) return [];
  const most = places.toSorted((a, b) => b.count - a.count).slice(0, SHOWN_PLACES);
  const rows = most.map(({ mode, place, count, declaredUndefined, doubt }) => [
    `  ${count}`,
    place,
    MODE_NAMES[mode],
    declaredUndefined ? "declared UNDEFINED" : (doubt ?? ""),
  ]);
  const more = places.length > most.length ? [`  and ${places.length - most.length} more places`] : [];
  return ["", `${title}, at ${places.length} places:`, ...table(rows), ...more];
}

function renderWrong(wrong: WrongFact): string[] {
  const { mode, place, count, workload, doubt, walked, true: real, code } = wrong;
  const claim = wrong.verdict === "reliableWrong" ? "RELIABLE AND WRONG" : "wrong";
  return [
    "",
    `${claim}, ${count} times ${MODE_NAMES[mode]}, at ${place} (${workload})${doubt === null ? "" : `: ${doubt}`}`,
    ...code.map((line) => `    ${line}`),
    ...sideBySide(["walked", ...walked], ["true", ...real]).map((line) => `    ${line}`),
  ];
}
