// The generated programs, compiled: per level some objects with all of them, and what the host's CPU makes of them.
//
// Both sides execute the same machine code: the objects that are linked here are linked into a program of the
// host too, whose low 2 GiB serve the kernel's code model as its high ones do. Only on x86-64 Linux with a compiler.

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

export type Compiler = "gcc" | "clang";

const HERE = dirname(fileURLToPath(import.meta.url));
const FLAGS =
  `-std=gnu11 -w -g0 -ffreestanding -mcmodel=kernel -fno-pic -fno-pie -mno-red-zone -mgeneral-regs-only
  -fno-stack-protector -fcf-protection=none -fno-asynchronous-unwind-tables -fno-common -fno-strict-aliasing`.split(
    /\s+/,
  );
const EXTENSIONS = ["-mbmi", "-mbmi2", "-mlzcnt", "-mpopcnt", "-mmovbe", "-madx"];

/** Else the compiler makes memcpy's loop a call of memcpy. */
const KEEP_LOOPS: Readonly<Record<Compiler, readonly string[]>> = {
  gcc: ["-fno-tree-loop-distribute-patterns"],
  clang: ["-fno-builtin"],
};

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

/**
 * Compiles `batches` in `folder` at every level, two compilations at a time, and runs them on the host: a level's
 * promise is kept when that level is done, whatever the others are at.
 */
export function build(
  compiler: Compiler,
  folder: string,
  batches: readonly Batch[],
): ReadonlyMap<Level, Promise<Built>> {
  const compile = async (...args: readonly string[]) => {
    await start(compiler, [...args], { cwd: HERE });
  };
  const programs = batches.flatMap((batch) => batch.programs);
  for (const batch of batches) writeFileSync(join(folder, `${batch.name}.c`), sourceOf(batch));
  writeFileSync(join(folder, "calls.inc"), programs.map(listed).join(""));
  const queue = new Queue(2);
  const runtime = join(folder, "runtime.o");
  const driver = join(folder, "driver.o");
  const shared = Promise.all([
    queue.add(() => compile(...FLAGS, "-O1", ...KEEP_LOOPS[compiler], "-c", "-o", runtime, "runtime.c")),
    queue.add(() => compile("-O1", "-fno-pie", "-I", folder, "-c", "-o", driver, "driver.c")),
  ]);
  const built = LEVELS.map(async (level) => {
    const objectOf = ({ name }: Batch) => join(folder, `${name}${level}.o`);
    const files = [...batches.map(objectOf), runtime];
    const compiled = batches.map((batch) =>
      queue.add(() =>
        compile(
          ...FLAGS,
          level,
          ...(batch.extensions ? EXTENSIONS : []),
          "-c",
          ...["-o", objectOf(batch)],
          ...["-include", join(HERE, "prelude.h"), join(folder, `${batch.name}.c`)],
        ),
      ),
    );
    await Promise.all([shared, ...compiled]);
    const program = join(folder, `native${level}`);
    // Not behind the levels that follow.
    await compile("-no-pie", "-z", "noexecstack", "-o", program, driver, ...files);
    const { stdout } = await start(program, { maxBuffer: 2 ** 26, timeout: 20_000 });
    const objects = files.map((file) => parseElf(file, new Uint8Array(readFileSync(file))));
    return { objects, native: nativeOf(programs, stdout) };
  });
  // Whoever asks for a level hears of its failure; nobody may.
  for (const one of built) one.catch(() => {});
  return new Map(LEVELS.map((level, n) => [level, built[n]!]));
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

/** Runs what is added in that order, no more than `limit` of them at any time. */
class Queue {
  private readonly limit: number;
  private readonly waiting: (() => void)[] = [];
  private running = 0;

  constructor(limit: number) {
    this.limit = limit;
  }

  async add(job: () => Promise<void>): Promise<void> {
    if (this.running === this.limit) await new Promise<void>((resolve) => this.waiting.push(resolve));
    else this.running++;
    try {
      await job();
    } finally {
      // Whoever waits takes over.
      const next = this.waiting.shift();
      if (next === undefined) this.running--;
      else next();
    }
  }
}
