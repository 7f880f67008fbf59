// Whole programs that gcc compiled, at five levels: what they return here, stepped and run in regions, and what
// they leave in memory, is what the same machine code does on the host's CPU.
//
// SEED=17 npx vitest run test/programs    one program, at every level; SEED=100-141 many others
// KEEP=folder SEED=17 npx ...             leaves its C source, objects and native programs there

import { mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Mnemonic } from "../../src/x86/decode.ts";
import { liftedMnemonics } from "../../src/x86/lift/table.ts";
import { missing } from "../image/fixtures.ts";
import { type Batch, type Built, build, LEVELS, type Level } from "./build.ts";
import { generate, type Program } from "./generator.ts";
import { type Drive, type Outcome, ProgramGuest, run, step } from "./guest.ts";

const COUNT = 40;
/** As /proc/cpuinfo names what EXTENSIONS of build.ts ask for; abm is lzcnt. */
const HOST_FLAGS = ["bmi1", "bmi2", "abm", "popcnt", "movbe", "adx"];
const NEEDED = ["Andn", "Bextr", "Blsi", "Blsr", "Bzhi", "Mulx", "Pdep", "Pext", "Rorx", "Sarx"] as const;
const ALSO_NEEDED = ["Shlx", "Shrx", "Adcx", "Adox", "Lzcnt", "Tzcnt", "Popcnt", "Movbe"] as const;

const asked = process.env.SEED;
const [firstSeed = 1, lastSeed = asked === undefined ? COUNT : firstSeed] =
  asked?.split("-").map(Number) ?? [];
const seeds = Array.from({ length: lastSeed - firstSeed + 1 }, (_, n) => firstSeed + n);

const absent =
  process.arch !== "x64" || process.platform !== "linux" ? "not an x86-64 Linux machine" : missing("gcc");
const withoutExtensions = absent ?? extensionsMissing();

/** Why no program may use BMI and its kin, or undefined. */
function extensionsMissing(): string | undefined {
  const lifted = new Set(liftedMnemonics());
  const names = [...NEEDED, ...ALSO_NEEDED].filter((name) => !lifted.has(Mnemonic[name]));
  if (names.length > 0) return `not lifted: ${names.join(", ")}`;
  const flags = new Set(
    readFileSync("/proc/cpuinfo", "utf8")
      .match(/^flags\s*:.*$/m)?.[0]
      .split(/\s+/),
  );
  const host = HOST_FLAGS.filter((flag) => !flags.has(flag));
  return host.length > 0 ? `the host's CPU is without ${host.join(", ")}` : undefined;
}

/** Every third program uses them. */
const extended = (seed: number) => withoutExtensions === undefined && seed % 3 === 0;

describe("the generator", () => {
  test("makes the same program of the same seed, and another of another", () => {
    for (const extensions of [false, true]) {
      expect(generate(5, extensions)).toEqual(generate(5, extensions));
      const renamed = generate(6, extensions).source.replaceAll("p6_", "p5_").replaceAll("(6)", "(5)");
      expect(renamed).not.toBe(generate(5, extensions).source);
    }
  });
});

describe.skipIf(absent !== undefined)(`compiled programs${absent === undefined ? "" : `: ${absent}`}`, () => {
  let folder: string;
  const batches: Batch[] = [false, true].flatMap((extensions) => {
    const programs = seeds
      .filter((seed) => extended(seed) === extensions)
      .map((seed) => generate(seed, extensions));
    return programs.length > 0 ? [{ name: extensions ? "extended" : "plain", extensions, programs }] : [];
  });
  const programs = batches.flatMap((batch) => batch.programs);
  let built: Map<Level, Built>;

  beforeAll(async () => {
    if (withoutExtensions !== undefined) console.log(`no BMI, LZCNT, MOVBE, ADX: ${withoutExtensions}`);
    folder = process.env.KEEP ?? mkdtempSync(join(tmpdir(), "fentrylab-programs-"));
    mkdirSync(folder, { recursive: true });
    built = await build(folder, batches);
  });
  afterAll(() => {
    if (process.env.KEEP === undefined) rmSync(folder, { recursive: true });
  });

  test("return on the host, at every level, what they return at the first", () => {
    const results = (level: Level) => built.get(level)!.native.results;
    for (const level of LEVELS)
      expect(results(level), `${level}: the generator's fault`).toEqual(results("-O0"));
  });

  test.for(LEVELS)("of %s do here what they do on the host", (level) => {
    const { objects, native } = built.get(level)!;
    const guest = new ProgramGuest(objects);
    const wrong: string[] = [];

    function performAll(way: string, drive: Drive): Outcome[][] {
      guest.reset();
      return programs.map((program, n) => {
        const { seed, calls } = program;
        const outcomes = calls.map((call) =>
          guest.call(call.function, BigInt(call.input.slice(0, -3)), drive),
        );
        const at = outcomes.findIndex(({ result }, call) => result !== native.results[n]![call]);
        const globals = guest.globals(seed);
        const byte = differenceOf(globals, native.globals[n]!);
        if (at >= 0) wrong.push(told(program, way, at, outcomes[at]!.result, native.results[n]![at]!));
        else if (byte >= 0)
          wrong.push(`${context(program, way)}: memory differs at ${guest.place(seed, byte)}`);
        return outcomes;
      });
    }
    function context({ seed }: Program, way: string): string {
      return `SEED=${seed} npx vitest run test/programs: ${level}, ${way}`;
    }
    function told(program: Program, way: string, at: number, found: string, wanted: string): string {
      const { function: name, input } = program.calls[at]!;
      return `${context(program, way)}: ${name}(${input}) gives ${found}, on the host ${wanted}`;
    }
    function compareCounts(way: string, ones: Outcome[][], others: Outcome[][]): void {
      programs.forEach((program, n) => {
        const at = ones[n]!.findIndex(
          ({ instructions }, call) => instructions !== others[n]![call]!.instructions,
        );
        if (at < 0) return;
        const [one, other] = [ones[n]![at]!.instructions, others[n]![at]!.instructions];
        const name = program.calls[at]!.function;
        wrong.push(`${context(program, way)}: ${name} takes ${other} instructions, stepped ${one}`);
      });
    }

    const stepped = performAll("stepped", step);
    expect(guest.machine.regions.activeCount).toBe(0);
    const first = performAll("run", run);
    // So few calls leave most code cold: all of it is compiled now.
    for (const { calls } of programs) for (const call of calls) guest.compile(call.function);
    const again = performAll("run hot", run);
    compareCounts("run", stepped, first);
    compareCounts("run hot", stepped, again);
    expect(wrong).toEqual([]);
    expect(guest.machine.regions.activeCount).toBeGreaterThan(2 * programs.length);
  });
});

/** The first byte in which two hexadecimal strings differ, or -1. */
function differenceOf(left: string, right: string): number {
  if (left === right) return -1;
  let at = 0;
  while (left[at] === right[at]) at++;
  return at >> 1;
}
