// The audit of what is built in: every walker, at rest everywhere, preempted where it is quick; and an unwinder of
// somebody else's.

import { beforeAll, describe, expect, test } from "vitest";
import { needlessDoubt, runAudit } from "../../src/audit.ts";
import type { AuditReport } from "../../src/report/audit.ts";
import { renderAudit } from "../../src/report/audit.ts";
import { framePointerUnwinder } from "../../src/unwind/framePointer.ts";
import { guessUnwinder } from "../../src/unwind/guess.ts";
import { orcUnwinder } from "../../src/unwind/orcWalker.ts";
import type { Unwinder } from "../../src/unwind/walk.ts";
import { Workloads } from "../../src/workloads.ts";

let workloads: Workloads;

beforeAll(async () => {
  workloads = await Workloads.open();
});

const AT_REST = { atRest: true, preempted: false };
const PREEMPTED = { atRest: false, preempted: true };
/** Calls of some hundred instructions at most. */
const QUICK = /^(leaf|tail|through|sys_read|fault|nap|test_(bits|switch|variable_frame|overflow) )/;

/** An audit of the workloads whose names match. */
function audit(unwinder: Unwinder, options: typeof AT_REST, names: RegExp): Promise<AuditReport> {
  const { lab, subject, functions } = workloads;
  return runAudit({ lab, subject, functions, each: () => pick(names) }, unwinder, options);
}

/** One at a time: what the sites do changes in between. */
function* pick(names: RegExp) {
  for (const workload of workloads.each())
    if (names.test(workload.name) && !workload.interrupted) yield workload;
}

const sum = (verdicts: object) => Object.values(verdicts).reduce((total, count) => total + count, 0);

describe("ORC", () => {
  test("at rest it is right wherever it claims to be, and claims it wherever it can", async () => {
    const report = await runAudit(workloads, orcUnwinder, AT_REST);
    expect(report.unfinished).toEqual([]);
    expect(report.violations).toEqual([]);
    expect(report.verdicts.reliableWrong).toBe(0);
    // What is entered from user mode, and an NMI in an NMI, are others' to reach: patients.test.ts, test/kernel/nmi.test.ts.
    const elsewhere = /^(entry_SYSCALL_64|return_to_user|return_by_iret|ret_from_fork|asm_exc_nmi)\+/;
    const { instructions, missed } = report.coverage;
    const own = missed.filter((place) => !elsewhere.test(place)).length;
    expect((instructions - own) / instructions).toBeGreaterThanOrEqual(0.95);
    expect(needlessDoubt(report)).toBeLessThan(0.01);
    expect(report.modes.atRest.reliableRight).toBeGreaterThan(200_000);
    expect(report.modes.sleeping.reliableRight).toBeGreaterThan(10);
    expect(sum(report.modes.atRest)).toBe(report.boundaries);
    // What it leaves open is declared in the assembly, or waits for what is: all of it below a return trampoline.
    const open = report.wrong.filter(
      ({ doubt }) => !/return_to_handler|rethook_trampoline|switch_to/.test(doubt!),
    );
    expect(open).toEqual([]);
    expect(renderAudit(report)).toContain("No walk claimed to be reliable and was wrong.");
  });

  test("preempted as well, and from inside an NMI", async () => {
    const report = await audit(orcUnwinder, PREEMPTED, QUICK);
    expect(report.violations).toEqual([]);
    expect(report.unfinished).toEqual([]);
    expect(report.modes.preempted.reliableRight).toBeGreaterThan(10_000);
    expect(report.modes.nmi.reliableRight).toBeGreaterThan(300);
    expect(sum(report.modes.preempted) + sum(report.modes.nmi)).toBeGreaterThan(0.99 * report.boundaries);
  });
});

describe("frame pointers", () => {
  test("are never reliable from live registers, nor across an interrupt; asleep they are, and right", async () => {
    const atRest = await audit(framePointerUnwinder, AT_REST, QUICK);
    expect(atRest.modes.atRest).toMatchObject({ reliableRight: 0, reliableWrong: 0 });
    expect(atRest.modes.atRest.unreliableRight).toBeGreaterThan(1000);
    expect(atRest.modes.atRest.unreliableWrong).toBeGreaterThan(1000);
    expect(atRest.modes.sleeping.reliableWrong).toBe(0);
    expect(atRest.modes.sleeping.reliableRight).toBeGreaterThan(0);
    const preempted = await audit(framePointerUnwinder, PREEMPTED, /^(leaf|nap)/);
    expect(preempted.modes.preempted).toMatchObject({ reliableRight: 0, reliableWrong: 0 });
    expect(preempted.violations).toEqual([]);
  });
});

test("a guess is never reliable", async () => {
  const { verdicts } = await audit(guessUnwinder, AT_REST, /^(tail|sys_read)/);
  expect(verdicts).toMatchObject({ reliableRight: 0, reliableWrong: 0 });
  expect(verdicts.unreliableRight + verdicts.unreliableWrong).toBeGreaterThan(500);
});

test("somebody else's unwinder is audited the same way, and found out with both stacks", async () => {
  const careless: Unwinder = {
    name: "careless",
    walk: (context, start) => ({ frames: orcUnwinder.walk(context, start).frames.slice(1), doubt: null }),
  };
  const report = await audit(careless, AT_REST, /^tail/);
  expect(report.unwinder).toBe("careless");
  const leaf = report.violations.find(({ place }) => place.startsWith("leaf+0x5"))!;
  expect(leaf).toMatchObject({ mode: "atRest", verdict: "reliableWrong", walked: [] });
  expect(leaf.true).toEqual([expect.stringMatching(/^lab_call\+0x4/)]);
  expect(leaf.code.some((line) => line.startsWith("> leaf+0x5"))).toBe(true);
  expect(renderAudit(report)).toMatch(/VIOLATED at \d+ places/);
});
