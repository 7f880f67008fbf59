// A kernel with one program of user tasks, of which nothing is left to chance: what they see of the kernel is tested.

import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Addr, offset } from "../../src/base/addr.ts";
import { FIRST } from "../../src/base/chooser.ts";
import type { Image } from "../../src/image/image.ts";
import type { ConductorOptions, RunEnd } from "../../src/kernel/conductor.ts";
import type { Task } from "../../src/kernel/task.ts";
import { Lab, type LabOptions } from "../../src/lab.ts";

const PROLOGUE = `.include "user/program.inc"
.bss
.p2align 12
	.skip 4096 * 8
stacks:
.text
# Where every handler returns to.
program restorer
	sys NR_rt_sigreturn
	ud2
done restorer
`;
const STACK = 4096;
/** Short, so that everybody gets his turn. */
const SLICE = 40;

export class Userland {
  readonly lab: Lab;
  readonly program: Image;
  readonly tasks: Task[] = [];

  /** `source` is the program's, behind its prologue: eight stacks of a page end at `stacks`, downwards; `restorer`. */
  static async open(source: string, options: LabOptions = {}): Promise<Userland> {
    const lab = await Lab.open(options);
    const folder = mkdtempSync(join(tmpdir(), "fentrylab-"));
    try {
      const file = join(folder, "program.S");
      writeFileSync(file, PROLOGUE + source);
      const userland = new Userland(lab, await lab.loadProgram("program", [file]));
      lab.kernel.boot();
      return userland;
    } finally {
      rmSync(folder, { recursive: true });
    }
  }

  private constructor(lab: Lab, program: Image) {
    this.lab = lab;
    this.program = program;
  }

  /** A task that begins at `symbol`, on any CPU or on those that are `allowed`. */
  start(symbol: string, allowed = -1n): Task {
    const stack = offset(this.at("stacks"), -STACK * this.tasks.length);
    const { kernel } = this.lab;
    const task = kernel.createUserTask({ comm: symbol, entry: this.at(symbol), stack, allowed });
    kernel.start(task);
    this.tasks.push(task);
    return task;
  }

  /** To the end, where all sleep, if `budget` lets it; always the first of everything that could be chosen. */
  run(budget = 2_000_000, options: Partial<ConductorOptions> = {}, watch?: () => string | undefined): RunEnd {
    return this.lab
      .conductor({ chooser: FIRST, slices: [SLICE], interruptions: ["none"], ...options })
      .run({ budget, ...(watch === undefined ? {} : { watch }) });
  }

  at(symbol: string): Addr {
    return this.program.symbol(symbol).address;
  }

  /** The n-th word at `symbol`, signed. */
  word(symbol: string, n = 0): bigint {
    return BigInt.asIntN(64, this.lab.machine.memory.readWord(offset(this.at(symbol), 8 * n)));
  }

  /** Writes the first word at `symbol`. */
  set(symbol: string, value: bigint): void {
    this.lab.machine.memory.writeWord(this.at(symbol), value);
  }
}
