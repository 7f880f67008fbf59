/*
 * Who runs: run queues, wake-ups, switches, the idle loop.
 *
 * A task that could run is in the queue of one CPU or is that CPU's current. A CPU's queue is changed with its
 * rq_lock held and interrupts off; the lock is taken before a switch and released behind it, on the next task's
 * stack. Which of those that wait comes next, and where a woken one goes on, the laboratory is asked.
 */
#include "kernel.h"

struct cpu *cpus[MAX_CPUS];
int nr_cpus;
struct task *task_list;
spinlock_t tasklist_lock;

static void enqueue(struct cpu *cpu, struct task *task)
{
	task->rq_next = NULL;
	if (cpu->rq_last)
		cpu->rq_last->rq_next = task;
	else
		cpu->rq_first = task;
	cpu->rq_last = task;
	cpu->nr_queued++;
}

/* False if it is not in the queue. */
static int dequeue(struct cpu *cpu, struct task *task)
{
	struct task *before = NULL;
	struct task *at = cpu->rq_first;

	while (at && at != task) {
		before = at;
		at = at->rq_next;
	}
	if (!at)
		return 0;
	if (before)
		before->rq_next = task->rq_next;
	else
		cpu->rq_first = task->rq_next;
	if (cpu->rq_last == task)
		cpu->rq_last = before;
	task->rq_next = NULL;
	cpu->nr_queued--;
	return 1;
}

static int may_run_on(struct task *task, struct cpu *cpu)
{
	return (task->cpus_allowed >> cpu->number) & 1;
}

/* A task that waits for another CPU, for this one, which has none: its own lock is held, the other is only tried for. */
static struct task *pull_task(struct cpu *cpu)
{
	struct task *task = NULL;
	struct cpu *from;
	int n, busy = 0;

	for (n = 0; n < nr_cpus; n++)
		busy += cpus[n] != cpu && READ_ONCE(cpus[n]->nr_queued);
	if (!busy)
		return NULL;
	n = hypercall(HC_BALANCE, cpu->number, 0, 0);
	if (n < 0 || n >= nr_cpus || cpus[n] == cpu)
		return NULL;
	from = cpus[n];
	if (!spin_trylock_raw(&from->rq_lock))
		return NULL;
	for (task = from->rq_first; task; task = task->rq_next)
		if (!(task->flags & PF_STOPPER) && may_run_on(task, cpu) && !READ_ONCE(task->on_cpu))
			break;
	if (task) {
		dequeue(from, task);
		WRITE_ONCE(task->cpu, cpu->number);
	}
	spin_unlock_raw(&from->rq_lock);
	return task;
}

static struct task *pick_next(struct cpu *cpu)
{
	struct task *next = cpu->next;

	if (next) {
		cpu->next = NULL;
		dequeue(cpu, next);
		return next;
	}
	next = cpu->stopper;
	if (next && dequeue(cpu, next))
		return next;
	if (!cpu->nr_queued) {
		next = pull_task(cpu);
		return next ? next : cpu->idle;
	}
	next = cpu->rq_first;
	if (cpu->nr_queued > 1)
		next = (struct task *)hypercall(HC_PICK_TASK, (long)next, (long)cpu, 0);
	if (!dequeue(cpu, next))
		bug("picked a task that is not queued");
	return next;
}

/* Behind a switch, on the stack of the task that was switched to. */
static void finish_switch(void)
{
	struct cpu *cpu = this_cpu_struct();
	struct task *prev = cpu->prev;
	int dead = prev->state == TASK_DEAD;

	cpu->prev = NULL;
	/* The last use of prev's stack is over. Pairs with the wait for on_cpu in try_to_wake_up(). */
	smp_store_release(&prev->on_cpu, 0);
	spin_unlock_raw(&cpu->rq_lock);
	if (dead)
		release_task(prev);
}

