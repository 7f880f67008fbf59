// Switching one task to the target state, or finding out why not.

import type { Task } from "../kernel/kernel.ts";
import { type PatchState, TASK_STATE, THREAD_FLAG, VECTORS } from "../kernel/layout.ts";
import { orcUnwinder } from "../unwind/orcWalker.ts";
import type { Walk } from "../unwind/walk.ts";
import { type Blocker, describeBlocker, type Reason } from "./blocker.ts";
import type { Core } from "./core.ts";
import { type Found, findOnStack, leaving } from "./stackCheck.ts";

/** Why a task is not switched, and the walk by which that was found. */
interface Look {
  readonly reason: Reason;
  readonly walk: Walk | undefined;
}

export class TaskSwitch {
  private readonly core: Core;

  constructor(core: Core) {
    this.core = core;
  }

  /** All that there are, idle tasks included, but for those that are only remembered. */
  get all(): Task[] {
    return this.core.parts.kernel.table.everything.filter(({ state }) => state !== TASK_STATE.TASK_DEAD);
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
  trySwitch(task: Task, target: PatchState): Reason | undefined {
    const { kernel } = this.core.parts;
    if (kernel.patchState(task) === target) return undefined;
    const { reason } = this.look(task);
    if (reason.kind !== "not-tried") return reason;
    this.force(task, target);
    return undefined;
  }

  /**
   * The same for the task that asks for it itself, at a place where its stack can be walked. It may have been asked to in an earlier
   * transition: in this one only the flag says that everything is in place which a switch depends on.
   */
  trySwitchCurrent(task: Task, target: PatchState): void {
    if (!this.isPending(task)) return;
    const walk = this.core.parts.walkOfCurrent(task);
    if (walk === undefined || walk.doubt !== null || this.find(walk) !== undefined) return;
    this.force(task, target);
  }

  /** Whatever is on its stack. */
  force(task: Task, target: PatchState): void {
    this.setFlag(task, THREAD_FLAG.TIF_PATCH_PENDING, false);
    this.core.parts.kernel.setPatchState(task, target);
  }

  /** Makes an idle CPU go through its loop. */
  kickIdle(task: Task): void {
    this.setFlag(task, THREAD_FLAG.TIF_NEED_RESCHED, true);
    this.core.parts.kernel.interrupt(task.struct.getNumber("cpu"), VECTORS.RESCHEDULE_VECTOR);
  }

  /** Who is not in the state `target` yet, and why. */
  blockers(target: PatchState): Blocker[] {
    const { kernel, code } = this.core.parts;
    return this.all
      .filter((task) => kernel.patchState(task) !== target)
      .map((task) => {
        const { reason, walk } = this.look(task);
        return describeBlocker(task, reason, walk, code);
      });
  }

  private look(task: Task): Look {
    const walk = this.walk(task);
    if (walk === "running")
      return { reason: { kind: "running", cpu: task.struct.getNumber("cpu") }, walk: undefined };
    if (walk === undefined) return { reason: { kind: "not-tried" }, walk };
    if (walk.doubt !== null) return { reason: { kind: "unreliable", doubt: walk.doubt }, walk };
    const found = this.find(walk);
    return { reason: found === undefined ? { kind: "not-tried" } : { kind: "on-stack", found }, walk };
  }

  private find(walk: Walk): Found | undefined {
    const { core } = this;
    const { code, kernel } = core.parts;
    const frames = core.isWeakened("interrupted-frame")
      ? walk.frames.filter(({ kind }) => kind !== "interrupted")
      : walk.frames;
    const pending = !core.isWeakened("pending-ip");
    return findOnStack(frames, leaving(core), { memory: kernel.machine.memory, code, pending });
  }

  /** undefined if nothing is on its stack, or it never comes back to it. Where nobody runs, those can be walked as well that CPUs would execute. */
  private walk(task: Task): Walk | undefined | "running" {
    const { kernel, contextOf, walkOfCurrent } = this.core.parts;
    if (task.onCpu) return kernel.agenda.live ? "running" : walkOfCurrent(task);
    if (task.hasEnded) return undefined;
    const start = kernel.startOf(task);
    const { unwinder = orcUnwinder } = this.core.options;
    return start === undefined ? undefined : unwinder.walk(contextOf(task), start);
  }
}
