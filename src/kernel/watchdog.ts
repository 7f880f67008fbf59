// Runs that get nowhere, as the kernel's own watchdogs tell them (Linux kernel/watchdog.c, kernel/hung_task.c), but in
// microseconds: an instruction takes a nanosecond here.

import type { Kernel } from "./kernel.ts";
import { TASK_STATE } from "./layout.ts";
import type { Task } from "./task.ts";

/** How long is too long, in nanoseconds of guest time. */
export interface Patience {
  /** For a CPU that does not look for whom to run: preemption or interrupts are off, or nothing ever comes. */
  readonly softLockup?: number;
  /** For a task that sleeps and cannot be interrupted. */
  readonly hungTask?: number;
}

export interface Hang {
  readonly what: "soft lockup" | "hung task";
  readonly cpu: number;
  readonly task: Task;
  /** As the kernel's log would have it. */
  readonly text: string;
}

const SOFT_LOCKUP = 2_000_000;
const HUNG_TASK = 200_000_000;
const MICROSECOND = 1000;

/** The first thing that has gone on for too long. */
export function findHang(
  kernel: Kernel,
  { softLockup = SOFT_LOCKUP, hungTask = HUNG_TASK }: Patience = {},
): Hang | undefined {
  const now = kernel.clock;
  const microseconds = (time: number) => Math.floor(time / MICROSECOND);
  for (const [cpu, { struct }] of kernel.cpus.entries()) {
    const task = kernel.current(kernel.machine.vcpus[cpu]!);
    const stuck = now - struct.getNumber("touched");
    if (task === undefined || struct.getNumber("halted") !== 0 || stuck <= softLockup) continue;
    const text = `watchdog: BUG: soft lockup - CPU#${cpu} stuck for ${microseconds(stuck)}us! [${task}]`;
    return { what: "soft lockup", cpu, task, text };
  }
  for (const task of kernel.tasks) {
    if (task.state !== TASK_STATE.TASK_UNINTERRUPTIBLE || task.onRunQueue) continue;
    const blocked = now - task.struct.getNumber("switched_at");
    if (blocked <= hungTask) continue;
    const text = `INFO: task ${task} blocked for more than ${microseconds(hungTask)} us.`;
    return { what: "hung task", cpu: task.struct.getNumber("cpu"), task, text };
  }
  return undefined;
}
