// Things that are wrong in the guest's kernel, each of which a run with some seed has to find: lost wake-ups, broken
// stacks, tasks outside their states, forgotten interrupts.
//
// A defect changes some text of a source in kernel/, which gcc then compiles, or in asm/.

import type { Change } from "../kernel/compiled.ts";

export interface KernelDefect extends Change {
  readonly name: string;
  /** What is said of it: any of these. */
  readonly found: RegExp;
  readonly vcpus?: number;
}

const LOST = /no end|waits for ever|has ended after|blocked for more than|soft lockup/;

export const KERNEL_DEFECTS: readonly KernelDefect[] = [
  {
    name: "the condition is read before the state is written",
    file: "kernel/kernel.h",
    before: `			prepare_to_wait(queue, &__entry, sleep_state);                  \\
			if (condition)                                                  \\
				break;                                                  \\`,
    after: `			if (condition)                                                  \\
				break;                                                  \\
			prepare_to_wait(queue, &__entry, sleep_state);                  \\`,
    found: LOST,
  },
  {
    name: "a mutex is given back without a wake-up",
    file: "kernel/lock.c",
    before: "	wake_up_one(&mutex->waiters);",
    after: "",
    found: LOST,
  },
  {
    name: "a task that is woken makes no CPU look for it",
    file: "kernel/sched.c",
    before: "	enqueue(cpu, task);\n	resched_cpu(cpu);",
    after: "	enqueue(cpu, task);",
    found: /waits for ever|has ended after|blocked|lockup|on_rq 1|no end/,
  },
  {
    name: "a CPU that idles is told nothing of who is to run there",
    file: "kernel/sched.c",
    before: "	if (cpu != this_cpu_struct())\n		hypercall(HC_SEND_IPI",
    after: "	if (0)\n		hypercall(HC_SEND_IPI",
    found: LOST,
  },
  {
    name: "the queue's end is forgotten when its last task is taken",
    file: "kernel/sched.c",
    before: "	if (cpu->rq_last == task)\n		cpu->rq_last = before;\n",
    after: "",
    found: /./,
  },
  {
    name: "what was taken out of the middle of a queue is not counted",
    file: "kernel/sched.c",
    before: "	task->rq_next = NULL;\n	cpu->nr_queued--;",
    after: "	task->rq_next = NULL;\n	if (!before)\n		cpu->nr_queued--;",
    found: /as long as it says|./,
  },
  {
    name: "a switch leaves the task that it left on its CPU",
    file: "kernel/sched.c",
    before: "	smp_store_release(&prev->on_cpu, 0);",
    after: "",
    found: /only a task that a CPU runs|lockup/,
  },
  {
    name: "a timer is put in behind the first one, whenever that is due",
    file: "kernel/time.c",
    before: "	while (*at && (*at)->timer_expires <= expires)",
    after: "	if (*at)",
    found: /timers are in the order/,
  },
  {
    name: "a task that exits is a zombie before its parent is told, and preempted in between",
    file: "kernel/fork.c",
    before: "	local_irq_disable();\n	spin_lock_raw(&tasklist_lock);\n	leave_relatives();",
    after:
      "	spin_lock(&tasklist_lock);\n	spin_unlock(&tasklist_lock);\n	set_current_state(EXIT_ZOMBIE);\n	preempt_schedule();\n	local_irq_disable();\n	spin_lock_raw(&tasklist_lock);\n	leave_relatives();",
    found: /./,
  },
  {
    name: "an ended task's stack is given away while it is on it",
    file: "kernel/fork.c",
    before: "	while (smp_load_acquire(&task->on_cpu))\n		cpu_relax();\n	flags = local_irq_save();",
    after: "	flags = local_irq_save();",
    found: /./,
    vcpus: 4,
  },
  {
    name: "who waits for a child hears nothing of its end",
    file: "kernel/fork.c",
    before: "		wake_up_all(&child_wait);\n	} else {",
    after: "	} else {",
    found: LOST,
  },
  {
    name: "a signal does not wake whom it is for",
    file: "kernel/signal.c",
    before: "	if (!try_to_wake_up(task, states | TASK_INTERRUPTIBLE) && READ_ONCE(task->on_cpu)",
    after: "	(void)states;\n	if (READ_ONCE(task->on_cpu)",
    found: /a signal is for|waits for ever/,
  },
  {
    name: "the fake signal is forgotten on the way out before it is looked at",
    file: "kernel/sched.c",
    before: "(prev->flags & PF_KTHREAD) && signal_pending(prev)",
    after: "(prev->flags & PF_KTHREAD) && (prev->pending & ~prev->blocked)",
    found: /a signal is for|waits for ever/,
  },
  {
    name: "SIGCONT leaves a stopped task asleep",
    file: "kernel/signal.c",
    before: "		try_to_wake_up(task, TASK_STOPPED);",
    after: "",
    found: /a stopped task was stopped|waits for ever/,
  },
  {
    name: "a restarted call goes on behind itself",
    file: "kernel/signal.c",
    before: "	regs->ip -= 2; /* the syscall instruction */",
    after: "",
    found: /patients found|waits for ever|soft lockup|has ended/,
  },
  {
    name: "nobody thaws",
    file: "kernel/kthread.c",
    before: "		try_to_wake_up(task, TASK_FROZEN);",
    after: "		;",
    found: LOST,
  },
  {
    name: "stop_machine lets its own CPU's stopper begin before all are told",
    file: "kernel/stop.c",
    before: "	preempt_disable();\n	for (n = 0; n < nr_cpus; n++)\n		queue_stop(",
    after: "	for (n = 0; n < nr_cpus; n++)\n		queue_stop(",
    found: LOST,
  },
  {
    name: "a task is moved while it waits at its old CPU, and stays in both queues",
    file: "kernel/sched.c",
    before: "	found = !may_run_on(task, cpu) && dequeue(cpu, task);",
    after: "	found = !may_run_on(task, cpu) && task->on_rq;",
    found: /./,
  },
  {
    name: "a module's text goes while its thread is in it",
    file: "kernel/visitor.c",
    before: "	kthread_stop(guest);",
    after: "	set_flags(&guest->kthread, KTHREAD_SHOULD_STOP);",
    found: /./,
  },
  {
    name: "preemption happens while it is off",
    file: "asm/entry.S",
    before: "	cmpl $0, %gs:CPU_PREEMPT_COUNT\n	jne 1f\n",
    after: "",
    found: /./,
  },
  {
    name: "a switch forgets a register",
    file: "asm/switch.S",
    before: "	pop %rbx\n	pop %rbp",
    after: "	pop %rbx\n	mov (%rsp), %rbx\n	pop %rbp",
    found: /./,
  },
  {
    name: "an interrupt comes back with the wrong stack",
    file: "asm/entry.S",
    before: "	mov %rsp, (%rbx)\n	mov %rbx, %rsp",
    after: "	mov %rsp, (%rbx)\n	subq $8, (%rbx)\n	mov %rbx, %rsp",
    found: /./,
  },
  {
    name: "user mode keeps the kernel's gs",
    file: "asm/entry.S",
    before: "entry_SYSCALL_64_off_stack:\n	unwind_hint_undefined\n	swapgs",
    after: "entry_SYSCALL_64_off_stack:\n	unwind_hint_undefined\n	nop",
    found: /./,
  },
  {
    name: "the stack for what comes from user mode is the last task's",
    file: "asm/switch.S",
    before: "	mov %rax, TSS_RSP0(%rdx)",
    after: "	nop",
    found: /./,
  },
];
