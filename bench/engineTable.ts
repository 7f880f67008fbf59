// The engine's report for a terminal: a table with medians, spreads and ratios.

import { type EngineReport, type StepSpeed, WORKLOADS } from "./engine.ts";
import { SNAPSHOT_ROWS, type SnapshotRow } from "./snapshot.ts";
import type { Spread } from "./spread.ts";

const HEAD = ["", "unit", "fentrylab", "min..max", "Unicorn", "min..max", "ratio", "min..max"];

export function renderEngineReport(report: EngineReport): string {
  const { machine, unicorn, snapshots } = report;
  const peer = "missing" in unicorn ? `no Unicorn: ${unicorn.missing}` : `Unicorn ${unicorn.version}`;
  return [
    `Node ${machine.node}, ${machine.cpu}, ${peer}`,
    `CPU time, medians of ${machine.rounds} rounds; ratios are speeds, fentrylab over Unicorn within a round.`,
    "",
    ...table([HEAD, ...speedRows(report), ...snapshotRows(report)]),
    "",
    `Snapshots are of ${snapshots.vcpus} vCPUs, of which one dirties a line on each page, which is counted; "ten new" pages are`,
    "others each time. Unicorn saves a context, copies the ten pages out and back, restores the context.",
    `A kept snapshot that differs on ten pages occupies ${Math.round(snapshots.bytesPerSnapshot)} bytes.`,
    "",
  ].join("\n");
}

function speedRows({ workloads, stepping, ratios }: EngineReport): string[][] {
  const running = WORKLOADS.flatMap((name) => {
    const { instructionsPerIteration: count, fentrylab, unicorn } = workloads[name];
    return [
      row(`run ${name}`, "MIPS", fentrylab.mips, unicorn?.mips, ratios?.workloads[name]),
      row(`  ${count} instructions`, "ns", fentrylab.nsPerIteration, unicorn?.nsPerIteration),
    ];
  });
  const stepped = WORKLOADS.map((name) => {
    const { fentrylab, unicorn } = stepping[name];
    const millions = (speed: StepSpeed) => scaled(speed.stepsPerSecond, 1e-6);
    const peer = unicorn && millions(unicorn);
    return row(`step ${name}`, "M/s", millions(fentrylab), peer, ratios?.stepping[name]);
  });
  return [...running, ...stepped];
}

function snapshotRows({ snapshots: { costs } }: EngineReport): string[][] {
  return (Object.keys(SNAPSHOT_ROWS) as SnapshotRow[]).map((name) => {
    const { fentrylab, unicorn, ratio } = costs[name];
    return row(SNAPSHOT_ROWS[name], "µs", fentrylab, unicorn, ratio);
  });
}

function row(what: string, unit: string, own: Spread, peer?: Spread, over?: Spread): string[] {
  return [what, unit, ...cells(own, 1), ...cells(peer, 1), ...cells(over, 2)];
}

function cells(of: Spread | undefined, digits: number): [string, string] {
  if (of === undefined) return ["", ""];
  return [of.median.toFixed(digits), `${of.min.toFixed(digits)}..${of.max.toFixed(digits)}`];
}

function scaled({ median, min, max }: Spread, by: number): Spread {
  return { median: median * by, min: min * by, max: max * by };
}

/** Columns aligned: words to the left, figures to the right. */
function table(rows: readonly string[][]): string[] {
  const widths = HEAD.map((_, column) => Math.max(...rows.map((cells) => cells[column]!.length)));
  return rows.map((cells) =>
    cells
      .map((text, n) => (n < 2 ? text.padEnd(widths[n]!) : text.padStart(widths[n]!)))
      .join("  ")
      .trimEnd(),
  );
}
