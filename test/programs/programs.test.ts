// Whole programs that gcc compiled, at five levels, and clang, where there is one: what they return here, stepped and run
// in regions, and what they leave in memory, is what the same machine code does on the host's CPU.
//
// SEED=17 npx vitest run test/programs    one program, at every level; SEED=100-141 many others
// KEEP=folder SEED=17 npx ...             leaves its C source, objects and native programs there

import { mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Mnemonic } from "../../src/x86/decode.ts";
import { liftedMnemonics } from "../../src/x86/lift/table.ts";
import type { ObjectFile } from "../../src/x86/object.ts";
import { missing } from "../image/fixtures.ts";
import { type Batch, type Built, build, type Compiler, LEVELS, type Level, type Native } from "./build.ts";
import { generate, type Program } from "./generator.ts";
import { type Drive, type Outcome, ProgramGuest, run, step } from "./guest.ts";

const COMPILERS = [
  { compiler: "gcc", count: 200 },
  { compiler: "clang", count: 50 },
] as const;
/** As /proc/cpuinfo names what EXTENSIONS of build.ts ask for; abm is lzcnt. */
const HOST_FLAGS = ["bmi1", "bmi2", "abm", "popcnt", "movbe", "adx"];
const NEEDED = ["Andn", "Bextr", "Blsi", "Blsr", "Bzhi", "Mulx", "Pdep", "Pext", "Rorx", "Sarx"] as const;
const ALSO_NEEDED = ["Shlx", "Shrx", "Adcx", "Adox", "Lzcnt", "Tzcnt", "Popcnt", "Movbe"] as const;

const askedSeeds = seedsOf(process.env.SEED);

function seedsOf(asked: string | undefined): readonly number[] | undefined {
  if (asked === undefined) return undefined;
  const [first = 1, last = first] = asked.split("-").map(Number);
  return Array.from({ length: last - first + 1 }, (_, n) => first + n);
}

const elsewhere =
  process.arch !== "x64" || process.platform !== "linux" ? "not an x86-64 Linux machine" : undefined;
const withoutExtensions = elsewhere ?? extensionsMissing();
if (withoutExtensions !== undefined) console.log(`no BMI, LZCNT, MOVBE, ADX: ${withoutExtensions}`);

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

/** On a busy machine compilers are slow; milliseconds. */
const TIMEOUT = { timeout: 300_000 };
/** Programs of so many together are compiled at once. */
const CHUNK = 40;

function batchesOf(programs: readonly Program[]): Batch[] {
  return [false, true].flatMap((extensions) => {
    const those = programs.filter(({ seed }) => extended(seed) === extensions);
    return Array.from({ length: Math.ceil(those.length / CHUNK) }, (_, n) => ({
      name: `${extensions ? "extended" : "plain"}${n}`,
      extensions,
      programs: those.slice(n * CHUNK, (n + 1) * CHUNK),
    }));
  });
}

describe.each(COMPILERS)("programs compiled by $compiler", ({ compiler, count }) => {
  const absent = elsewhere ?? missing(compiler);
  if (absent !== undefined) console.log(`no programs compiled by ${compiler}: ${absent}`);
  describe.skipIf(absent !== undefined)("at each level", () => {
    const seeds = askedSeeds ?? Array.from({ length: count }, (_, n) => n + 1);
    const batches = batchesOf(seeds.map((seed) => generate(seed, extended(seed))));
    const programs = batches.flatMap((batch) => batch.programs);
    let folder: string;
    let built: ReadonlyMap<Level, Promise<Built>>;

    beforeAll(() => {
      const { KEEP } = process.env;
      folder = KEEP === undefined ? mkdtempSync(join(tmpdir(), "fentrylab-programs-")) : join(KEEP, compiler);
      mkdirSync(folder, { recursive: true });
      built = build(compiler, folder, batches);
    });
    afterAll(async () => {
      await Promise.allSettled(built.values());
      if (process.env.KEEP === undefined) rmSync(folder, { recursive: true });
    }, TIMEOUT.timeout);

    test.for(LEVELS)("%s: they do here what they do on the host", TIMEOUT, async (level) => {
      const { objects, native } = await built.get(level)!;
      expect(new Verdict(compiler, level, programs, objects, native).wrong()).toEqual([]);
    });

    test("they return on the host, at every level, what they return at the first", TIMEOUT, async () => {
      const results = async (level: Level) => (await built.get(level)!).native.results;
      const first = await results(LEVELS[0]);
      for (const level of LEVELS)
        expect(await results(level), `${level}: the generator's fault`).toEqual(first);
    });
  });
});

/** One level's programs, performed here in every way. */
class Verdict {
  private readonly context: string;
  private readonly programs: readonly Program[];
  private readonly native: Native;
  private readonly guest: ProgramGuest;
  private readonly found: string[] = [];

  constructor(
    compiler: Compiler,
    level: Level,
    programs: readonly Program[],
    objects: readonly ObjectFile[],
    native: Native,
  ) {
    this.context = `${compiler} ${level}`;
    this.programs = programs;
    this.native = native;
    this.guest = new ProgramGuest(objects);
  }

  /** A line for each program and way in which it does otherwise than on the host. */
  wrong(): readonly string[] {
    const { guest, programs } = this;
    const stepped = this.perform("stepped", step);
    expect(guest.machine.regions.activeCount).toBe(0);
    const first = this.perform("run", run);
    // So few calls leave most code cold: all of it is compiled now.
    for (const { calls } of programs) for (const call of calls) guest.compile(call.function);
    const again = this.perform("run hot", run);
    this.compareCounts("run", stepped, first);
    this.compareCounts("run hot", stepped, again);
    expect(guest.machine.regions.activeCount).toBeGreaterThan(2 * programs.length);
    return this.found;
  }

  private perform(way: string, drive: Drive): Outcome[][] {
    const { guest, native, programs } = this;
    guest.reset();
    return programs.map((program, n) => {
      const { seed, calls } = program;
      const outcomes = calls.map((call) => guest.call(call.function, BigInt(call.input.slice(0, -3)), drive));
      const at = outcomes.findIndex(({ result }, call) => result !== native.results[n]![call]);
      const globals = guest.globals(seed);
      const byte = differenceOf(globals, native.globals[n]!);
      if (at >= 0) {
        const { function: name, input } = calls[at]!;
        const [got, wanted] = [outcomes[at]!.result, native.results[n]![at]!];
        this.note(seed, way, `${name}(${input}) gives ${got}, on the host ${wanted}`);
      } else if (byte >= 0) this.note(seed, way, `memory differs at ${guest.place(seed, byte)}`);
      return outcomes;
    });
  }

  private compareCounts(way: string, ones: Outcome[][], others: Outcome[][]): void {
    this.programs.forEach(({ seed, calls }, n) => {
      const at = ones[n]!.findIndex(
        ({ instructions }, call) => instructions !== others[n]![call]!.instructions,
      );
      if (at < 0) return;
      const [one, other] = [ones[n]![at]!.instructions, others[n]![at]!.instructions];
      this.note(seed, way, `${calls[at]!.function} takes ${other} instructions, stepped ${one}`);
    });
  }

  private note(seed: number, way: string, what: string): void {
    this.found.push(`SEED=${seed} npx vitest run test/programs: ${this.context}, ${way}: ${what}`);
  }
}

/** The first byte in which two hexadecimal strings differ, or -1. */
function differenceOf(left: string, right: string): number {
  if (left === right) return -1;
  let at = 0;
  while (left[at] === right[at]) at++;
  return at >> 1;
}
