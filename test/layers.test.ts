// Imports point down only, and no files of a room import one another in a circle.
//
// Read from the sources' text, every form of import and re-export. A type that points up is a dependency like
// any other; in a circle, imports of types alone do not count, for they are erased and load nothing.

import { readdirSync, readFileSync } from "node:fs";
import { posix, resolve } from "node:path";
import { describe, expect, test } from "vitest";

/** Rooms by rank. Those of one rank may not see each other. */
const RANKS = [
  ["base"],
  ["wasm"],
  ["x86"],
  ["machine"],
  ["image"],
  ["reference"],
  ["unwind", "ftrace"],
  ["kernel"],
  ["livepatch"],
  ["explore"],
  ["report"],
  ["lab"],
  ["bench"], // which the command line runs
  ["cli"],
] as const;
const RANK = new Map(RANKS.flatMap((rooms, rank) => rooms.map((room): [string, number] => [room, rank])));

/** Text by path from the project's top, with forward slashes. */
type Sources = ReadonlyMap<string, string>;

const IMPORT = /(?:\bfrom|\bimport)\s*\(?\s*["'](\.{1,2}\/[^"']+)["']/g;

/** The files of the project that the file at `path` imports. */
function importsOf(path: string, text: string): string[] {
  const code = withoutComments(text);
  return [...code.matchAll(IMPORT)].map(([, to]) => posix.join(posix.dirname(path), to!));
}

/** The same without what is erased when it is compiled. */
function loadsOf(path: string, text: string): string[] {
  return importsOf(path, withoutComments(text).replace(/\b(?:im|ex)port type\b[^;]*;/g, ""));
}

function withoutComments(text: string): string {
  return text.replace(/\/\*[\s\S]*?\*\/|^\s*\/\/.*$/gm, "");
}

/** `machine` of src/machine/…; files at the top of src are the `lab`; `bench` is its own. */
function roomOf(path: string): string {
  const [top, room, ...rest] = path.split("/");
  return top !== "src" ? top! : rest.length === 0 ? "lab" : room!;
}

function upwardImports(sources: Sources): string[] {
  const found: string[] = [];
  for (const [path, text] of sources) {
    const rank = RANK.get(roomOf(path));
    if (rank === undefined) found.push(`${path} is in no known room`);
    for (const to of importsOf(path, text)) {
      const below = RANK.get(roomOf(to));
      if (roomOf(to) !== roomOf(path) && (below === undefined || below >= rank!))
        found.push(`${path} -> ${to}`);
    }
  }
  return found;
}

/** Circles of imports, each as its files in order, from the first that was entered. */
function circles(sources: Sources): string[] {
  const found: string[] = [];
  const done = new Set<string>();
  const visit = (path: string, trail: readonly string[]) => {
    const start = trail.indexOf(path);
    if (start >= 0) found.push([...trail.slice(start), path].join(" -> "));
    if (start >= 0 || done.has(path)) return;
    for (const to of loadsOf(path, sources.get(path) ?? "")) visit(to, [...trail, path]);
    done.add(path);
  };
  for (const path of sources.keys()) visit(path, []);
  return found;
}

function readSources(): Sources {
  const top = resolve(import.meta.dirname, "..");
  return new Map(
    ["src", "bench"].flatMap((folder) =>
      readdirSync(resolve(top, folder), { recursive: true, encoding: "utf8" })
        .map((name) => posix.join(folder, name.replaceAll("\\", "/")))
        .filter((path) => path.endsWith(".ts") && !path.endsWith(".d.ts"))
        .sort()
        .map((path): [string, string] => [path, readFileSync(resolve(top, path), "utf8")]),
    ),
  );
}

describe("the sources", () => {
  const sources = readSources();

  test("import only what lies below them", () => expect(upwardImports(sources)).toEqual([]));

  test("import files that are there", () => {
    const missing = [...sources].flatMap(([path, text]) =>
      importsOf(path, text)
        .filter((to) => !sources.has(to))
        .map((to) => `${path} -> ${to}`),
    );
    expect(missing).toEqual([]);
  });

  test("have no circles", () => expect(circles(sources)).toEqual([]));
});

describe("the check itself", () => {
  const up = (path: string, text: string) => upwardImports(new Map([[path, text]]));

  test.each([
    ["src/base/a.ts", 'import { b } from "../wasm/b.ts";', "src/base/a.ts -> src/wasm/b.ts"],
    [
      "src/x86/lift/a.ts",
      "import type { M } from '../../machine/m.ts';",
      "src/x86/lift/a.ts -> src/machine/m.ts",
    ],
    ["src/unwind/a.ts", 'export * from "../ftrace/f.ts";', "src/unwind/a.ts -> src/ftrace/f.ts"],
    ["src/ftrace/f.ts", 'const a = await import("../unwind/a.ts");', "src/ftrace/f.ts -> src/unwind/a.ts"],
    ["src/report/a.ts", 'import "../lab.ts";', "src/report/a.ts -> src/lab.ts"],
    ["src/lab.ts", 'import {\n  main,\n} from "./cli/main.ts";', "src/lab.ts -> src/cli/main.ts"],
    ["src/lab.ts", 'import { b } from "../bench/b.ts";', "src/lab.ts -> bench/b.ts"],
    ["bench/b.ts", 'import { m } from "../src/cli/main.ts";', "bench/b.ts -> src/cli/main.ts"],
    ["src/machine/a.ts", 'import { t } from "../../test/t.ts";', "src/machine/a.ts -> test/t.ts"],
    ["src/tools/a.ts", "", "src/tools/a.ts is in no known room"],
  ])("finds what is wrong in %s: %s", (path, text, wrong) => expect(up(path, text)).toEqual([wrong]));

  test.each([
    ["src/x86/lift/a.ts", 'import { d } from "../decode.ts"; import { a } from "../../base/addr.ts";'],
    ["src/kernel/k.ts", 'import { u } from "../unwind/u.ts"; import { f } from "../ftrace/f.ts";'],
    ["src/index.ts", 'export { Lab } from "./lab.ts"; export { M } from "./machine/machine.ts";'],
    [
      "bench/engine.ts",
      'import { M } from "../src/machine/machine.ts"; import { readFileSync } from "node:fs";',
    ],
    ["src/base/a.ts", '// as in: import { b } from "../wasm/b.ts";\n/* from "../x86/c.ts" */'],
  ])("accepts %s: %s", (path, text) => expect(up(path, text)).toEqual([]));

  test("finds circles, of two files and of one with itself", () => {
    const sources = new Map([
      ["src/x86/a.ts", 'import { b } from "./b.ts";'],
      ["src/x86/b.ts", 'import { c } from "./lift/c.ts"; import { d } from "./d.ts";'],
      ["src/x86/lift/c.ts", 'import type { B } from "../b.ts"; import { type A, a } from "../a.ts";'],
      ["src/x86/d.ts", 'import { d } from "./d.ts";'],
    ]);
    expect(circles(sources)).toEqual([
      "src/x86/a.ts -> src/x86/b.ts -> src/x86/lift/c.ts -> src/x86/a.ts",
      "src/x86/d.ts -> src/x86/d.ts",
    ]);
  });
});
