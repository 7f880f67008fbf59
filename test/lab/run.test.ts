// Runs of the kernel with its patients: the same seed, the same run; a record, the same run; and nothing found wrong.

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { FIRST } from "../../src/base/chooser.ts";
import { recorded, scripted, seeded } from "../../src/explore/chooser.ts";
import { DEFAULT_SETTINGS } from "../../src/explore/settings.ts";
import { readRecord, writeRecord } from "../../src/record.ts";
import { type RunFacts, Runner } from "../../src/run.ts";

const runners = new Map<number, Runner>();
/** A runner with so many vCPUs, made once. */
async function runnerOf(vcpus: number): Promise<Runner> {
  const known = runners.get(vcpus) ?? (await Runner.open({ ...DEFAULT_SETTINGS, vcpus }));
  runners.set(vcpus, known);
  return known;
}
afterAll(() => {
  for (const { patients } of runners.values()) patients.lab.dispose();
});

/** What a run came to, without what it chose. */
function outcome(runner: Runner, { choices: _, ...facts }: RunFacts) {
  return { ...facts, log: runner.patients.lab.kernel.log.lines, progress: runner.patients.progress };
}

describe("the same seed", () => {
  test.each([1, 2, 3, 4, 5, 6, 7, 8])(
    "gives the same log, memory and number of instructions, whatever was run before: %i vCPUs",
    async (vcpus) => {
      const runner = await runnerOf(vcpus);
      const first = outcome(runner, runner.run(seeded(vcpus)));
      const other = outcome(runner, runner.run(seeded(vcpus + 1)));
      expect(outcome(runner, runner.run(seeded(vcpus)))).toEqual(first);
      expect(other.hash).not.toBe(first.hash);
      expect(first.finding).toBeNull();
      expect(first.end).toBe("idle");
      expect(first.log.length).toBeGreaterThan(5);
    },
  );

  test("gives it in another laboratory as well, and however often it is looked at", async () => {
    const runner = await runnerOf(4);
    const first = outcome(runner, runner.run(seeded(7)));
    const another = await Runner.open({ ...DEFAULT_SETTINGS, vcpus: 4 });
    expect(outcome(another, another.run(seeded(7), { every: 1 }))).toEqual(first);
    expect(outcome(another, another.run(seeded(7), { every: 0 }))).toEqual(first);
    another.patients.lab.dispose();
  });
});

describe("sixty seeds", () => {
  test.each([1, 2, 3, 4, 6, 8])("find nothing wrong with %i vCPUs: 10 of them", async (vcpus) => {
    const runner = await runnerOf(vcpus);
    for (let seed = 1000; seed < 1010; seed++)
      expect(runner.run(seeded(seed), { every: 3 }).finding, `seed ${seed}`).toBeNull();
  });
});

describe("a record", () => {
  let folder: string;
  let file: string;
  let facts: RunFacts;
  let runner: Runner;

  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), "fentrylab-"));
    file = join(folder, "run.json");
    runner = await runnerOf(3);
    facts = runner.run(seeded(11));
    const { settings, origin } = runner;
    const { end: kind, finding, instructions, hash, choices } = facts;
    writeFileSync(
      file,
      writeRecord({ settings, seed: 11, origin, choices, end: { kind, finding, instructions, hash } }),
    );
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  test("is read as it was written", () => {
    expect(readRecord(file)).toEqual({
      settings: runner.settings,
      seed: 11,
      origin: runner.origin,
      choices: facts.choices,
      end: { kind: "idle", finding: null, instructions: facts.instructions, hash: facts.hash },
    });
  });

  test("replays to the same end, instruction for instruction", () => {
    const again = runner.run(recorded(readRecord(file).choices));
    expect(again).toEqual(facts);
  });

  test("replays as a script of its answers, too", () => {
    const answers = facts.choices.answers.filter((_, n) => n % 3 === 2);
    expect(runner.run(scripted(answers))).toEqual(facts);
  });

  test("with one answer less, or another question, is refused where it differs", () => {
    const { choices } = readRecord(file);
    const short = { ...choices, answers: choices.answers.slice(0, -3) };
    expect(() => runner.run(recorded(short))).toThrow(expect.objectContaining({ code: "record-over" }));
    const changed = choices.answers.with(31, choices.answers[31]! + 1);
    expect(() => runner.run(recorded({ ...choices, answers: changed }))).toThrow(
      expect.objectContaining({ code: "record-differs" }),
    );
  });

  test("that is damaged is refused in one line, with its name, wherever it is cut or written over", () => {
    const text = readFileSync(file, "utf8").slice(0, 400) + readFileSync(file, "utf8").slice(-300);
    const damaged = join(folder, "damaged.json");
    const refusal = expect.objectContaining({
      code: "record-file",
      message: expect.stringMatching(/^\S+damaged\.json is no record of a run: .*; make one with/),
    });
    fc.assert(
      fc.property(fc.nat(text.length - 2), fc.string({ maxLength: 3 }), fc.boolean(), (at, junk, cut) => {
        writeFileSync(damaged, cut ? text.slice(0, at) : text.slice(0, at) + junk + text.slice(at + 40));
        expect(() => readRecord(damaged)).toThrow(refusal);
      }),
      { numRuns: 200, seed: 5 },
    );
  });

  test.each([
    ["[]", "the document is no object"],
    ['{"format":"fentrylab run 9"}', 'its format is not "fentrylab run 1"'],
    ['{"format":"fentrylab run 1"}', "settings is no object"],
  ])("%s is refused: %s", (text, what) => {
    const other = join(folder, "other.json");
    writeFileSync(other, text);
    expect(() => readRecord(other)).toThrow(what);
  });
});

test("a script that ends too early is refused, and one that answers what was not asked", async () => {
  const runner = await runnerOf(2);
  expect(() => runner.run(scripted([0, 0, 0]))).toThrow(expect.objectContaining({ code: "script-over" }));
  expect(() => runner.run(scripted([99], FIRST))).toThrow(expect.objectContaining({ code: "script-answer" }));
});

test("every invariant is looked at, hundreds of times", async () => {
  const again = await Runner.open({ ...DEFAULT_SETTINGS, vcpus: 4 });
  const conductor = again.patients.lab.conductor({ chooser: seeded(1) });
  again.patients.begin();
  const invariants = again.patients.lab.invariants();
  const watch = () => invariants.check()?.what;
  expect(conductor.run({ budget: 300_000, watch }).kind).toBe("budget");
  const counts = Object.entries(invariants.counts);
  expect(counts.length).toBeGreaterThanOrEqual(19);
  for (const [rule, count] of counts) expect(count, rule).toBeGreaterThan(200);
  again.patients.lab.dispose();
});
