// What holds between any two instructions of a run, whatever is chosen: each rule a sentence, and what breaks it.
//
// Where code changes several words, a lock is held meanwhile; a rule about them is looked at while that lock is free. A
// checker is of one run: it remembers what can never change back.

import type { Addr } from "../base/addr.ts";
import { offset } from "../base/addr.ts";
import type { Image } from "../image/image.ts";
import type { Vcpu } from "../machine/vcpu.ts";
import { orcUnwinder } from "../unwind/orcWalker.ts";
import { DOUBTS, type Unwinder } from "../unwind/walk.ts";
import { FLAG } from "../x86/register.ts";
import { isBroken, unlessBroken } from "./broken.ts";
import type { Cpu, Kernel } from "./kernel.ts";
import { CONSTANTS, PROCESS_FLAG, TASK_STATE, THREAD_FLAG } from "./layout.ts";
import type { Task } from "./task.ts";
import type { UnwindingParts } from "./unwindContext.ts";

/** A rule that does not hold. */
export interface Violation {
  readonly rule: string;
  readonly what: string;
}

export interface InvariantOptions {
  /** What walks the stacks of tasks that were switched out; default ORC. */
  readonly unwinder?: Unwinder;
}

/** What a rule answers: nothing, or what breaks it. */
type Finding = string | undefined;

interface Rule {
  /** True while what it is about may be changing. */
  readonly busy?: (sight: Sight) => boolean;
  readonly check: (sight: Sight) => Finding;
}

const {
  TASK_RUNNING,
  TASK_INTERRUPTIBLE,
  TASK_STOPPED,
  TASK_TRACED,
  EXIT_ZOMBIE,
  EXIT_DEAD,
  TASK_DEAD,
  TASK_NEW,
  TASK_FROZEN,
} = TASK_STATE;
const { PF_KTHREAD, PF_EXITING, PF_IDLE, PF_LAB, PF_FREEZABLE, PF_NOFREEZE } = PROCESS_FLAG;
const STATES: ReadonlySet<number> = new Set(Object.values(TASK_STATE));
/** States that a task goes on from only to be taken apart. */
const ENDED = EXIT_ZOMBIE | EXIT_DEAD | TASK_DEAD;

