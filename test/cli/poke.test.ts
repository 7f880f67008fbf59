// `fentrylab poke`: what it prints, what it keeps and goes again, and that bad input is one line.

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { command, Scratch } from "./command.ts";

const scratch = new Scratch();
afterAll(() => scratch.remove());
const file = join(scratch.folder, "poke.json");

interface PokeDocument {
  readonly explored: {
    readonly settings: Record<string, unknown>;
    readonly states: number;
    readonly transitions: number;
    readonly deepest: number;
    readonly finding: string | null;
  }[];
  readonly lines?: { readonly actor: number | "poker"; readonly what: string }[];
}

describe("explores", () => {
  test("and says how many states there are, if nothing is wrong", async () => {
    const { status, stdout, stderr } = await command("poke", "--vcpus", "1");
    expect([status, stderr]).toEqual([0, ""]);
    expect(stdout).toBe(
      [
        "One site is rewritten, on and off again; writer: breakpoint.",
        "1 vCPU, 2 calls each  1966 states  2840 transitions  deepest way 71 steps  nothing found",
        "",
        "Every interleaving and every choice of bytes, 1966 states: nothing was executed but the whole old instruction,",
        "int3 and the whole new one, and every call executed its body once, and its handler as often as it should.",
        "",
      ].join("\n"),
    );
  });

  test("one number of vCPUs after the other, as one document", { timeout: 60_000 }, async () => {
    const { status, stdout, stderr } = await command("poke", "--calls", "1", "--way", "on", "--json");
    expect([status, stderr]).toEqual([0, ""]);
    const settings = { calls: 1, way: "on", writer: "breakpoint" };
    expect(JSON.parse(stdout)).toEqual({
      explored: [
        { settings: { vcpus: 1, ...settings }, states: 408, transitions: 569, deepest: 41, finding: null },
        {
          settings: { vcpus: 2, ...settings },
          states: 25996,
          transitions: 53653,
          deepest: 70,
          finding: null,
        },
      ],
    });
  });

  test("to what is wrong, and tells the way there", async () => {
    const { status, stdout, stderr } = await command("poke", "--writer", "halves", "--record", file);
    expect([status, stderr]).toEqual([1, ""]);
    expect(stdout).toMatch(/^1 vCPU, 2 calls each +\d+ states .* FOUND$/m);
    expect(stdout).toMatch(
      /^ +1 +poker +write the first half at poked\+0x0\/\w+ +e8 (..) 44 00 00 +0f\|e8 1f\|\1 44 00 00$/m,
    );
    expect(stdout).toMatch(/^FOUND: vCPU 0 fetches torn bytes at poked\+0x0\/\w+: 0f .{2,14}, /m);
    expect(stdout).not.toContain("--record");
    expect(existsSync(file)).toBe(true);
  });
});

describe("goes a recorded way again", () => {
  const record = () => JSON.parse(readFileSync(file, "utf8")) as Record<string, object>;
  const changed = (name: string, change: object) =>
    scratch.file(name, JSON.stringify({ ...record(), ...change }));

  test("to the same end", async () => {
    const { status, stdout, stderr } = await command("poke", "--replay", file);
    expect([status, stderr]).toEqual([0, ""]);
    expect(stdout).toContain("FOUND: vCPU 0 fetches torn bytes");
    expect(stdout).toContain("The same end, step for step.");
    const document = JSON.parse((await command("poke", "--replay", file, "--json")).stdout) as PokeDocument;
    expect(document).toMatchObject({ same: true, end: record().end });
    expect(document.lines?.map(({ actor }) => actor)).toEqual(["poker", 0]);
  });

  test("or says that it is another, and fails", async () => {
    const other = changed("end.json", { end: { ...record().end, hash: "0123456789abcdef" } });
    const { status, stdout } = await command("poke", "--replay", other);
    expect(status).toBe(1);
    expect(stdout).toContain("NOT the same");
  });

  test("is refused in one line, of another kernel, of nothing, and of no record", async () => {
    const { choices, settings } = record() as {
      choices: { kinds: string[]; answers: number[] };
      settings: object;
    };
    const half = readFileSync(file, "utf8").slice(0, 100);
    const { answers } = choices;
    for (const [path, problem] of [
      [changed("origin.json", { origin: "0".repeat(16) }), "is of another kernel"],
      [join(scratch.folder, "nothing.json"), "cannot be read (ENOENT)"],
      ["package.json", "is no record of a poke"],
      [scratch.file("half.json", half), "is no record of a poke: it is no JSON"],
      [
        changed("way.json", { settings: { ...settings, way: "up" } }),
        "no way that is a text of on, off, both",
      ],
      [
        changed("vcpus.json", { settings: { ...settings, vcpus: 9 } }),
        "no vcpus that is a whole number from 1 to 8",
      ],
      [
        changed("cut.json", { choices: { ...choices, answers: answers.slice(0, 3) } }),
        "some of its choices are missing",
      ],
      [
        changed("odd.json", { choices: { ...choices, answers: answers.slice(1) } }),
        "its last choice is not whole",
      ],
      [
        changed("count.json", { choices: { ...choices, answers: [answers[0], 7, 1, ...answers.slice(3)] } }),
        "choice 0 is vcpu of 2, and was vcpu of 7",
      ],
    ] as const) {
      const { status, stdout, stderr } = await command("poke", "--replay", path);
      expect([path, status, stdout]).toEqual([path, 2, ""]);
      expect(stderr).toMatch(/^fentrylab: .*\n$/);
      expect(stderr).toContain(problem);
    }
  });
});

test.each([
  [["--writer", "fast"], "there is no writer 'fast'; there are: breakpoint, whole, halves, tail-first"],
  [["--way", "up"], "there is no way 'up'; there are: on, off, both"],
  [["--vcpus", "9"], "--vcpus takes 8 at most"],
  [["--calls", "0"], "--calls wants a whole number from 1 up"],
  [["--replay", "a.json", "--way", "on"], "leave out --way"],
  [["--writer", "whole", "--record", "/nowhere/poke.json"], "/nowhere/poke.json cannot be written (ENOENT)"],
])("%j is refused in one line", async (args, problem) => {
  const { status, stdout, stderr } = await command("poke", ...args);
  expect([status, stdout]).toEqual([2, ""]);
  expect(stderr).toMatch(/^fentrylab: .*\n$/);
  expect(stderr).toContain(problem);
});