static noinline notrace void __schedule(int preempt)
{
	u64 flags = local_irq_save();
	struct cpu *cpu = this_cpu_struct();
	struct task *prev = current;
	struct task *next;

	cpu->touched = clock;
	spin_lock_raw(&cpu->rq_lock);
	clear_flags(&prev->thread_flags, TIF_NEED_RESCHED);
	/* The state is read after the lock was taken. Pairs with try_to_wake_up(), which writes it with the lock held. */
	if (!preempt && READ_ONCE(prev->state) != TASK_RUNNING) {
		int state = prev->state;

		if ((state == TASK_INTERRUPTIBLE && !(prev->flags & PF_KTHREAD) && signal_pending(prev)) ||
		    ((state & (TASK_STOPPED | TASK_TRACED)) && (READ_ONCE(prev->pending) & KILLABLE)))
			WRITE_ONCE(prev->state, TASK_RUNNING);
		else
			WRITE_ONCE(prev->on_rq, 0);
	}
	if (prev->on_rq && prev != cpu->idle)
		enqueue(cpu, prev);
	next = pick_next(cpu);
	if (next == prev) {
		spin_unlock_raw(&cpu->rq_lock);
	} else {
		WRITE_ONCE(cpu->quiescent, cpu->quiescent + 1);
		next->on_cpu = 1;
		next->on_rq = 1;
		next->cpu = cpu->number;
		next->switches++;
		prev->switched_at = clock;
		cpu->prev = prev;
		switch_to(prev, next);
		finish_switch();
	}
	local_irq_restore(flags);
}

void schedule(void)
{
	do {
		__schedule(0);
	} while (need_resched());
}

/* From where preemption has just become possible; from an interrupt's exit with interrupts off. */
void preempt_schedule(void)
{
	if (preempt_count() || !irqs_on())
		return;
	do {
		__schedule(1);
	} while (need_resched());
}

/* The same from the end of a traced call's handler. */
notrace void preempt_schedule_notrace(void)
{
	if (preempt_count() || !irqs_on())
		return;
	do {
		__schedule(1);
	} while (need_resched());
}

void preempt_schedule_irq(void)
{
	do {
		__schedule(1);
	} while (need_resched());
}

void cond_resched(void)
{
	if (preempt_count() == 0 && need_resched())
		preempt_schedule_irq();
	/* A task that is busy in the kernel comes by here, and nowhere else. */
	if (__builtin_expect(thread_flags(current) & TIF_PATCH_PENDING, 0))
		hypercall(HC_KLP_TRY_SWITCH, 0, 0, 0);
}

/* What a new task does first. */
void schedule_tail(void)
{
	finish_switch();
}

/* Makes a CPU look for whom to run, its rq_lock held. */
void resched_cpu(struct cpu *cpu)
{
	struct task *task = cpu_current(cpu);

	if (thread_flags(task) & TIF_NEED_RESCHED)
		return;
	set_flags(&task->thread_flags, TIF_NEED_RESCHED);
	if (cpu != this_cpu_struct())
		hypercall(HC_SEND_IPI, cpu->number, RESCHEDULE_VECTOR, 0);
}

#define LONG_WITHOUT_SCHEDULE 100000

/* From the timer: whoever runs has run for long enough, if somebody waits; or is to show that it can be preempted. */
void scheduler_tick(struct cpu *cpu)
{
	if (cpu->next || READ_ONCE(cpu->nr_queued) || clock - cpu->touched > LONG_WITHOUT_SCHEDULE)
		set_flags(&cpu_current(cpu)->thread_flags, TIF_NEED_RESCHED);
}

static struct cpu *select_cpu(struct task *task)
{
	u64 allowed = task->cpus_allowed & ((1UL << nr_cpus) - 1);

	if ((allowed & (allowed - 1)) == 0)
		return cpus[allowed ? __builtin_ctzl(allowed) : task->cpu];
	return cpus[hypercall(HC_SELECT_CPU, (long)task, 0, 0)];
}

static void activate(struct task *task)
{
	struct cpu *cpu = select_cpu(task);

	spin_lock_raw(&cpu->rq_lock);
	WRITE_ONCE(task->cpu, cpu->number);
	WRITE_ONCE(task->state, TASK_RUNNING);
	WRITE_ONCE(task->on_rq, 1);
	enqueue(cpu, task);
	resched_cpu(cpu);
	spin_unlock_raw(&cpu->rq_lock);
}

