// The native harness with a batch at a time, beside this process: it runs on the other core while the engine works.
//
// Records go in and come out as files, which neither side waits for. Needs what test/native/oracle.ts needs; its
// `nativeSkipReason` says what is missing.

import { spawn } from "node:child_process";
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { harnessProgram } from "../native/harness.ts";
import type { Batch } from "./batch.ts";
import { type Oracle, OUTCOME, OUTCOME_WORDS, type Outcomes } from "./outcomes.ts";

export class HostOracle implements Oracle {
  private readonly folder: string;
  private readonly program: string;
  private files = 0;

  private constructor(folder: string, program: string) {
    this.folder = folder;
    this.program = program;
  }

  static async open(): Promise<HostOracle> {
    const folder = mkdtempSync(join(tmpdir(), "fentrylab-fuzz-"));
    const program = join(folder, "harness");
    writeFileSync(program, await harnessProgram(), { mode: 0o700 });
    return new HostOracle(folder, program);
  }

  close(): void {
    rmSync(this.folder, { recursive: true });
  }

  /** What the processor does with every case. The batch's records are free to be written again when this returns. */
  async run(batch: Batch): Promise<Outcomes> {
    const { count } = batch;
    if (count === 0) return { words: new Int32Array(), starts: new Int32Array(), count };
    const name = join(this.folder, `${this.files++}`);
    const [input, output] = [`${name}.in`, `${name}.out`];
    writeFileSync(input, batch.bytes);
    await this.spawn(input, output);
    const bytes = readFileSync(output);
    rmSync(input);
    rmSync(output);
    const words = new Int32Array(bytes.buffer, bytes.byteOffset, bytes.length >> 2);
    const starts = new Int32Array(count);
    let done = 0;
    for (let at = 0; done < count && at + OUTCOME_WORDS <= words.length; done++) {
      const end = at + OUTCOME_WORDS + words[at + OUTCOME.changes]!;
      if (end > words.length) break;
      starts[done] = at;
      at = end;
    }
    return { words, starts, count: done };
  }

  private spawn(input: string, output: string): Promise<void> {
    const [stdin, stdout] = [openSync(input, "r"), openSync(output, "w")];
    const child = spawn(this.program, [], { stdio: [stdin, stdout, "ignore"] });
    closeSync(stdin);
    closeSync(stdout);
    return new Promise((resolve, reject) => {
      child.on("error", reject);
      child.on("close", (status) => {
        if (status !== null && status !== 0)
          reject(new Error(`the native harness failed at its step ${status}`));
        else resolve();
      });
    });
  }
}
