// What is done to all tasks, one after the other, each in a step of its own: upstream does it with tasklist_lock held.
//
// A step waits until nobody holds that lock, and a pass goes on until no task needs it: those that begin meanwhile have their turn.

import type { Task } from "../kernel/kernel.ts";
import { type PatchState, THREAD_FLAG, VECTORS } from "../kernel/layout.ts";
import { act, each, type Step, until } from "../machine/agenda.ts";
import { messageOf } from "./blocker.ts";
import { type Core, STRAND, type Target } from "./core.ts";
import type { TaskSwitch } from "./taskSwitch.ts";

const RETRY = "livepatch retry";
const SECOND = 1e9;
const SIGNALS_TIMEOUT = 15;

export class TaskPasses {
  private readonly core: Core;
  private readonly tasks: TaskSwitch;
  /** What comes once all tasks are where they should be. */
  private readonly complete: () => readonly Step[];

  constructor(core: Core, tasks: TaskSwitch, complete: () => readonly Step[]) {
    this.core = core;
    this.tasks = tasks;
    this.complete = complete;
  }

  // ---- Without a look at where they are.

  setStates(state: PatchState): Step {
    const { kernel } = this.core.parts;
    return this.untilNone(
      `${state} for`,
      (task) => kernel.patchState(task) !== state,
      (task) => kernel.setPatchState(task, state),
    );
  }

  /** TIF_PATCH_PENDING on all who are not there yet. */
  setPending(target: Target): Step {
    return this.untilNone(
      "pending for",
      (task) => this.core.parts.kernel.patchState(task) !== target && !this.tasks.isPending(task),
      (task) => this.tasks.setFlag(task, THREAD_FLAG.TIF_PATCH_PENDING, true),
    );
  }

  clearPending(): Step {
    return this.untilNone(
      "pending no more:",
      (task) => this.tasks.isPending(task),
      (task) => this.tasks.setFlag(task, THREAD_FLAG.TIF_PATCH_PENDING, false),
    );
  }

  force(target: Target): Step {
    return this.untilNone(
      "force",
      (task) => this.tasks.isPending(task),
      (task) => this.tasks.force(task, target),
    );
  }

  private untilNone(what: string, needs: (task: Task) => boolean, run: (task: Task) => void): Step {
    const left = () => this.tasks.all.filter(needs);
    const round = (tasks: () => readonly Task[]): Step =>
      this.pass(
        what,
        tasks,
        (task) => {
          if (needs(task)) run(task);
        },
        () => {
          const more = left();
          return more.length === 0 ? [] : [round(() => more)];
        },
      );
    return round(left);
  }

  private pass(
    what: string,
    tasks: () => readonly Task[],
    run: (task: Task) => void,
    after: () => readonly Step[],
  ): Step {
    const { kernel } = this.core.parts;
    const ready = () => kernel.tasklistIsFree;
    const step = (task: Task): Step => ({
      get what() {
        return `${what} ${task}`;
      },
      ready,
      run: () => {
        run(task);
        return undefined;
      },
    });
    return { ...each(what, tasks, step, after), ready };
  }

  // ---- By where they are.

  /** Switches whoever can be. When all are there the transition is completed, otherwise it comes back to them later. */
  trySwitchAll(): readonly Step[] {
    const { transition } = this.core;
    if (transition === undefined) return [];
    const { target } = transition;
    const { kernel } = this.core.parts;
    const left = () => this.tasks.all.filter((task) => kernel.patchState(task) !== target);
    const round = (tasks: readonly Task[], before: ReadonlySet<Task>): Step =>
      this.pass(
        "try to switch",
        () => tasks,
        (task) => this.trySwitch(task, target),
        () => {
          const now = left();
          if (now.length === 0) return this.complete();
          // Those who began meanwhile, with a parent that had not been switched.
          const seen = new Set([...before, ...tasks]);
          const more = now.filter((task) => !seen.has(task));
          return more.length === 0 ? this.incomplete() : [round(more, seen)];
        },
      );
    const ready = () => kernel.tasklistIsFree;
    return [{ what: "look at all tasks", ready, run: () => [round(left(), new Set())] }];
  }

  private trySwitch(task: Task, target: Target): void {
    const reason = this.tasks.trySwitch(task, target);
    if (reason === undefined) return;
    this.core.log("trace", () => `klp_try_switch_task: ${task} ${messageOf(reason)}`);
    if (task.has("PF_IDLE")) this.tasks.kickIdle(task);
  }

  private incomplete(): readonly Step[] {
    const { transition, parts } = this.core;
    const { agenda } = parts.kernel;
    const { retryEvery = SECOND, signalsTimeout = SIGNALS_TIMEOUT } = this.core.options;
    const { tries } = transition!;
    this.core.set({ transition: { ...transition!, tries: tries + 1 } });
    const due = parts.kernel.clock + retryEvery;
    const again: Step = {
      what: "try again",
      due,
      ready: () => parts.kernel.clock >= due && !agenda.isPending(STRAND),
      run: () => {
        if (this.core.transition !== undefined)
          agenda.add(STRAND, [{ what: "try", run: () => this.trySwitchAll() }]);
        return undefined;
      },
    };
    // One at a time, however often somebody asks for another look in between.
    if (!agenda.isPending(RETRY)) agenda.add(RETRY, [again]);
    if (tries === 0 || tries % signalsTimeout !== 0) return [];
    if (tries === signalsTimeout) this.core.log("notice", "signaling remaining tasks");
    return this.signal();
  }

  /** A signal that is none to whoever is not there yet; kthreads are woken. It takes a CPU that executes. */
  signal(): readonly Step[] {
    const { kernel } = this.core.parts;
    if (!kernel.agenda.live) return [];
    const kick = (task: Task): readonly Step[] => {
      const cpu = kernel.cpus[task.struct.getNumber("cpu")] ?? kernel.cpus[0]!;
      const free = () => cpu.struct.getNumber("kick") === 0;
      return [
        until(`${task} can be kicked`, free),
        act(`kick ${task}`, () => {
          cpu.struct.set("kick", task.struct.at);
          kernel.interrupt(cpu.struct.getNumber("number"), VECTORS.CALL_FUNCTION_VECTOR);
        }),
        until(`${task} is kicked`, free),
      ];
    };
    const pending = this.tasks.all.filter((task) => !task.has("PF_IDLE") && this.tasks.isPending(task));
    return pending.flatMap(kick);
  }
}