/* Makes a task run again that sleeps in one of `states`: false if it does not. */
int try_to_wake_up(struct task *task, int states)
{
	u64 flags = spin_lock_irqsave(&task->lock);
	int woken = 0;

	/* What it waits for was written before its state is read. Pairs with set_current_state(). */
	smp_mb();
	while (READ_ONCE(task->state) & states) {
		struct cpu *cpu = cpus[READ_ONCE(task->cpu)];

		spin_lock_raw(&cpu->rq_lock);
		if (READ_ONCE(task->cpu) != cpu->number) {
			spin_unlock_raw(&cpu->rq_lock);
			continue;
		}
		woken = 1;
		if (task->on_rq) { /* it has not got as far as to sleep */
			WRITE_ONCE(task->state, TASK_RUNNING);
			spin_unlock_raw(&cpu->rq_lock);
			break;
		}
		spin_unlock_raw(&cpu->rq_lock);
		/* It sleeps, and nobody else can wake it; but it may be on its CPU still. Pairs with finish_switch(). */
		while (smp_load_acquire(&task->on_cpu))
			cpu_relax();
		activate(task);
		break;
	}
	spin_unlock_irqrestore(&task->lock, flags);
	return woken;
}

void wake_up_process(struct task *task)
{
	try_to_wake_up(task, TASK_NORMAL);
}

void wake_up_new_task(struct task *task)
{
	u64 flags = spin_lock_irqsave(&task->lock);

	activate(task);
	spin_unlock_irqrestore(&task->lock, flags);
}

/* By the stopper of the CPU that the task may not be on: if it waits there, it waits elsewhere from now on. */
static void move_task(void *argument)
{
	struct task *task = argument;
	u64 flags = spin_lock_irqsave(&task->lock);
	struct cpu *cpu = this_cpu_struct();
	int found;

	spin_lock_raw(&cpu->rq_lock);
	found = !may_run_on(task, cpu) && dequeue(cpu, task);
	spin_unlock_raw(&cpu->rq_lock);
	if (found)
		activate(task);
	spin_unlock_irqrestore(&task->lock, flags);
}

long set_cpus_allowed(struct task *task, u64 allowed)
{
	u64 flags;
	int tries;

	if (!(allowed & ((1UL << nr_cpus) - 1)))
		return -EINVAL;
	flags = spin_lock_irqsave(&task->lock);
	WRITE_ONCE(task->cpus_allowed, allowed);
	spin_unlock_irqrestore(&task->lock, flags);
	/* Where it waits may change under us; when it sleeps, waking it looks at what is allowed. */
	for (tries = 0; tries < 2 * MAX_CPUS; tries++) {
		int cpu = READ_ONCE(task->cpu);

		if (!READ_ONCE(task->on_rq) || ((allowed >> cpu) & 1))
			break;
		stop_one_cpu(cpu, move_task, task);
	}
	return 0;
}

/* Moves a task's patch state on, where it is outside of the kernel's code. */
void klp_update_patch_state(struct task *task);

notrace void noreturn cpu_idle(void)
{
	struct cpu *cpu = this_cpu_struct();

	for (;;) {
		while (!need_resched()) {
			/* In here: an interrupt's exit may have scheduled already, so that nothing leads out of this loop. */
			if (thread_flags(current) & TIF_PATCH_PENDING)
				klp_update_patch_state(current);
			local_irq_disable();
			/* The interrupt that was to bring this CPU out of here may have looked for whom to run by itself. */
			if (thread_flags(current) & (TIF_NEED_RESCHED | TIF_PATCH_PENDING)) {
				local_irq_enable();
				break;
			}
			WRITE_ONCE(cpu->idling, 1);
			__asm__ volatile("sti; hlt" ::: "memory");
			WRITE_ONCE(cpu->idling, 0);
		}
		schedule();
	}
}
