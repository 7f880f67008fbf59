// Switching one task to the target state, or saying why not: which task, which frame, why, and what would help.

import type { CodeMap } from "../image/codeMap.ts";
import type { Kernel, Task } from "../kernel/kernel.ts";
import { type PatchState, TASK_STATE, THREAD_FLAG, VECTORS } from "../kernel/layout.ts";
import type { Memory } from "../machine/memory.ts";
import { DOUBTS, type UnwindContext, type Unwinder, type Walk } from "../unwind/walk.ts";
import type { Weakening } from "./options.ts";
import { type Found, findOnStack, type Range } from "./stackCheck.ts";

export type Reason =
  | { readonly kind: "running"; readonly cpu: number }
  | { readonly kind: "unreliable"; readonly doubt: string }
  | { readonly kind: "on-stack"; readonly found: Found }
  /** It could be switched, and is going to be by the next look at it. */
  | { readonly kind: "not-tried" };

/** One task that a transition waits for. */
export interface Blocker {
  readonly task: Task;
  readonly reason: Reason;
  /** As upstream's debug message goes on behind the task. */
  readonly text: string;
  /** In words, with the address. */
  readonly why: string;
  /** What would get it out of the way. */
  readonly advice: string;
  /** Return addresses, innermost first. */
  readonly stack: readonly string[];
}

export interface TaskSwitchParts {
  readonly kernel: Kernel;
  readonly memory: Memory;
  readonly code: CodeMap;
  readonly contextOf: (task: Task) => UnwindContext;
  /** A walk of the task that a CPU executes, where it stands still, with where it is in front. */
  readonly walkOfCurrent: (task: Task) => Walk | undefined;
  /** What the transition would have tasks leave. */
  readonly leaving: () => readonly Range[];
  /** Whether a precaution is left out. */
  readonly weakened: (what: Weakening) => boolean;
  readonly unwinder: () => Unwinder;
}

export class TaskSwitch {
  private readonly parts: TaskSwitchParts;

  constructor(parts: TaskSwitchParts) {
    this.parts = parts;
  }

  /** All that there are, idle tasks included, but for those that are only remembered. */
  get all(): Task[] {
    return this.parts.kernel.table.everything.filter(({ state }) => state !== TASK_STATE.TASK_DEAD);
  }

  isPending(task: Task): boolean {
    return (task.struct.getNumber("thread_flags") & THREAD_FLAG.TIF_PATCH_PENDING) !== 0;
  }

  /** One atomic instruction, as far as guest code can see. */
  setFlag({ struct }: Task, flag: number, on: boolean): void {
    const flags = struct.getNumber("thread_flags");
    struct.set("thread_flags", on ? flags | flag : flags & ~flag);
  }

  /** Switches a task if nothing is in the way; undefined then. The look and the switch are one step for everybody else. */
  trySwitch(task: Task, target: PatchState): Blocker | undefined {
    const { kernel } = this.parts;
    if (kernel.patchState(task) === target) return undefined;
    const reason = this.reason(task);
    if (reason.kind !== "not-tried") return this.blocker(task, reason);
    this.force(task, target);
    return undefined;
  }

  /**
   * The same for the task that asks for it itself, at a place where its stack can be walked. It may have been asked to in an earlier
   * transition: in this one only the flag says that everything is in place which a switch depends on.
   */
  trySwitchCurrent(task: Task, target: PatchState): void {
    if (!this.isPending(task)) return;
    const walk = this.parts.walkOfCurrent(task);
    if (walk === undefined || walk.doubt !== null || this.find(walk) !== undefined) return;
    this.force(task, target);
  }

  /** Whatever is on its stack. */
  force(task: Task, target: PatchState): void {
    this.setFlag(task, THREAD_FLAG.TIF_PATCH_PENDING, false);
    this.parts.kernel.setPatchState(task, target);
  }

  /** Makes an idle CPU go through its loop. */
  kickIdle(task: Task): void {
    this.setFlag(task, THREAD_FLAG.TIF_NEED_RESCHED, true);
    this.parts.kernel.interrupt(task.struct.getNumber("cpu"), VECTORS.RESCHEDULE_VECTOR);
  }

  blockers(target: PatchState): Blocker[] {
    const { kernel } = this.parts;
    return this.all
      .filter((task) => kernel.patchState(task) !== target)
      .map((task) => this.blocker(task, this.reason(task)));
  }

