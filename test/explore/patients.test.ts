// The audit of the kernel with all its patients: interrupted, preempted, moved from CPU to CPU, forking and exiting, every
// boundary that a CPU passes in the kernel is one at which a walk that claims to be reliable has to be right.

import { describe, expect, test } from "vitest";
import { needlessDoubt, runPatientsAudit } from "../../src/audit.ts";
import { Patients } from "../../src/patients.ts";
import type { AuditReport } from "../../src/report/audit.ts";
import { framePointerUnwinder } from "../../src/unwind/framePointer.ts";
import { orcUnwinder } from "../../src/unwind/orcWalker.ts";
import type { Unwinder } from "../../src/unwind/walk.ts";

const AT_REST = { atRest: true, preempted: false };
const PREEMPTED = { atRest: false, preempted: true };
/** Enough for a run to its end. */
const ALL = 3_000_000;

async function audit(
  unwinder: Unwinder,
  options: typeof AT_REST,
  vcpus: number,
  seed: number,
  budget = ALL,
): Promise<AuditReport> {
  const patients = await Patients.open({ vcpus, recordCalls: true });
  const report = await runPatientsAudit({ patients, seed, budget }, unwinder, options);
  if (budget === ALL) expect([patients.failures, patients.unfinished]).toEqual([0, undefined]);
  patients.lab.dispose();
  expect(report.unfinished).toEqual([]);
  return report;
}

/** Places where a doubt is what the assembly declares, or comes of that: a system call's ends, the middle of a switch. */
const DECLARED = /entry_SYSCALL_64\+|switch_to\+0x12\//;

function expectSound(report: AuditReport): void {
  expect(report.violations).toEqual([]);
  expect(report.verdicts.reliableWrong).toBe(0);
  expect(report.modes.atRest.reliableRight + report.modes.nmi.reliableRight).toBeGreaterThan(10_000);
}

describe("ORC, at rest", () => {
  const missed: Set<string>[] = [];

  test.each([
    [1, 1],
    [2, 2],
    [4, 3],
  ])(
    "%i vCPUs, seed %i: right wherever it claims to be, and in doubt only where the assembly is",
    async (vcpus, seed) => {
      const report = await audit(orcUnwinder, AT_REST, vcpus, seed);
      expectSound(report);
      expect(needlessDoubt(report)).toBeLessThan(0.001);
      for (const { place, doubt } of report.places) expect(`${place} ${doubt}`).toMatch(DECLARED);
      missed.push(new Set(report.coverage.missed));
    },
  );

  test("nearly all of the kernel's code for system calls, interrupts, switches and exits was passed", () => {
    const never = [...missed[0]!].filter((place) => missed.every((one) => one.has(place)));
    const of = (names: RegExp) => never.filter((place) => names.test(place));
    // But for an NMI in an NMI, which test/kernel/nmi.test.ts has.
    expect(
      of(
        /^(entry_SYSCALL_64|return_to_user|return_by_iret|return_from_exc|interrupt_common|ret_from|switch_to)\+/,
      ),
    ).toEqual([]);
    expect(
      of(
        /^(do_syscall_64|exit_to_user_mode|do_signal|schedule|__schedule|try_to_wake_up|do_exit|sys_clone)\+/,
      ).length,
    ).toBeLessThan(200); // errors, and what no signal here does
  });
});

describe.each([orcUnwinder, framePointerUnwinder])("$name, preempted and from inside NMIs", (unwinder) => {
  test.each([
    [1, 5],
    [3, 6],
  ])("%i vCPUs, seed %i: nothing that claims to be reliable is wrong", async (vcpus, seed) => {
    const report = await audit(unwinder, PREEMPTED, vcpus, seed, 30_000);
    expect(report.violations).toEqual([]);
    const { preempted, nmi } = report.modes;
    const walks = (verdicts: typeof nmi) => Object.values(verdicts).reduce((sum, count) => sum + count, 0);
    expect(walks(preempted)).toBeGreaterThan(1_500);
    expect(walks(nmi)).toBeGreaterThan(5_000);
    if (unwinder === orcUnwinder)
      for (const { place, doubt } of report.places) expect(`${place} ${doubt}`).toMatch(DECLARED);
  });
});