const RULES: Readonly<Record<string, Rule>> = {
  "a task is in one of the states that there are": {
    check: ({ tasks }) => first(tasks, ({ state }) => !STATES.has(state)),
  },
  "a task is current on one CPU, or in one run queue, or in neither and sleeps": {
    busy: (sight) => sight.queuesChange,
    check: ({ tasks }) =>
      first(tasks, ({ onRq, running, queued, locked }) =>
        locked ? running + queued > 1 : running + queued !== (onRq ? 1 : 0),
      ),
  },
  "a task that is in no run queue and on no CPU waits for something": {
    busy: (sight) => sight.queuesChange,
    check: ({ tasks }) =>
      first(tasks, ({ state, onRq, locked }) => !locked && !onRq && state === TASK_RUNNING),
  },
  "only a task that a CPU runs has its registers there": {
    busy: (sight) => sight.queuesChange,
    check: ({ tasks }) => first(tasks, ({ onCpu, running }) => onCpu !== running > 0),
  },
  "a queue is as long as it says": {
    busy: (sight) => sight.queuesChange,
    check: ({ cpus }) => {
      const wrong = cpus.find(({ queue, struct }) => queue.length !== struct.getNumber("nr_queued"));
      return wrong && `CPU ${wrong.number} has ${wrong.queue.length} tasks in its queue`;
    },
  },
  "a task waits for a CPU that it may use": {
    busy: (sight) => sight.queuesChange,
    // One that must not stay is moved by the stopper of the CPU that it is on: until then its CPU is the old one.
    check: ({ cpus }) => {
      const wrong = cpus.find(({ queue, number }) =>
        queue.some(({ task }) => task.struct.getNumber("cpu") !== number),
      );
      return wrong && `a task in the queue of CPU ${wrong.number} is another CPU's`;
    },
  },
  "an idle task always runs": {
    check: ({ idle }) => first(idle, ({ state }) => state !== TASK_RUNNING),
  },
  "a task's stack ends with its mark": {
    check: ({ everybody, kernel }) =>
      first(
        everybody,
        ({ task }) => kernel.machine.memory.readNumber(task.stack.low) !== CONSTANTS.STACK_END_MAGIC,
      ),
  },
  "a CPU's stack pointer is in a stack of its own or of the task that it runs": {
    check: ({ cpus }) => {
      const wrong = cpus.find((cpu) => !stackIsRight(cpu));
      return wrong && `CPU ${wrong.number} has rsp ${wrong.vcpu.rsp.toString(16)}`;
    },
  },
  "user code can be preempted, and runs with interrupts on": {
    check: ({ cpus }) => {
      const wrong = cpus.find(
        ({ vcpu, struct }) =>
          isUser(vcpu) && (struct.getNumber("preempt_count") !== 0 || (vcpu.rflags & FLAG.IF) === 0n),
      );
      return wrong && `CPU ${wrong.number} in user mode`;
    },
  },
  "interrupts are handled one at a time, and NMIs": {
    check: ({ cpus }) => {
      const wrong = cpus.find(({ struct }) => {
        const count = struct.getNumber("preempt_count");
        const [preempt, hard, nmi] = [count & 0xffff, (count >> 16) & 0xf, count >> 20];
        return count < 0 || preempt > MAX_DEPTH || hard > 1 || nmi > MAX_NMIS;
      });
      return wrong && `CPU ${wrong.number} has preempt_count ${wrong.struct.getNumber("preempt_count")}`;
    },
  },
  "a stopped task was stopped, a traced one has a tracer": {
    busy: (sight) => sight.signalsChange || sight.tasksChange,
    check: ({ tasks }) =>
      first(
        tasks,
        ({ task, state, onRq }) =>
          !onRq &&
          ((state === TASK_STOPPED && (task.struct.getNumber("jobctl") & CONSTANTS.JOBCTL_STOPPED) === 0) ||
            (state === TASK_TRACED && task.struct.getNumber("tracer") === 0)),
      ),
  },
  "only user tasks stop and are traced": {
    check: ({ tasks }) =>
      first(
        tasks,
        ({ state, flags }) => (state & (TASK_STOPPED | TASK_TRACED)) !== 0 && (flags & PF_KTHREAD) !== 0,
      ),
  },
  "only what may be frozen is": {
    check: ({ tasks }) =>
      first(
        tasks,
        ({ state, flags }) =>
          state === TASK_FROZEN &&
          ((flags & PF_NOFREEZE) !== 0 || ((flags & PF_KTHREAD) !== 0 && (flags & PF_FREEZABLE) === 0)),
      ),
  },
  "a task that has ended was exiting": {
    check: ({ tasks }) =>
      first(tasks, ({ state, flags }) => (state & ENDED) !== 0 && (flags & PF_EXITING) === 0),
  },
  "a zombie is waited for, or will be": {
    busy: (sight) => sight.tasksChange,
    check: ({ tasks }) =>
      first(
        tasks,
        ({ task, state }) =>
          state === EXIT_ZOMBIE &&
          task.struct.getNumber("parent") === 0 &&
          (task.struct.getNumber("kthread") & CONSTANTS.KTHREAD_SHOULD_STOP) === 0,
      ),
  },
  "a task that a signal is for does not sleep interruptibly": {
    busy: (sight) => sight.signalsChange || sight.tasksChange,
    check: ({ tasks }) =>
      first(tasks, ({ task, state, onRq, locked }) => {
        if (locked || onRq || state !== TASK_INTERRUPTIBLE) return false;
        const flags = task.struct.getNumber("thread_flags");
        const pending = task.struct.get("pending") & ~task.struct.get("blocked");
        return (
          !task.has("PF_KTHREAD") &&
          (pending !== 0n || (flags & (THREAD_FLAG.TIF_SIGPENDING | THREAD_FLAG.TIF_NOTIFY_SIGNAL)) !== 0)
        );
      }),
  },
  "timers are in the order in which they are due, each once": {
    busy: (sight) => sight.timersChange,
    check: (sight) => sight.timers(),
  },
};
/** Spin locks that one task holds, each of which counts; an NMI in an NMI's breakpoint. */
const MAX_DEPTH = 8;
const MAX_NMIS = 2;

