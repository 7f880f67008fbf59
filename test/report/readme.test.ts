// What the README shows of the tour is what the tour prints.

import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { packagePath } from "../../src/base/file.ts";
import { renderTour } from "../../src/report/tour.ts";
import { gatherTour } from "../../src/tour.ts";

test("every line of the README's excerpt is printed, in that order", async () => {
  const excerpt = /^```\n([\s\S]*?)^```/m.exec(readFileSync(packagePath("README.md"), "utf8"))?.[1];
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
