// docs/LIVEPATCH.md: its example prints what it says, its table has every scenario, its orders are those that there are.

import { readdirSync, readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { packagePath } from "../../src/base/file.ts";
import * as fentrylab from "../../src/index.ts";
import { ORDERS, PRECAUTIONS } from "../../src/livepatch/options.ts";

const TEXT = readFileSync(packagePath("docs/LIVEPATCH.md"), "utf8");
const TRANSCRIPTS = packagePath("test/transcripts");

const rows = (heading: string) =>
  TEXT.slice(TEXT.indexOf(heading))
    .split("\n\n")
    .find((part) => part.startsWith("|"))!
    .split("\n")
    .slice(2)
    .map((row) => row.split("|").map((cell) => cell.trim()));

const EXAMPLES = [...TEXT.matchAll(/```js\n([\s\S]*?)```[\s\S]*?```text\n([\s\S]*?)```/g)].map(
  ([, code = "", output = ""]) => ({ code, output }),
);

test.each(EXAMPLES)("an example prints what it says", async ({ code, output }) => {
  const printed: string[] = [];
  const log = (...values: unknown[]) =>
    printed.push(values.map((value) => (typeof value === "bigint" ? `${value}n` : String(value))).join(" "));
  const body = code.replace(/^import (.*) from "fentrylab";\n/, "const $1 = fentrylab;\n");
  const run = new Function("fentrylab", "console", `return (async () => {${body}})();`);
  await run(fentrylab, { log });
  expect(printed.join("\n")).toBe(output.trimEnd());
});

test("every scenario is in the table, with as many lines as it has", () => {
  const found = readdirSync(TRANSCRIPTS)
    .filter((name) => name.startsWith("klp-"))
    .flatMap((name) => {
      const lines = readFileSync(`${TRANSCRIPTS}/${name}`, "utf8").split("\n");
      const title = /^===== TEST: (.*) =====$/.exec(lines[0]!)?.[1];
      const count = lines.filter((line) => line.startsWith("livepatch:")).length;
      return title === undefined ? [] : [[title, name.replace(".txt", ""), String(count)]];
    });
  const table = rows("## The kernel's own scenarios").map((cells) => cells.slice(2, 5));
  expect(table.sort()).toEqual(found.sort());
});

test("the precautions are those that can be left out", () => {
  expect(rows("The same goes for five precautions").map(([, name]) => name)).toEqual(
    PRECAUTIONS.map((what) => `\`${what}\``),
  );
});

test("the orders are those that can be turned round", () => {
  expect(rows("## The four orders").map(([, name]) => name)).toEqual(
    Object.keys(ORDERS).map((order) => `\`${order}\``),
  );
});
