// `fentrylab check-trampoline`: its document, its exit status, what it prints, what it refuses.

import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { CLAUSE_NAMES } from "../../src/explore/trampoline/contract.ts";
import type { TrampolineReport } from "../../src/report/trampoline.ts";
import { command, Scratch } from "./command.ts";

const scratch = new Scratch();
afterAll(() => scratch.remove());

const check = (file: string, ...options: string[]) =>
  command("check-trampoline", file, "--cases", "20", ...options);

test("one document on stdout: every clause with what was executed, coverage, cost", async () => {
  const { status, stdout, stderr } = await check("asm/trampolines/good.S", "--regs", "--json");
  expect([status, stderr]).toEqual([0, ""]);
  const report = JSON.parse(stdout) as TrampolineReport;
  expect(report).toMatchObject({
    trampoline: "trampoline of asm/trampolines/good.S",
    contract: "ftrace_regs_caller",
    holds: true,
    coverage: { missed: [] },
  });
  expect(report.clauses.map(({ name }) => name)).toEqual(CLAUSE_NAMES);
  for (const clause of report.clauses)
    expect(clause).toEqual({
      name: expect.any(String),
      promise: expect.any(String),
      holds: true,
      evidence: { executed: expect.stringMatching(/\d/), problem: null },
    });
  const number = expect.any(Number);
  expect(report.cost).toEqual({
    instructions: number,
    bytes: number,
    reads: number,
    writes: number,
    branches: number,
  });
});

test("a clause that fails is status 1, with the instruction and the state", async () => {
  const file = scratch.file(
    "keeps-less.S",
    `.include "macros.inc"
.text
untraced mine
	push %rdi
	mov %rsp, %rdi
	pop %rdi
	ret
done mine
`,
  );
  const { status, stdout } = await check(file, "--json");
  expect(status).toBe(1);
  const { clauses } = JSON.parse(stdout) as TrampolineReport;
  expect(clauses.find(({ holds }) => holds === false)).toMatchObject({
    name: "arguments",
    evidence: { problem: { why: "the handler was not called", instruction: "retq", seed: 0, state: [] } },
  });
});

test("registers that differ are shown, as found and as expected, and with which seed", async () => {
  const text = scratch.file(
    "swaps.S",
    `.include "macros.inc"
.text
untraced mine
	xchg %r8, %r9
	ret
done mine
`,
  );
  const { status, stdout } = await check(text, "--seed", "7");
  expect(status).toBe(1);
  expect(stdout).toMatch(/^registers +FAILS +20 register states$/m);
  expect(stdout).toMatch(/a register is not as it was at the site \(state 7\)/);
  expect(stdout).toMatch(
    /^ +found +expected\n +r8 +0x[0-9a-f]+ +0x[0-9a-f]+\n +r9 +0x[0-9a-f]+ +0x[0-9a-f]+$/m,
  );
  expect(stdout).toMatch(/^NOT KEPT: registers, .*Look at the first one first\.$/m);
});

test("what cannot be said is open, and says why", async () => {
  const file = scratch.file("stops.S", `.include "macros.inc"\n.text\nuntraced mine\n\thlt\ndone mine\n`);
  const { status, stdout } = await check(file);
  expect(status).toBe(1);
  expect(stdout).toMatch(/^unwind +open +nothing: /m);
  expect(stdout).toMatch(/^ends +FAILS/m);
});

test("a trampoline that breaks the kernel's structures is found out, not the end", async () => {
  const file = scratch.file(
    "breaks.S",
    `.include "macros.inc"\n.text\nuntraced mine\n\tmovq $1234, %gs:CPU_CURRENT\n\tret\ndone mine\n`,
  );
  const { status, stderr } = await check(file);
  expect([status, stderr]).toEqual([1, ""]);
});

describe("refuses, in one line", () => {
  const source = (name: string, text: string) => scratch.file(name, `.include "macros.inc"\n.text\n${text}`);
  const folder = join(scratch.folder, "folder.S");
  mkdirSync(folder);

  test.for([
    ["nowhere.S", /^fentrylab: nowhere\.S cannot be read \(ENOENT\); check the path\n$/],
    [folder, /cannot be read \(EISDIR\); check the path\n$/],
    [
      "fixtures/string.o",
      /^fentrylab: fixtures\/string\.o is no assembly source; give a \.S file in GNU syntax\n$/,
    ],
    [scratch.file("empty.S", ""), /empty\.S has no global function in \.text; begin it with `untraced NAME`/],
    [source("local.S", "f:\n\tret\n"), /local\.S has no global function/],
    [source("bare.S", ".globl f\n.type f, @function\nf:\n"), /bare\.S has no global function/],
    [
      source("two.S", "untraced one\n\tret\ndone one\nuntraced two\n\tret\ndone two\n"),
      /two\.S has several global functions, one, two; call the one that sites are to call `trampoline`/,
    ],
    [source("bad.S", "untraced f\n\tmov %rax, %nope\n\tret\ndone f\n"), /bad\.S:4: .*mend that line/],
    [
      source("wants.S", "untraced f\n\tcall absent\n\tret\ndone f\n"),
      /wants\.S \.text\+0x1 refers to 'absent', which nothing loaded defines/,
    ],
  ] as const)("%s", async ([file, line]) => {
    const { status, stdout, stderr } = await check(file);
    expect([status, stdout]).toEqual([2, ""]);
    expect(stderr).toMatch(line);
    expect(stderr.trim().split("\n")).toHaveLength(1);
  });

  test("--cases 0", async () => {
    const { status, stderr } = await command("check-trampoline", "asm/trampolines/good.S", "--cases", "0");
    expect(status).toBe(2);
    expect(stderr).toBe(
      "fentrylab: --cases wants a whole number from 1 up, not '0'; write it in decimal digits\n",
    );
  });
});