  private reason(task: Task): Reason {
    const walk = this.walk(task);
    if (walk === "running") return { kind: "running", cpu: task.struct.getNumber("cpu") };
    if (walk === undefined) return { kind: "not-tried" };
    if (walk.doubt !== null)
      return {
        kind: "unreliable",
        doubt: `${DOUBTS[walk.doubt.why]} (${this.parts.code.describe(walk.doubt.at)})`,
      };
    const found = this.find(walk);
    return found === undefined ? { kind: "not-tried" } : { kind: "on-stack", found };
  }

  private find(walk: Walk): Found | undefined {
    const { memory, code, leaving, weakened } = this.parts;
    const frames = weakened("interrupted-frame")
      ? walk.frames.filter(({ kind }) => kind !== "interrupted")
      : walk.frames;
    return findOnStack(frames, leaving(), { memory, code, pending: !weakened("pending-ip") });
  }

  /** undefined if nothing is on its stack. Where nobody runs, those can be walked as well that CPUs would execute. */
  private walk(task: Task): Walk | undefined | "running" {
    const { kernel, contextOf, walkOfCurrent } = this.parts;
    if (task.onCpu) return kernel.agenda.live ? "running" : walkOfCurrent(task);
    const start = kernel.startOf(task);
    return start === undefined ? undefined : this.parts.unwinder().walk(contextOf(task), start);
  }

  private blocker(task: Task, reason: Reason): Blocker {
    const { code } = this.parts;
    const walk = this.walk(task);
    const frames = walk === undefined || walk === "running" ? [] : walk.frames;
    return {
      task,
      reason,
      ...this.words(task, reason),
      stack: frames.map(({ kind, address }) =>
        kind === "interrupted" ? code.describe(address) : code.describeReturn(address),
      ),
    };
  }

  private words(task: Task, reason: Reason): Pick<Blocker, "text" | "why" | "advice"> {
    switch (reason.kind) {
      case "running":
        return {
          text: "is running",
          why: `is running on CPU ${reason.cpu}`,
          advice: task.has("PF_IDLE")
            ? "it is switched when its CPU goes through the idle loop"
            : "it is switched when it returns to user mode, or is looked at while it does not run",
        };
      case "unreliable":
        return {
          text: "has an unreliable stack",
          why: `has an unreliable stack: ${reason.doubt}`,
          advice: "it is switched at the boundary to user mode, or once its stack can be walked",
        };
      case "on-stack": {
        const { name, address, pending } = reason.found;
        const where = this.parts.code.describe(address);
        return {
          text: `is sleeping on function ${name}`,
          why: pending
            ? `is on its way to ${name}, from a trampoline that was preempted (${where})`
            : `is ${state(task)} in ${name} (${where})`,
          advice: pending ? "it goes there when it runs again, and then leaves it" : advice(task),
        };
      }
      case "not-tried":
        return { text: "was not looked at yet", why: "was not looked at yet", advice: "try again" };
    }
  }
}

function state(task: Task): string {
  const { TASK_STOPPED, TASK_TRACED, TASK_FROZEN, TASK_INTERRUPTIBLE, TASK_UNINTERRUPTIBLE } = TASK_STATE;
  if (task.state & TASK_STOPPED) return "stopped";
  if (task.state & TASK_FROZEN) return "frozen";
  if (task.state & TASK_TRACED) return "traced, and stopped,";
  if (task.state & TASK_INTERRUPTIBLE) return "sleeping";
  if (task.state & TASK_UNINTERRUPTIBLE) return "sleeping, uninterruptibly,";
  return "waiting for a CPU";
}

function advice(task: Task): string {
  const { TASK_STOPPED, TASK_TRACED, TASK_FROZEN, TASK_INTERRUPTIBLE, TASK_UNINTERRUPTIBLE } = TASK_STATE;
  if (task.state & TASK_FROZEN) return "it leaves the function when it is thawed";
  if (task.state & TASK_STOPPED) return "let it go on (SIGCONT), and it leaves the function by itself";
  if (task.state & TASK_TRACED) return "its tracer has to let it go on";
  if (task.state & TASK_UNINTERRUPTIBLE) return "no signal gets it out: what it waits for has to happen";
  if (task.state & TASK_INTERRUPTIBLE)
    return task.has("PF_KTHREAD")
      ? "wake it, and it leaves the function if its loop lets it"
      : "a signal, or the fake one, makes its system call return and start again";
  return "it leaves the function when it runs again";
}
