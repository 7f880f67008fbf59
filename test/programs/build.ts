// The generated programs, compiled: per level an object with all of them, and what the host's CPU makes of it.
//
// Both sides execute the same machine code: the objects that are linked here are linked into a program of the
// host too, whose low 2 GiB serve the kernel's code model as its high ones do. Only on x86-64 Linux with gcc.

import { execFile } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { parseElf } from "../../src/image/elf.ts";
import type { ObjectFile } from "../../src/x86/object.ts";
import type { Program } from "./generator.ts";

export const LEVELS = ["-O0", "-O1", "-O2", "-O3", "-Os"] as const;
export type Level = (typeof LEVELS)[number];

const HERE = dirname(fileURLToPath(import.meta.url));
const FLAGS =
  `-std=gnu11 -w -g0 -ffreestanding -mcmodel=kernel -fno-pic -fno-pie -mno-red-zone -mgeneral-regs-only
  -fno-stack-protector -fcf-protection=none -fno-asynchronous-unwind-tables -fno-common -fno-strict-aliasing`.split(
    /\s+/,
  );
const EXTENSIONS = ["-mbmi", "-mbmi2", "-mlzcnt", "-mpopcnt", "-mmovbe", "-madx"];

/** What one level's code did on the host. */
export interface Native {
  /** Of every program's calls, in order: 64-bit words in hexadecimal. */
  readonly results: readonly (readonly string[])[];
  /** Of every program, the bytes of its globals afterwards in hexadecimal. */
  readonly globals: readonly string[];
}

export interface Built {
  readonly objects: readonly ObjectFile[];
  readonly native: Native;
}

/** A part of the programs that is compiled with the same flags. */
export interface Batch {
  readonly name: string;
  readonly extensions: boolean;
  readonly programs: readonly Program[];
}

const start = promisify(execFile);

async function gcc(...args: readonly string[]): Promise<void> {
  await start("gcc", [...args], { cwd: HERE });
}

/** Compiles `batches` in `folder` at every level, two compilers at a time, and runs them on the host. */
export async function build(folder: string, batches: readonly Batch[]): Promise<Map<Level, Built>> {
  const programs = batches.flatMap((batch) => batch.programs);
  for (const batch of batches) writeFileSync(join(folder, `${batch.name}.c`), sourceOf(batch));
  writeFileSync(join(folder, "calls.inc"), programs.map(listed).join(""));
  const runtime = join(folder, "runtime.o");
  const driver = join(folder, "driver.o");
  const objectOf = (level: Level, { name }: Batch) => join(folder, `${name}${level}.o`);
  const compile = (level: Level, batch: Batch) => () =>
    gcc(
      ...FLAGS,
      level,
      ...(batch.extensions ? EXTENSIONS : []),
      "-c",
      ...["-o", objectOf(level, batch)],
      ...["-include", join(HERE, "prelude.h"), join(folder, `${batch.name}.c`)],
    );
  await twoAtATime([
    ...(["-O3", "-O2", "-O1", "-Os", "-O0"] as const).flatMap((level) =>
      batches.map((batch) => compile(level, batch)),
    ),
    // Else gcc makes memcpy's loop a call of memcpy.
    () => gcc(...FLAGS, "-O1", "-fno-tree-loop-distribute-patterns", "-c", "-o", runtime, "runtime.c"),
    () => gcc("-O1", "-fno-pie", "-I", folder, "-c", "-o", driver, "driver.c"),
  ]);
  const built = new Map<Level, Built>();
  for (const level of LEVELS) {
    const files = [...batches.map((batch) => objectOf(level, batch)), runtime];
    const program = join(folder, `native${level}`);
    await gcc("-no-pie", "-z", "noexecstack", "-o", program, driver, ...files);
    const { stdout } = await start(program, { maxBuffer: 2 ** 26, timeout: 20_000 });
    const objects = files.map((file) => parseElf(file, new Uint8Array(readFileSync(file))));
    built.set(level, { objects, native: nativeOf(programs, stdout) });
  }
  return built;
}

function sourceOf({ programs }: Batch): string {
  return programs.map(({ source }) => source).join("\n");
}

/** A program's lines for driver.c. */
function listed({ seed, calls }: Program): string {
  const lines = calls.map(({ function: name, input }) => `CALL(${name}, ${input})`);
  return `${[...lines, `GLOBALS(${seed})`].join("\n")}\n`;
}

function nativeOf(programs: readonly Program[], output: string): Native {
  const lines = output.split("\n");
  const results: string[][] = [];
  const globals: string[] = [];
  for (const { calls } of programs) {
    results.push(lines.splice(0, calls.length));
    globals.push(...lines.splice(0, 1));
  }
  return { results, globals };
}

/** Runs `jobs` in order, two of them at any time. */
async function twoAtATime(jobs: readonly (() => Promise<void>)[]): Promise<void> {
  const left = [...jobs];
  const work = async () => {
    for (let job = left.shift(); job !== undefined; job = left.shift()) await job();
  };
  await Promise.all([work(), work()]);
}
