// fentrylab audit [--unwinder orc|frame|guess|FILE] [--mode at-rest|preempted|both] [--image FILE...] [--call CALL...]
//   [--patients [--vcpus N] [--budget N] [--seed N]]

import { resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { type AuditedRun, runAudit, runPatientsAudit } from "../audit.ts";
import { refuse } from "../base/refuse.ts";
import { Patients } from "../patients.ts";
import { renderAudit } from "../report/audit.ts";
import { framePointerUnwinder } from "../unwind/framePointer.ts";
import { guessUnwinder } from "../unwind/guess.ts";
import { orcUnwinder } from "../unwind/orcWalker.ts";
import type { Unwinder } from "../unwind/walk.ts";
import { Workloads } from "../workloads.ts";
import { type CommonOptions, printJson } from "./option.ts";

const UNWINDERS: readonly Unwinder[] = [orcUnwinder, framePointerUnwinder, guessUnwinder];
const MODES: Readonly<Record<string, { readonly atRest: boolean; readonly preempted: boolean }>> = {
  "at-rest": { atRest: true, preempted: false },
  preempted: { atRest: false, preempted: true },
  both: { atRest: true, preempted: true },
};

interface AuditCommandOptions extends CommonOptions {
  readonly unwinder: string;
  readonly mode: string;
  readonly image?: readonly string[];
  readonly call?: readonly string[];
  readonly patients?: boolean;
  readonly vcpus: number;
  readonly budget: number;
}

/** False if a walk claimed to be reliable and was wrong. */
export async function printAudit(options: AuditCommandOptions): Promise<boolean> {
  const { json, unwinder, mode, image = [], call = [] } = options;
  const modes = MODES[mode] ?? refuse("unknown-mode", { mode, known: Object.keys(MODES).join(", ") });
  const chosen = UNWINDERS.find(({ name }) => name === unwinder) ?? (await importUnwinder(unwinder));
  if (image.length === 0 && call.length > 0) refuse("call-without-image", {});
  if (image.length > 0 && options.patients) refuse("patients-and-image", {});
  const audited = { ...modes, onProgress: progress };
  const report = options.patients
    ? await runPatientsAudit(await patientsRun(options), chosen, audited)
    : await runAudit(
        image.length === 0 ? await Workloads.open() : await Workloads.ofImages(image, call),
        chosen,
        audited,
      );
  if (process.stderr.isTTY) process.stderr.write("\r\x1b[K");
  if (json) printJson(report);
  else process.stdout.write(renderAudit(report));
  return report.violations.length === 0;
}

async function patientsRun({ vcpus, seed, budget }: AuditCommandOptions): Promise<AuditedRun> {
  return { patients: await Patients.open({ vcpus, recordCalls: true }), seed, budget };
}

/** A walk function that a module exports as its default. */
async function importUnwinder(path: string): Promise<Unwinder> {
  const known = UNWINDERS.map(({ name }) => name).join(", ");
  if (!/\.[cm]?[jt]s$/.test(path)) refuse("unknown-unwinder", { name: path, known });
  try {
    const { default: walk } = (await import(pathToFileURL(resolve(path)).href)) as { default?: unknown };
    if (typeof walk === "function") return { name: path, walk: walk as Unwinder["walk"] };
  } catch (error) {
    refuse("unwinder-import", { path, why: error instanceof Error ? error.message : String(error) });
  }
  return refuse("unwinder-import", { path, why: "it has no default export that is a function" });
}

function progress(boundaries: number, workload: string): void {
  if (process.stderr.isTTY)
    process.stderr.write(`\r\x1b[K${boundaries} boundaries, ${workload.slice(0, 60)}`);
}
