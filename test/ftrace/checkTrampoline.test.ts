// The check of trampolines: what holds does so for reasons that were executed, what is wrong is found where it is wrong.

import { readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { packagePath } from "../../src/base/file.ts";
import { CLAUSE_NAMES } from "../../src/explore/trampoline/contract.ts";
import { TEMPLATES, type TemplateKind } from "../../src/ftrace/trampoline.ts";
import type { ProblemFact, TrampolineReport } from "../../src/report/trampoline.ts";
import { TrampolineChecker } from "../../src/trampolineCheck.ts";
import { MUTANTS, mutate } from "./mutants.ts";

const PATH = packagePath("asm/trampolines/good.S");
const GOOD = readFileSync(PATH, "utf8");
const OPTIONS = { cases: 200, seed: 0 };

let checker: TrampolineChecker;
beforeAll(async () => {
  checker = await TrampolineChecker.open();
});
afterAll(() => checker.dispose());

const check = (name: string, kind: TemplateKind, options = OPTIONS) =>
  checker.source(packagePath(`asm/trampolines/${name}.S`), kind, options);
const failed = ({ clauses }: TrampolineReport) =>
  clauses.filter(({ holds }) => holds !== true).map(({ name }) => name);

describe.each(["good", "fast"])("%s.S", (name) => {
  test("keeps every clause, and every instruction of it was executed", async () => {
    const report = await check(name, "regs");
    expect(failed(report)).toEqual([]);
    expect(report.holds).toBe(true);
    expect(report.clauses.map((clause) => clause.name)).toEqual(CLAUSE_NAMES);
    expect(report.coverage.missed).toEqual([]);
  });

  test.each(["plain", "ipmodify"] as const)("keeps the %s contract, which asks for less", async (kind) => {
    expect(failed(await check(name, kind))).toEqual([]);
  });

  test("is found the same by another seed", async () => {
    expect(failed(await check(name, "regs", { cases: 50, seed: 123_456 }))).toEqual([]);
  });
});

test("fast.S takes fewer instructions and bytes than good.S", async () => {
  const [good, fast] = [await check("good", "regs"), await check("fast", "regs")];
  expect(fast.cost!.instructions).toBeLessThan(good.cost!.instructions);
  expect(fast.cost!.bytes).toBeLessThan(good.cost!.bytes);
});

test("wrong.S passes for every register state, and fails where an interrupt comes to its last instructions", async () => {
  const report = await check("wrong", "regs");
  expect(failed(report)).toEqual(["interrupted", "reentered", "poked"]);
  const { problem } = report.clauses.find(({ name }) => name === "interrupted")!.evidence;
  expect(problem!.why).toMatch(/^a timer interrupt came before this instruction: #PF/);
  expect(problem!.place).toMatch(/^trampoline\+0x[0-9a-f]+\/0x[0-9a-f]+ \[wrong/);
  expect(problem!.instruction).toBe("popfq");
});

test("what a clause was held against is told in numbers", async () => {
  const { clauses } = await check("good", "regs");
  const executed = Object.fromEntries(clauses.map(({ name, evidence }) => [name, evidence.executed]));
  expect(executed.registers).toBe("200 register states");
  expect(executed.ip).toBe("200 calls that stay, 200 that are redirected");
  expect(executed.interrupted).toMatch(/^\d+ boundaries, \d+ interrupts, \d+ preemptions, [\d,]+ walks$/);
  expect(executed.reentered).toMatch(/^(\d+) boundaries, \1 calls from interrupts$/);
  expect(executed.recursion).toBe("3 calls inside one another, the handler called 3 times");
});

test("the same seed gives the same report, another check between", async () => {
  const first = await check("wrong", "regs");
  await check("good", "plain");
  const again = await check("wrong", "regs");
  const anonymous = (report: TrampolineReport) => JSON.stringify(report).replaceAll(/\[wrong( \d+)?\]/g, "");
  expect(anonymous(again)).toBe(anonymous(first));
});

test("the register state of a failure is the only one with its seed, and fails the same way", async () => {
  const text = mutate(GOOD, MUTANTS.find(({ mistake }) => mistake.includes("other flags"))!);
  const problemOf = async (options: { cases: number; seed: number }) => {
    const { clauses } = await checker.source(PATH, "regs", options, text);
    return clauses.find(({ name }) => name === "ends")!.evidence.problem!;
  };
  const [first, other] = [await problemOf({ cases: 40, seed: 0 }), await problemOf({ cases: 40, seed: 100 })];
  expect(other.seed).not.toBe(first.seed);
  for (const problem of [first, other]) {
    const again = await problemOf({ cases: 1, seed: problem.seed });
    const told = ({ why, place }: ProblemFact) => [why, place.replace(/ \[.*\]$/, "")];
    expect(told(again)).toEqual(told(problem));
  }
});

test("a trampoline that guards itself needs no guarded handler", async () => {
  const guards = mutate(GOOD, {
    mistake: "none",
    clause: "recursion",
    edits: [
      [
        "\tcall trampoline_handler\n",
        `	mov %gs:CPU_CURRENT, %rax
	btsl $GUARD, TASK_TRACE_RECURSION(%rax)
	jc 1f
	call trampoline_handler_unguarded
	mov %gs:CPU_CURRENT, %rax
	btrl $GUARD, TASK_TRACE_RECURSION(%rax)
1:
`,
      ],
      [".set INNER,", ".set GUARD, 31\n.set INNER,"],
    ],
  });
  const report = await checker.source(PATH, "regs", OPTIONS, guards);
  expect(failed(report)).toEqual([]);
  const { evidence } = report.clauses.find(({ name }) => name === "recursion")!;
  expect(evidence.executed).toBe("2 calls inside one another, the handler called 1 time");
});

describe("the kernel's own", () => {
  test.each(Object.keys(TEMPLATES) as TemplateKind[])("%s template keeps its contract", (kind) => {
    expect(failed(checker.template(kind, OPTIONS))).toEqual([]);
  });

  test.each(Object.entries(TEMPLATES) as [TemplateKind, string][])(
    "%s template costs what is said",
    (kind, name) => {
      const { cost } = checker.template(kind, { cases: 1, seed: 0 });
      const { instructions, reads, writes, branches, bytes } = cost!;
      const row = [
        "",
        ` \`${name}\` `,
        ...[instructions, reads, writes, branches, bytes].map((n) => ` ${n} `),
        "",
      ];
      expect(readFileSync(packagePath("docs/CHECK-TRAMPOLINE.md"), "utf8")).toContain(row.join("|"));
    },
  );
});
