// The audit as a whole: an unwinder over workloads, and what came of it in words.

import type { Addr } from "./base/addr.ts";
import { Refusal } from "./base/refuse.ts";
import { Audit, type AuditOptions, type Workload } from "./explore/audit.ts";
import { seeded } from "./explore/chooser.ts";
import { CELLS, type Findings, MODES, type Place } from "./explore/findings.ts";
import { Subject } from "./explore/subject.ts";
import type { Lab } from "./lab.ts";
import type { Patients } from "./patients.ts";
import type { AuditReport, CoverageFact, WrongFact } from "./report/audit.ts";
import { DOUBTS, type Unwinder } from "./unwind/walk.ts";
import { decode } from "./x86/decode.ts";
import { type Disassembler, loadDisassembler } from "./x86/disassemble.ts";

/** A system that is audited. */
export interface AuditedSystem {
  readonly lab: Lab;
  readonly subject: Subject;
  /** Functions of which every instruction is to be reached. */
  readonly functions: readonly { readonly address: Addr; readonly size: number }[];
}

/** What is audited, one call after another. */
export interface Audited extends AuditedSystem {
  each(): Iterable<Workload>;
}

/** A run of everybody: whose, by which choices, and how far. */
export interface AuditedRun {
  readonly patients: Patients;
  readonly seed: number;
  readonly budget: number;
}

/** Instructions shown before and behind a place. */
const AROUND = 3;

/** Audits `unwinder` at every boundary of every workload. */
export async function runAudit(
  audited: Audited,
  unwinder: Unwinder,
  options: AuditOptions,
): Promise<AuditReport> {
  const audit = new Audit(audited.subject, unwinder, options);
  const unfinished: string[] = [];
  for (const workload of audited.each()) {
    const before = audited.lab.machine.snapshot();
    try {
      audit.run(workload);
    } catch (error) {
      if (!(error instanceof Refusal) || error.code !== "audit-astray") throw error;
      unfinished.push(error.message);
      audited.lab.machine.restore(before);
    }
    before.dispose();
  }
  return new Reporter(audited, audit.findings, await loadDisassembler()).report(unwinder.name, unfinished);
}

/** Audits `unwinder` at every boundary of the kernel's in a run of all its patients, whatever interrupts them. */
export async function runPatientsAudit(
  { patients, seed, budget }: AuditedRun,
  unwinder: Unwinder,
  options: AuditOptions,
): Promise<AuditReport> {
  const { lab, module } = patients;
  const { machine, kernel, ftrace, unwinding } = lab;
  const subject = new Subject({ machine, kernel, ftrace, unwinding });
  const audit = new Audit(subject, unwinder, options);
  const name = `seed ${seed}, ${machine.vcpus.length} vCPUs`;
  const conductor = lab.conductor({ chooser: seeded(seed), execute: audit.executor(name) });
  patients.begin();
  const end = conductor.run({ budget });
  const unfinished = end.kind === "oops" || end.kind === "hang" ? [`${name}: ${end.text}`] : [];
  const functions = [lab.image, module].flatMap(({ symbols }) =>
    symbols.filter(({ kind }) => kind === "func"),
  );
  const reporter = new Reporter({ lab, subject, functions }, audit.findings, await loadDisassembler());
  return reporter.report(unwinder.name, unfinished);
}

class Reporter {
  private readonly audited: AuditedSystem;
  private readonly findings: Findings;
  private readonly disassembler: Disassembler;

  constructor(audited: AuditedSystem, findings: Findings, disassembler: Disassembler) {
    this.audited = audited;
    this.findings = findings;
    this.disassembler = disassembler;
  }

  report(unwinder: string, unfinished: readonly string[]): AuditReport {
    const { findings } = this;
    const wrong = findings.places
      .filter(({ cell }) => cell.endsWith("Wrong"))
      .map((place) => this.wrong(place));
    return {
      unwinder,
      boundaries: findings.boundaries,
      unfinished,
      coverage: this.coverage(),
      verdicts: findings.total,
      modes: findings.verdicts,
      places: findings.places.map((place) => ({
        mode: place.mode,
        verdict: place.cell,
        place: this.describe(place.at),
        count: place.count,
        declaredUndefined: place.declared,
        doubt: this.doubt(place),
      })),
      violations: wrong.filter(({ verdict }) => verdict === "reliableWrong"),
      wrong: wrong.filter(({ verdict }) => verdict !== "reliableWrong"),
    };
  }

  private coverage(): CoverageFact {
    const { reached } = this.findings;
    const missed: Addr[] = [];
    let instructions = 0;
    for (const { address, size } of this.audited.functions) {
      for (const at of this.instructionsOf(address, size)) {
        instructions++;
        if (!reached.has(at)) missed.push(at);
      }
    }
    return {
      instructions,
      reached: instructions - missed.length,
      percent: instructions === 0 ? 0 : (100 * (instructions - missed.length)) / instructions,
      missed: missed.map((at) => this.describe(at)),
    };
  }

  private instructionsOf(address: Addr, size: number): Addr[] {
    const { memory } = this.audited.lab.machine;
    const bytes = memory.read(address, size);
    const starts: Addr[] = [];
    for (let from = 0; from < size; ) {
      const at = (address + from) as Addr;
      starts.push(at);
      const decoded = decode(bytes.subarray(from), at);
      from += decoded.kind === "instruction" ? decoded.instruction.length : 1;
    }
    return starts;
  }

  private wrong(place: Place): WrongFact {
    const { walk, truth, workload } = place.example;
    return {
      mode: place.mode,
      verdict: place.cell === "reliableWrong" ? "reliableWrong" : "unreliableWrong",
      place: this.describe(place.at),
      count: place.count,
      workload,
      doubt: this.doubt(place),
      walked: walk.frames.map(({ address }) => this.describe(address)),
      true: truth.map((address) => (address === undefined ? "(unmapped)" : this.describe(address))),
      code: this.around(place.at),
    };
  }

  private doubt({ example }: Place): string | null {
    const { doubt } = example.walk;
    return doubt === null ? null : `${DOUBTS[doubt.why]} (${this.describe(doubt.at)})`;
  }

  /** The instruction at `at` with its neighbours. */
  private around(at: Addr): string[] {
    const { lab } = this.audited;
    const range = lab.code.rangeAt(at)?.range ?? lab.code.symbolAt(at)?.symbol;
    if (range === undefined) return [];
    const name = (to: Addr) => lab.code.symbolAt(to)?.symbol.name;
    const bytes = lab.machine.memory.read(range.address, range.size);
    const lines = this.disassembler.disassemble(bytes, range.address, name);
    const index = lines.findIndex((line) => line.at === at);
    return lines
      .slice(Math.max(0, index - AROUND), index + AROUND + 1)
      .map((line) => `${line.at === at ? ">" : " "} ${this.describe(line.at)}  ${line.text}`);
  }

  private describe(at: Addr): string {
    return this.audited.lab.code.describe(at);
  }
}

/** Share of walks at rest that were right and not claimed to be reliable, where the assembly declares nothing unknown. */
export function needlessDoubt(report: AuditReport): number {
  const walks = CELLS.reduce((sum, cell) => sum + report.modes.atRest[cell], 0);
  const needless = report.places
    .filter(
      (place) => place.mode === MODES[0] && place.verdict === "unreliableRight" && !place.declaredUndefined,
    )
    .reduce((sum, { count }) => sum + count, 0);
  return walks === 0 ? 0 : needless / walks;
}
