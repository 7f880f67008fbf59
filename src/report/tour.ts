// The guided tour as people read it. Every figure comes with the facts; nothing is computed here.

import { sideBySide, table } from "./text.ts";

/** One call site, off and on. */
export interface SiteFact {
  readonly symbol: string;
  /** What it was made by: assembled here, or compiled by gcc. */
  readonly from: string;
  readonly address: string;
  readonly bytesBefore: string;
  readonly bytesAfter: string;
  readonly listingBefore: readonly string[];
  readonly listingAfter: readonly string[];
}

export type Version = "old" | "new";

/** One call that was executed, instruction by instruction. */
export interface CallFact {
  readonly function: string;
  /** How the function was reached. */
  readonly via: string;
  readonly task: number;
  readonly patchState: "KLP_UNDEFINED" | "KLP_UNPATCHED" | "KLP_PATCHED";
  /** Whether the site was on, and whether a transition was under way. */
  readonly site: "off" | "on" | "in transition";
  /** Which body was entered, seen from the addresses executed. */
  readonly version: Version;
  /** rax of the outermost call, 64 bits unsigned in hexadecimal. */
  readonly result: string;
  /** What the call left for people to read, if anything. */
  readonly output?: string;
  readonly instructions: number;
}

export interface StackFact {
  readonly where: string;
  readonly address: string;
  /** Return addresses, innermost first. */
  readonly walked: readonly string[];
  readonly true: readonly string[];
  readonly equal: boolean;
  readonly remark: string;
}

export interface CostPart {
  readonly where: string;
  readonly instructions: number;
}

export interface CostFact {
  readonly function: string;
  readonly instructionsUnpatched: number;
  readonly instructionsRedirected: number;
  /** Where the redirected call's instructions were executed, in the order first met. */
  readonly parts: readonly CostPart[];
}

export interface Tour {
  readonly sites: readonly SiteFact[];
  readonly calls: readonly CallFact[];
  readonly stacks: readonly StackFact[];
  readonly cost: CostFact;
  readonly machine: {
    /** Retired by all vCPUs during the tour. */
    readonly instructions: number;
    readonly vcpus: number;
    readonly tasks: number;
    /** Call sites found in the kernel's image. */
    readonly sites: number;
  };
}

export function renderTour({ sites, calls, stacks, cost, machine }: Tour): string {
  return [
    "fentrylab: a laboratory for live-patched x86-64 code. Everything below was just executed.",
    "",
    "1. A call site is five bytes. Off, it is a NOP; on, it calls a trampoline.",
    "",
    ...sites.flatMap(renderSite),
    "2. The same calls before, during and after patching. In a transition each task gets its own version.",
    "",
    ...renderCalls(calls),
    "",
    "3. What a frame-pointer walk finds, beside the calls that were really made (return addresses).",
    "",
    ...stacks.flatMap(renderStack),
    `4. What redirection costs: ${cost.function}() takes ${cost.instructionsUnpatched} instructions unpatched, ${cost.instructionsRedirected} redirected.`,
    "",
    ...table(cost.parts.map(({ where, instructions }) => [`  ${where}`, String(instructions)])),
    "",
    `${machine.instructions} instructions on ${machine.vcpus} vCPUs, ${machine.tasks} tasks, ${machine.sites} call sites.`,
    "",
  ].join("\n");
}

function renderSite(site: SiteFact): string[] {
  return [
    `  ${site.symbol} at ${site.address} (${site.from})`,
    ...site.listingBefore.map((line) => `    off  ${line}`),
    ...site.listingAfter.map((line) => `    on   ${line}`),
    "",
  ];
}

function renderCalls(calls: readonly CallFact[]): string[] {
  const rows = calls.map((call) => [
    `  ${call.function}`,
    call.via,
    `task ${call.task} ${call.patchState}`,
    call.site,
    call.version,
    showResult(call.result),
    call.output === undefined ? "" : JSON.stringify(call.output),
  ]);
  return table([["  function", "via", "task, patch state", "site", "body", "result", "output"], ...rows]);
}

function renderStack({ where, walked, true: truth, equal, remark }: StackFact): string[] {
  const lines = sideBySide(["walked", ...walked], ["true", ...truth]).map((line) => `    ${line}`);
  return [`  ${where}: ${equal ? "equal" : "NOT equal"}. ${remark}`.trimEnd(), ...lines, ""];
}

/** Small numbers as numbers, in either sign; the rest as words. */
function showResult(word: string): string {
  const signed = BigInt.asIntN(64, BigInt(word));
  return signed >= -4096n && signed < 1n << 32n ? String(signed) : word;
}
