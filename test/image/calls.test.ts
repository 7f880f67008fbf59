// The fixtures themselves: the objects are what their sources give, and calls.json is what the
// host's own CPU makes of the same sources. UPDATE=1 records both anew.

import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { FIXTURES, fixture, fixtureBytes, inScratchFolder, missing, OBJECTS, run } from "./fixtures.ts";

/** One call: arguments and result as 64-bit hexadecimal words. */
interface Call {
  object: string;
  function: string;
  args: string[];
  result: string;
}

const CALLS = join(FIXTURES, "calls.json");
const calls: Call[] = JSON.parse(readFileSync(CALLS, "utf8"));
const update = process.env.UPDATE === "1";
const gcc = missing("gcc");

/** What gcc and GNU as wrote into an object about themselves. */
function compilerOf(name: string): string {
  const comment = fixture(name).sections.find((section) => section.name === ".comment");
  return new TextDecoder().decode(comment!.bytes).replaceAll("\0", "");
}

test("the same gcc makes the same objects", (ctx) => {
  if (gcc) ctx.skip(gcc);
  if (process.arch !== "x64") ctx.skip("not an x86-64 machine");
  inScratchFolder((folder) => {
    const [here, recorded] = [run("gcc", ["--version"]).split("\n")[0], compilerOf("string.o")];
    const version = /\((.*)\) (\S+)$/.exec(here!);
    if (!version || !recorded.includes(version[1]!) || !recorded.endsWith(version[2]!)) {
      ctx.skip(`the objects are of ${recorded}, this machine has ${here}`);
    }
    run("sh", ["build.sh", update ? "." : folder]);
    for (const name of OBJECTS) {
      const built = new Uint8Array(readFileSync(join(update ? FIXTURES : folder, name)));
      expect(Buffer.compare(built, fixtureBytes(name)), name).toBe(0);
    }
  });
});

// The sources, compiled for the host, say what is right; the objects must do the same.
test.for(["sources", "objects"])(
  "the host's CPU returns what is recorded, running the %s",
  (program, ctx) => {
    if (gcc) ctx.skip(gcc);
    if (process.arch !== "x64" || process.platform !== "linux") ctx.skip("not an x86-64 Linux machine");
    const results = inScratchFolder((folder) => {
      run("sh", ["build.sh", "--native", folder]);
      const results = new Map<Call, string>();
      for (const patched of [false, true]) {
        const own = calls.filter(({ object }) => (object === "lookup_fixed.o") === patched);
        const lines = own.map((call) => [call.function, ...call.args].join(" "));
        const file = join(folder, patched ? `${program}-patched` : program);
        const answers = run(file, [], `${lines.join("\n")}\n`)
          .trim()
          .split("\n");
        expect(answers.length).toBe(own.length);
        own.forEach((call, i) => {
          results.set(call, answers[i]!);
        });
      }
      return results;
    });
    const fresh = calls.map((call) => ({ ...call, result: results.get(call)! }));
    if (update && program === "sources") {
      writeFileSync(CALLS, `[\n${fresh.map((call) => `  ${JSON.stringify(call)}`).join(",\n")}\n]\n`);
    } else {
      expect(fresh).toEqual(calls);
    }
  },
);

describe("the recorded calls", () => {
  test("name functions of their objects", () => {
    for (const call of calls) {
      const symbol = fixture(call.object).symbols.find(({ name }) => name === call.function);
      expect(symbol?.kind, call.function).toBe("func");
      for (const word of [...call.args, call.result]) expect(word).toMatch(/^0x[0-9a-f]{1,16}$/);
    }
  });

  test("reach every test function", () => {
    const called = new Set(calls.map((call) => call.function));
    const all = OBJECTS.flatMap((name) => fixture(name).symbols.filter(({ section }) => section !== null));
    const missed = all
      .filter(({ name }) => name.startsWith("test_") && !called.has(name))
      .map(({ name }) => name);
    expect(missed).toEqual([]);
  });

  test("show the bug and its absence", () => {
    const results = (name: string, index: string) =>
      calls.filter((call) => call.function === name && call.args[0] === index).map(({ result }) => result);
    const secret = "0xdeadbeefcafef00d";
    expect(new Set(results("test_lookup", "0x4"))).toEqual(new Set([secret]));
    expect(results("test_fixed_lookup", "0x4")).toEqual(["0xffffffffffffffea"]);
    expect(calls.some((call) => call.object === "lookup_fixed.o" && call.result === secret)).toBe(false);
  });

  test("have varied results", () => {
    expect(calls.length).toBeGreaterThan(500);
    expect(new Set(calls.map(({ result }) => result)).size).toBeGreaterThan(calls.length / 2);
  });
});