export class Invariants {
  /** How often each rule was looked at. */
  readonly counts: Readonly<Record<string, number>>;
  private readonly noted: Record<string, number> = {};
  private readonly kernel: Kernel;
  private readonly unwinding: UnwindingParts;
  private readonly locks: Locks;
  private readonly unwinder: Unwinder;
  /** When a task that has been walked since was switched out. */
  private readonly walked = new Map<Task, string>();
  /** Numbers of tasks that are exiting, and of those that are no more. */
  private readonly exiting = new Set<number>();
  private alive = new Set<number>();
  private readonly gone = new Set<number>();

  constructor(
    kernel: Kernel,
    image: Image,
    unwinding: UnwindingParts,
    { unwinder = orcUnwinder }: InvariantOptions = {},
  ) {
    this.kernel = kernel;
    this.unwinding = unwinding;
    this.locks = {
      tasks: image.symbol("tasklist_lock").address,
      signals: image.symbol("siglock").address,
      timers: image.symbol("timer_lock").address,
      firstTimer: image.symbol("timers").address,
    };
    this.unwinder = unwinder;
    this.counts = this.noted;
  }

  /** The first rule that does not hold now. */
  check(): Violation | undefined {
    const found = unlessBroken(() => this.look());
    return isBroken(found) ? { rule: "structures lead somewhere", what: found.broken } : found;
  }

  private look(): Violation | undefined {
    const sight = new Sight(this.kernel, this.locks);
    for (const [rule, { busy, check }] of Object.entries(RULES)) {
      if (busy?.(sight) === true) continue;
      this.note(rule);
      const what = check(sight);
      if (what !== undefined) return { rule, what };
    }
    return this.checkEnds(sight) ?? this.checkStacks(sight);
  }

  private note(rule: string): void {
    this.noted[rule] = (this.noted[rule] ?? 0) + 1;
  }

  private checkEnds(sight: Sight): Violation | undefined {
    const rule = "a task that exits does not come back, nor does its number";
    if (sight.tasksChange) return undefined;
    this.note(rule);
    const alive = new Set<number>();
    for (const { task, flags } of sight.tasks) {
      const { pid } = task;
      if (alive.has(pid) || this.gone.has(pid)) return { rule, what: `${task} is there again` };
      alive.add(pid);
      if ((flags & PF_EXITING) !== 0) this.exiting.add(pid);
      else if (this.exiting.has(pid)) return { rule, what: `${task} has exited already` };
    }
    for (const pid of this.alive) if (!alive.has(pid)) this.gone.add(pid);
    this.alive = alive;
    return undefined;
  }

  /** A stack does not change while its task is off: each is walked once after each switch. */
  private checkStacks(sight: Sight): Violation | undefined {
    const rule = "the stack of a task that is switched out can be walked to its end, reliably";
    if (sight.queuesChange) return undefined;
    for (const { task, onCpu, state } of sight.everybody) {
      if (onCpu || state === TASK_NEW) continue;
      const since = `${task.pid} ${task.struct.getNumber("switches")} ${task.struct.getNumber("switched_at")}`;
      if (this.walked.get(task) === since) continue;
      this.walked.set(task, since);
      this.note(rule);
      const start = this.kernel.startOf(task);
      if (start === undefined) continue;
      const { doubt } = this.unwinder.walk(this.kernel.unwindContext(task, this.unwinding), start);
      if (doubt === null) continue;
      return { rule, what: `${task}: ${DOUBTS[doubt.why]} (${this.unwinding.code.describe(doubt.at)})` };
    }
    return undefined;
  }
}

interface Locks {
  readonly tasks: Addr;
  readonly signals: Addr;
  readonly timers: Addr;
  readonly firstTimer: Addr;
}

interface TaskSight {
  readonly task: Task;
  readonly state: number;
  readonly flags: number;
  readonly onRq: boolean;
  readonly onCpu: boolean;
  /** Its lock is held: it is being woken, or moved. */
  readonly locked: boolean;
  /** How many CPUs it is current on, and how often it is in a queue. */
  running: number;
  queued: number;
}

interface CpuSight {
  readonly number: number;
  readonly vcpu: Vcpu;
  readonly struct: Cpu["struct"];
  readonly cpu: Cpu;
  readonly current: TaskSight | undefined;
  readonly queue: TaskSight[];
}

