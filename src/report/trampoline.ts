// What a check of a trampoline found, as a document and as people read it.

import type { Clause } from "../explore/trampoline/contract.ts";
import { sideBySide, table } from "./text.ts";

export interface CostFact {
  readonly instructions: number;
  readonly bytes: number;
  readonly reads: number;
  readonly writes: number;
  readonly branches: number;
}

/** What shows that a clause does not hold. */
export interface ProblemFact {
  readonly why: string;
  /** The instruction to look at, or the boundary at which something came between: symbol and offset, and its text. */
  readonly place: string;
  readonly instruction: string;
  /** With `--seed N --cases 1` it is the only register state. */
  readonly seed: number;
  readonly state: readonly { readonly what: string; readonly found: string; readonly expected: string }[];
  /** Of a walk that is wrong: what it found, and what is true, innermost first; or empty. */
  readonly walked: readonly string[];
  readonly true: readonly string[];
  /** Instructions around the place, which is marked. */
  readonly code: readonly string[];
}

export interface ClauseFact {
  readonly name: Clause;
  /** What it asks. */
  readonly promise: string;
  /** Null if nothing can be said, as calls do not even end by themselves. */
  readonly holds: boolean | null;
  readonly evidence: { readonly executed: string; readonly problem: ProblemFact | null };
}

export interface TrampolineReport {
  readonly trampoline: string;
  readonly contract: string;
  /** Whether every clause holds. */
  readonly holds: boolean;
  readonly clauses: readonly ClauseFact[];
  readonly coverage: {
    readonly instructions: number;
    readonly reached: number;
    readonly missed: readonly string[];
  };
  /** Over a site that is a NOP, with a handler that only returns; null if a call does not end. */
  readonly cost: CostFact | null;
}

const VERDICTS = { true: "holds", false: "FAILS", null: "open" } as const;
/** Registers and words that are printed; all are in the document. */
const SHOWN_FACTS = 8;

export function renderTrampoline(report: TrampolineReport): string {
  const { trampoline, contract, clauses, coverage, cost } = report;
  const failed = clauses.filter(({ holds }) => holds === false);
  const rows = clauses.map(({ name, holds, evidence }) => [name, VERDICTS[`${holds}`], evidence.executed]);
  const lines = [
    `${trampoline}, by the contract of ${contract}; ${coverage.reached} of ${coverage.instructions} instructions executed.`,
    "",
    ...table(rows),
    ...failed.flatMap(renderProblem),
    ...coverage.missed.map((place, n) =>
      n === 0 ? `\nNever executed: ${place}` : `                ${place}`,
    ),
  ];
  if (cost !== null)
    lines.push(
      "",
      `A call costs ${cost.instructions} instructions more than a NOP: reads ${cost.reads}, writes ${cost.writes}, branches ${cost.branches}; ${cost.bytes} bytes of code.`,
    );
  const verdict = report.holds
    ? "Every clause holds."
    : `NOT KEPT: ${failed.map(({ name }) => name).join(", ")}. Look at the first one first.`;
  return [...lines, "", verdict, ""].join("\n");
}

function renderProblem({ name, promise, evidence: { problem } }: ClauseFact): string[] {
  if (problem === null) return [];
  const { why, place, instruction, seed, state, walked, code } = problem;
  const facts = state.slice(0, SHOWN_FACTS).map(({ what, found, expected }) => [what, found, expected]);
  const more =
    state.length > SHOWN_FACTS ? [`    and ${state.length - SHOWN_FACTS} more; --json has all.`] : [];
  const stacks = sideBySide(["walked", ...walked], ["true", ...problem.true]);
  return [
    "",
    `${name} FAILS: ${promise}.`,
    `  ${why} (state ${seed})`,
    `  at ${place}: ${instruction}`,
    ...code.map((line) => `    ${line}`),
    ...(facts.length === 0 ? [] : table([["", "found", "expected"], ...facts])).map((line) => `    ${line}`),
    ...more,
    ...(walked.length + problem.true.length === 0 ? [] : stacks.map((line) => `    ${line}`)),
  ];
}
