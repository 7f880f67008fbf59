// What the README shows of the tour, and of a run with patches, is what is printed.

import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { packagePath } from "../../src/base/file.ts";
import { renderTour } from "../../src/report/tour.ts";
import { gatherTour } from "../../src/tour.ts";
import { command } from "../cli/command.ts";

const README = readFileSync(packagePath("README.md"), "utf8");

test("the run with patches ends as the README has it", async () => {
  const [, args = "", shown = ""] =
    /^ {4}\$ npx fentrylab (run --patches .*)\n {4}\.\.\.\n((?: {4}.*\n)+)/m.exec(README) ?? [];
  const { status, stdout } = await command(...args.split(" "));
  expect(status).toBe(0);
  expect(shown).toMatch(/^ {4}At its end /);
  expect(stdout).toContain(shown.replaceAll(/^ {4}/gm, ""));
});

test("every line of the README's excerpt is printed, in that order", async () => {
  const excerpt = /^```\n([\s\S]*?)^```/m.exec(README)?.[1];
  const lines = (excerpt ?? expect.fail("the README has no excerpt"))
    .split("\n")
    .filter((line) => line !== "");
  expect(lines.length).toBeGreaterThan(8);
  const printed = renderTour(await gatherTour()).split("\n");
  let from = 0;
  for (const line of lines) {
    const at = printed.indexOf(line, from);
    expect(at, line).toBeGreaterThanOrEqual(from);
    from = at + 1;
  }
});