/** All that rules are about, read once. */
class Sight {
  readonly kernel: Kernel;
  readonly everybody: readonly TaskSight[];
  /** Neither idle tasks nor the laboratory's, which are called and not scheduled. */
  readonly tasks: readonly TaskSight[];
  readonly idle: readonly TaskSight[];
  readonly cpus: readonly CpuSight[];
  readonly queuesChange: boolean;
  readonly tasksChange: boolean;
  readonly signalsChange: boolean;
  readonly timersChange: boolean;
  private readonly firstTimer: Addr;

  constructor(kernel: Kernel, locks: Locks) {
    this.kernel = kernel;
    const { memory, vcpus } = kernel.machine;
    const held = (lock: Addr) => memory.readInt(lock) !== 0;
    this.queuesChange = kernel.cpus.some(({ struct }) => struct.getNumber("rq_lock") !== 0);
    this.tasksChange = held(locks.tasks);
    // Or a CPU sends one that is none: it has the flag before it is woken.
    this.signalsChange =
      held(locks.signals) || kernel.cpus.some(({ struct }) => struct.getNumber("kick") !== 0);
    this.timersChange = held(locks.timers);
    this.firstTimer = locks.firstTimer;
    const all = kernel.table.everything.map((task) => see(task));
    this.everybody = all.filter(({ flags }) => (flags & PF_LAB) === 0);
    this.idle = this.everybody.filter(({ flags }) => (flags & PF_IDLE) !== 0);
    this.tasks = this.everybody.filter(({ flags }) => (flags & PF_IDLE) === 0);
    const byAddress = new Map(all.map((sight) => [sight.task.struct.at, sight]));
    this.cpus = kernel.cpus.map((cpu, number) => {
      const { struct } = cpu;
      const current = byAddress.get(struct.getNumber("current") as Addr);
      if (current !== undefined) current.running++;
      const queue = kernel.queued(cpu).flatMap((task) => byAddress.get(task.struct.at) ?? []);
      for (const task of queue) task.queued++;
      return { number, vcpu: vcpus[number]!, struct, cpu, current, queue };
    });
  }

  /** What is wrong with the list of timers. */
  timers(): Finding {
    const { table } = this.kernel;
    const armed = new Set<Task>();
    let due = 0;
    for (let at = this.kernel.machine.memory.readNumber(this.firstTimer)!; at !== 0; ) {
      const task = table.at(at as Addr);
      const { struct } = task;
      if (armed.has(task)) return `${task} is in the list twice`;
      armed.add(task);
      const expires = struct.getNumber("timer_expires");
      if (expires < due) return `${task} comes too late`;
      if (struct.getNumber("timer_armed") === 0) return `${task} has not armed it`;
      due = expires;
      at = struct.getNumber("timer_next");
    }
    const lost = this.everybody.find(
      ({ task }) => task.struct.getNumber("timer_armed") !== 0 && !armed.has(task),
    );
    return lost && `${lost.task}'s is lost`;
  }
}

function see(task: Task): TaskSight {
  const { struct } = task;
  return {
    task,
    state: struct.getNumber("state"),
    flags: struct.getNumber("flags"),
    onRq: struct.getNumber("on_rq") !== 0,
    onCpu: struct.getNumber("on_cpu") !== 0,
    locked: struct.getNumber("lock") !== 0,
    running: 0,
    queued: 0,
  };
}

function first(tasks: readonly TaskSight[], breaks: (task: TaskSight) => boolean): Finding {
  const found = tasks.find(breaks);
  if (found === undefined) return undefined;
  const { task, state, onRq, onCpu, running, queued } = found;
  return `${task}: state ${state}, on_rq ${Number(onRq)}, on_cpu ${Number(onCpu)}, on ${running} CPUs, in ${queued} queues`;
}

function isUser(vcpu: Vcpu): boolean {
  return vcpu.system.getWord("cpl") !== 0n;
}

/**
 * A few instructions at a system call's beginning and end have the user's stack pointer in kernel mode; and in a switch,
 * the stack is the next task's before that one is current.
 */
function stackIsRight({ vcpu, cpu, current, struct }: CpuSight): boolean {
  const { rsp } = vcpu;
  if (rsp >= 0 || isUser(vcpu) || struct.getNumber("prev") !== 0) return true;
  const stacks = [
    cpu.irqStack,
    ...cpu.exceptionStacks,
    ...(current === undefined ? [] : [current.task.stack]),
  ];
  return stacks.some(({ low, high }) => rsp > low && rsp <= offset(high, 0));
}
