// A task as TypeScript sees it: its structure in guest memory, and nothing of its own.

import type { Addr } from "../base/addr.ts";
import { addr } from "../base/addr.ts";
import { STACK_SIZE } from "../machine/callRecord.ts";
import type { Memory } from "../machine/memory.ts";
import { StructView } from "../machine/struct.ts";
import { PROCESS_FLAG, TASK, TASK_STATE } from "./layout.ts";

export type TaskView = StructView<keyof typeof TASK.fields>;

/** Lowest address, and the one past the highest. */
export interface Stack {
  readonly low: Addr;
  readonly high: Addr;
}

/** What a task's `state` is called in a task dump (Linux fs/proc/array.c, 6.1). */
const LETTERS = new Map<number, string>([
  [TASK_STATE.TASK_RUNNING, "R"],
  [TASK_STATE.TASK_INTERRUPTIBLE, "S"],
  [TASK_STATE.TASK_UNINTERRUPTIBLE, "D"],
  [TASK_STATE.TASK_STOPPED, "T"],
  [TASK_STATE.TASK_TRACED, "t"],
  [TASK_STATE.EXIT_DEAD, "X"],
  [TASK_STATE.EXIT_ZOMBIE, "Z"],
  [TASK_STATE.TASK_DEAD, "X"],
  [TASK_STATE.TASK_NEW, "N"],
  [TASK_STATE.TASK_FROZEN, "F"],
]);

/** One that has ended leaves its structure and stack to the next that begins. */
export class Task {
  readonly struct: TaskView;

  constructor(memory: Memory, at: Addr) {
    this.struct = new StructView(memory, TASK, at);
  }

  get stack(): Stack {
    const low = this.struct.getNumber("stack") as Addr;
    return { low, high: addr(low + STACK_SIZE) };
  }

  get pid(): number {
    return this.struct.getNumber("pid");
  }

  get comm(): string {
    return this.struct.getText("comm");
  }

  get state(): number {
    return this.struct.getNumber("state");
  }

  get letter(): string {
    return LETTERS.get(this.state) ?? "?";
  }

  has(flag: keyof typeof PROCESS_FLAG): boolean {
    return (this.struct.getNumber("flags") & PROCESS_FLAG[flag]) !== 0;
  }

  /** On a CPU, or nearly on or off it. */
  get onCpu(): boolean {
    return this.struct.getNumber("on_cpu") !== 0;
  }

  /** Runs, or waits in a run queue. */
  get onRunQueue(): boolean {
    return this.struct.getNumber("on_rq") !== 0;
  }

  /** It has been on its stack for the last time. */
  get hasEnded(): boolean {
    const { EXIT_ZOMBIE, EXIT_DEAD, TASK_DEAD } = TASK_STATE;
    return (this.state & (EXIT_ZOMBIE | EXIT_DEAD | TASK_DEAD)) !== 0 && !this.onRunQueue && !this.onCpu;
  }

  /** As the kernel's messages name it. */
  toString(): string {
    return `${this.comm}:${this.pid}`;
  }
}
