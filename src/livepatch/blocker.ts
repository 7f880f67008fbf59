// Who holds a transition up, in words: which task, which frame, why, and what would help.

import type { CodeMap } from "../image/codeMap.ts";
import type { Task } from "../kernel/kernel.ts";
import { TASK_STATE } from "../kernel/layout.ts";
import { DOUBTS, type Walk } from "../unwind/walk.ts";
import type { Found } from "./stackCheck.ts";

export type Reason =
  | { readonly kind: "running"; readonly cpu: number }
  | { readonly kind: "unreliable"; readonly doubt: NonNullable<Walk["doubt"]> }
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
  /** Return addresses, innermost first; none where it cannot be walked. */
  readonly stack: readonly string[];
}

export function describeBlocker(task: Task, reason: Reason, walk: Walk | undefined, code: CodeMap): Blocker {
  return {
    task,
    reason,
    text: messageOf(reason),
    ...words(task, reason, code),
    stack: (walk?.frames ?? []).map(({ kind, address }) =>
      kind === "interrupted" ? code.describe(address) : code.describeReturn(address),
    ),
  };
}

/** As upstream's debug message goes on behind the task. */
export function messageOf(reason: Reason): string {
  switch (reason.kind) {
    case "running":
      return "is running";
    case "unreliable":
      return "has an unreliable stack";
    case "on-stack":
      return `is sleeping on function ${reason.found.name}`;
    case "not-tried":
      return "was not looked at yet";
  }
}

function words(task: Task, reason: Reason, code: CodeMap): Pick<Blocker, "why" | "advice"> {
  switch (reason.kind) {
    case "running":
      return {
        why: `is running on CPU ${reason.cpu}`,
        advice: task.has("PF_IDLE")
          ? "it is switched when its CPU goes through the idle loop"
          : "it is switched when it returns to user mode, or is looked at while it does not run",
      };
    case "unreliable": {
      const { why, at } = reason.doubt;
      return {
        why: `has an unreliable stack: ${DOUBTS[why]} (${code.describe(at)})`,
        advice: "it is switched at the boundary to user mode, or once its stack can be walked",
      };
    }
    case "on-stack": {
      const { name, address, pending } = reason.found;
      const where = code.describe(address);
      return {
        why: pending
          ? `is on its way to ${name}, from a trampoline that was preempted (${where})`
          : `is ${state(task)} in ${name} (${where})`,
        advice: pending ? "it goes there when it runs again, and then leaves it" : advice(task),
      };
    }
    case "not-tried":
      return { why: "was not looked at yet", advice: "try again" };
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
