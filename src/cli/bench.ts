// fentrylab bench [engine|redirect|unwind|transition|resources|runs]

import { refuse } from "../base/refuse.ts";
import { type CommonOptions, printJson } from "./option.ts";

interface BenchOptions {
  readonly rounds?: number;
  readonly progress: (done: number, total: number, what: string) => void;
}

/** What a benchmark found, as a document and as text. */
interface Report {
  readonly document: unknown;
  readonly text: string;
}

const BENCHES: Readonly<Record<string, (options: BenchOptions) => Promise<Report>>> = {
  engine: async (options) => {
    const { benchEngine } = await import("../../bench/engine.ts");
    const { renderEngineReport } = await import("../../bench/engineTable.ts");
    const report = await benchEngine(options);
    return { document: report, text: renderEngineReport(report) };
  },
  redirect: async (options) => {
    const { benchRedirect, renderRedirectReport } = await import("../../bench/redirect.ts");
    const report = await benchRedirect(options);
    return { document: report, text: renderRedirectReport(report) };
  },
  unwind: async (options) => {
    const { benchUnwind, renderUnwindReport } = await import("../../bench/unwind.ts");
    const report = await benchUnwind(options);
    return { document: report, text: renderUnwindReport(report) };
  },
  transition: async (options) => {
    const { benchTransition, renderTransitionReport } = await import("../../bench/transition.ts");
    const report = await benchTransition(options);
    return { document: report, text: renderTransitionReport(report) };
  },
  runs: async (options) => {
    const { benchRuns, renderRunsReport } = await import("../../bench/runs.ts");
    const report = await benchRuns(options);
    return { document: report, text: renderRunsReport(report) };
  },
  resources: async (options) => {
    const { benchResources, renderResourceReport } = await import("../../bench/resources.ts");
    const report = await benchResources(options);
    return { document: report, text: renderResourceReport(report) };
  },
};

export async function printBench(
  what: string,
  { json, rounds }: CommonOptions & { readonly rounds?: number },
): Promise<void> {
  const bench = BENCHES[what] ?? refuse("unknown-bench", { what, known: Object.keys(BENCHES).join(", ") });
  const report = await bench({ ...(rounds === undefined ? {} : { rounds }), progress });
  if (process.stderr.isTTY) process.stderr.write("\r\x1b[K");
  if (json) printJson(report.document);
  else process.stdout.write(report.text);
}

function progress(done: number, total: number, what: string): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${done}/${total} ${what}`);
}
