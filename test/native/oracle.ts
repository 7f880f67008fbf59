// The host's processor as the oracle: runs programs natively and says what they did.
//
// Needs Linux on x86-64 and nothing else: harness.S is assembled here and put into an executable of our own
// making. Programs run unprivileged in a process that may make no system call; one that makes one ends it,
// which runNative reports. They must leave segment registers and bases alone.

import { spawn } from "node:child_process";
import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Outcome, type Program, REGISTERS, type RegisterName } from "../x86/cases-model.ts";
import { harnessProgram } from "./harness.ts";
import { decodeOutcomes, encodePrograms } from "./records.ts";

/** What the harness's exit status says it could not do. */
const STEPS = [
  "",
  "map the data window at its address",
  "map the code page at its address, writable and executable",
  "map its own memory at its address",
  "map the case records",
  "set the signal stack",
  "set the signal handlers",
  "set the FS and GS bases",
  "set the alarm",
  "enter strict seccomp mode, or write its results",
] as const;

/** What each program did, in their order. Throws if this host cannot run them, or one breaks out. */
export async function runNative(programs: readonly Program[]): Promise<Outcome[]> {
  if (programs.length === 0) return [];
  const folder = mkdtempSync(join(tmpdir(), "fentrylab-native-"));
  try {
    const program = join(folder, "harness");
    const input = join(folder, "cases");
    writeFileSync(program, await harnessProgram(), { mode: 0o700 });
    writeFileSync(input, encodePrograms(programs));
    const { status, signal, output } = await run(program, input);
    if (signal === null && status !== 0)
      throw new Error(`the native harness cannot ${STEPS[status] ?? `run: ${status}`}`);
    const outcomes = decodeOutcomes(programs, output);
    // What the harness had not yet written when it was killed is lost: the culprit comes after what it wrote
    if (signal !== null || outcomes.length !== programs.length) {
      const [from, to] = [outcomes.length, programs.length - 1];
      throw new Error(`one of programs ${from} to ${to} killed the harness (${signal}): a system call?`);
    }
    return outcomes;
  } finally {
    rmSync(folder, { recursive: true });
  }
}

const ZEROS = Object.fromEntries(REGISTERS.map((name) => [name, 0n])) as Record<RegisterName, bigint>;

/** Why this host cannot be the oracle, in a sentence; undefined if it can. */
export async function nativeSkipReason(): Promise<string | undefined> {
  if (process.platform !== "linux") return `the host runs ${process.platform}, not Linux`;
  if (process.arch !== "x64") return `the host's processor is ${process.arch}, not x86-64`;
  const nop: Program = { bytes: Uint8Array.of(0x90), before: { registers: ZEROS, rflags: 0, memory: [] } };
  try {
    const [outcome] = await runNative([nop]);
    return outcome?.fault === null ? undefined : "the native harness does not see an int3 as one";
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

interface Ended {
  readonly status: number;
  readonly signal: string | null;
  readonly output: Uint8Array;
}

function run(program: string, input: string): Promise<Ended> {
  return new Promise((resolve, reject) => {
    const stdin = openSync(input, "r");
    const child = spawn(program, [], { stdio: [stdin, "pipe", "ignore"] });
    closeSync(stdin);
    const chunks: Buffer[] = [];
    child.stdout?.on("data", (chunk: Buffer) => chunks.push(chunk));
    child.on("error", reject);
    child.on("close", (status, signal) =>
      resolve({ status: status ?? 0, signal, output: Buffer.concat(chunks) }),
    );
  });
}
