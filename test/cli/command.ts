// The command line, run in this process and as a process of its own; files to run it on.

import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { vi } from "vitest";
import { runCommand } from "../../src/cli/program.ts";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));
/** Built by `npm test`, which is what the package's `bin` runs. */
export const MAIN = join(ROOT, "dist/src/cli/main.js");

/** What a run left. */
export interface Ran {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** `fentrylab args…` as a process. */
export function spawnCommand(...args: string[]): Ran {
  const { status, stdout, stderr } = spawnSync(process.execPath, [MAIN, ...args], { encoding: "utf8" });
  return { status, stdout, stderr };
}

/** `fentrylab args…` within this process: the same but for the start. One at a time. */
export async function command(...args: string[]): Promise<Ran> {
  const written = { stdout: "", stderr: "" };
  const spies = (["stdout", "stderr"] as const).map((stream) =>
    vi.spyOn(process[stream], "write").mockImplementation((text) => {
      written[stream] += String(text);
      return true;
    }),
  );
  try {
    return { status: await runCommand(args), ...written };
  } finally {
    for (const spy of spies) spy.mockRestore();
  }
}

export function fixturePath(name: string): string {
  return join(ROOT, "fixtures", name);
}

/** A folder of files to be given to commands. */
export class Scratch {
  readonly folder = mkdtempSync(join(tmpdir(), "fentrylab-"));

  /** The path of a new file. */
  file(name: string, contents: string | Uint8Array): string {
    const path = join(this.folder, name);
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, contents);
    return path;
  }

  /** A fixture's bytes, changed. */
  changed(name: string, fixture: string, change: (bytes: Uint8Array) => Uint8Array): string {
    return this.file(name, change(new Uint8Array(readFileSync(fixturePath(fixture)))));
  }

  remove(): void {
    rmSync(this.folder, { recursive: true });
  }
}

/** What `fentrylab call --json` and `fentrylab disasm --json` print. */
export interface CallDocument {
  readonly function: string;
  readonly arguments: string[];
  readonly result: string;
  readonly instructions: number;
}

export interface ListingDocument {
  readonly functions: {
    readonly symbol: string;
    readonly address: string;
    readonly lines: { readonly address: string; readonly bytes: string; readonly text: string }[];
  }[];
}
