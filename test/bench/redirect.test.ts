// What redirected calls may cost: no more than in the kernel that was measured, and next to nothing once all is patched.

import { readFileSync } from "node:fs";
import { beforeAll, expect, test } from "vitest";
import {
  benchRedirect,
  type RedirectReport,
  type RedirectRow,
  renderRedirectReport,
} from "../../bench/redirect.ts";
import { packagePath } from "../../src/base/file.ts";
import { command } from "../cli/command.ts";

let report: RedirectReport;

beforeAll(async () => {
  report = await benchRedirect();
});

function row(kind: string, state: string) {
  const found = report.rows.find((each) => each.kind === kind && each.state === state);
  return found ?? expect.fail(`no row for ${kind}, ${state}`);
}

test("no state costs more than in Linux", () => {
  const compared = report.rows.filter(({ linux }) => linux !== null);
  expect(compared.map(({ state, linux }) => [state, linux])).toEqual([
    ["no site", -1],
    ["NOP", 0],
    ["plain", 35],
    ["registers", 61],
    ["guarded", 88],
    ["two ops", 218],
    ["three ops", 284],
    ["four ops", 350],
    ["two ops, registers", 240],
    ["idle", 79],
    ["idle, and one ops", 772],
    ["fully patched", 79],
    ["fully patched, and one ops", 772],
  ]);
  for (const { state, over, linux } of compared) expect(over, state).toBeLessThanOrEqual(linux!);
  // Within a transition nothing was measured there: it does what it does outside, and more.
  const { linux } = row("redirect", "idle");
  for (const state of ["in transition, to old", "in transition, to new"])
    expect(row("redirect", state).over, state).toBeLessThanOrEqual(linux!);
});

test("a patched function costs at most 6 instructions more than an unpatched one, and no handler", () => {
  const settled = row("redirect", "fully patched");
  expect(settled.over).toBeLessThanOrEqual(6);
  expect(settled.parts.map(({ where }) => where)).toEqual(["leaf", "leaf_new"]);
  expect(row("redirect", "idle").parts.map(({ where }) => where)).toContain("klp_ftrace_handler");
});

test("each state executes the body that it should", () => {
  const old = report.rows.filter(({ body }) => body === "old").map(({ kind }) => kind);
  expect(new Set(old)).toEqual(new Set(["off", "trace", "direct", "return", "redirect"]));
  const redirected = report.rows.filter(({ kind }) => kind === "redirect");
  expect(redirected.filter(({ body }) => body === "old").map(({ state }) => state)).toEqual([
    "in transition, to old",
  ]);
});

test("what is counted of a call with a NOP can be counted by hand", () => {
  // nopl 0(%rax,%rax,1); lea 1(%rdi),%rax; ret
  expect(row("off", "NOP")).toEqual({
    ...{ kind: "off", state: "NOP", body: "old", over: 0, linux: 0 },
    ...{ instructions: 3, reads: 1, writes: 0, branches: 1, bytes: 5 + 4 + 1 },
    parts: [{ where: "leaf", instructions: 3 }],
  });
  // call direct_stub; ret; lea 1(%rdi),%rax; ret
  expect(row("direct", "alone")).toMatchObject({
    ...{ instructions: 4, reads: 2, writes: 1, branches: 3, bytes: 5 + 1 + 4 + 1 },
    parts: [
      { where: "leaf", instructions: 3 },
      { where: "direct_stub", instructions: 1 },
    ],
  });
});

test("the parts are all there is", () => {
  for (const { state, instructions, parts } of report.rows)
    expect(
      parts.reduce((sum, part) => sum + part.instructions, 0),
      state,
    ).toBe(instructions);
});

test("it is the same every time, and no seed or clock is in it", async () => {
  expect(await benchRedirect()).toEqual(report);
});

test("the README has the table that is printed", () => {
  const [, table = ""] = renderRedirectReport(report).split("\n\n");
  const indented = table.trimEnd().replaceAll(/^/gm, "    ");
  expect(readFileSync(packagePath("README.md"), "utf8")).toContain(`\n\n${indented}\n\n`);
});

test("what the README says the instructions are for adds up to what is executed", () => {
  const readme = readFileSync(packagePath("README.md"), "utf8");
  const [, table = ""] = /\| instructions \| plain .*\n\| ---.*\n((?:\|.*\n)*)/.exec(readme) ?? [];
  const rows = table.trimEnd().split("\n");
  const sums = [2, 3, 4].map((column) =>
    rows.reduce((sum, line) => sum + Number(line.split("|")[column]), 0),
  );
  const trampoline = ({ parts }: RedirectRow) =>
    parts.find(({ where }) => where.startsWith("copy of "))?.instructions;
  const states = [row("trace", "plain"), row("redirect", "idle"), row("trace", "registers")];
  expect(sums).toEqual(states.map(trampoline));
  const handler = row("redirect", "idle").parts.find(({ where }) => where === "klp_ftrace_handler");
  expect(readme).toContain(`The live-patch handler's ${handler?.instructions} are 1 `);
});

test("the command prints both, and only that", async () => {
  const text = renderRedirectReport(report);
  for (const line of text.split("\n")) expect(line).toBe(line.trimEnd());
  for (const { state, instructions } of report.rows)
    expect(text).toMatch(RegExp(`  ${state} +${instructions} `));
  expect(await command("bench", "redirect")).toEqual({ status: 0, stdout: text, stderr: "" });
  const { stdout } = await command("bench", "redirect", "--json");
  expect(JSON.parse(stdout)).toEqual(report);
});
