/* Kernel threads, the freezer, work queues. */
#include "kernel.h"

/* Where a kthread begins; asm/switch.S calls it. */
void kthread_main(void *unused)
{
	(void)unused;
	((void (*)(void *))current->thread_function)(current->thread_argument);
	do_exit(0);
}

int kthread_should_stop(void)
{
	return READ_ONCE(current->kthread) & KTHREAD_SHOULD_STOP;
}

/* Asks a kthread to return, and waits until it has. The kthread must not end by itself. */
void kthread_stop(struct task *task)
{
	set_flags(&task->kthread, KTHREAD_SHOULD_STOP);
	wake_up_process(task);
	wait_event_idle(&child_wait, READ_ONCE(task->state) == EXIT_ZOMBIE);
	release_task(task);
}

/* ---- The freezer. */

int pm_freezing;

void set_freezable(void)
{
	set_flags(&current->flags, PF_FREEZABLE);
	try_to_freeze();
}

int freezing(struct task *task)
{
	if (!READ_ONCE(pm_freezing) || (task->flags & (PF_NOFREEZE | PF_EXITING | PF_IDLE | PF_LAB)))
		return 0;
	return !(task->flags & PF_KTHREAD) || (task->flags & PF_FREEZABLE);
}

static noinline void refrigerator(void)
{
	for (;;) {
		set_current_state(TASK_FROZEN);
		if (!freezing(current))
			break;
		schedule();
	}
	set_current_state(TASK_RUNNING);
}

void try_to_freeze(void)
{
	if (freezing(current))
		refrigerator();
}

#define NSEC_PER_MSEC 1000000
#define FREEZE_POLL 1000
#define FREEZE_TRIES 200

/* Counted as frozen: what waits for SIGCONT or a tracer does nothing until then, and freezes when it goes on. */
static int is_frozen(struct task *task)
{
	return (READ_ONCE(task->state) & (TASK_FROZEN | TASK_STOPPED | TASK_TRACED | EXIT_ZOMBIE | TASK_DEAD)) != 0;
}

static void wake_to_freeze(struct task *task)
{
	if (task->flags & PF_KTHREAD)
		try_to_wake_up(task, TASK_INTERRUPTIBLE);
	else
		signal_wake_up(task, 0);
}

/* Freezes every task that can be; 0, or -EBUSY with all of them thawed again. */
int freeze_processes(void)
{
	int tries, left = 0;
	u64 begun = clock, elapsed;

	printk("Freezing user space processes\n");
	WRITE_ONCE(pm_freezing, 1);
	for (tries = 0; tries < FREEZE_TRIES; tries++) {
		struct task *task;
		u64 flags = spin_lock_irqsave(&tasklist_lock);

		left = 0;
		for (task = task_list; task; task = task->tasks_next) {
			if (task == current || !freezing(task) || is_frozen(task))
				continue;
			left++;
			wake_to_freeze(task);
		}
		spin_unlock_irqrestore(&tasklist_lock, flags);
		if (!left) {
			elapsed = (clock - begun) / NSEC_PER_MSEC;
			printk("Freezing user space processes completed (elapsed %d.%03d seconds)\n", elapsed / 1000,
			       elapsed % 1000);
			return 0;
		}
		set_current_state(TASK_UNINTERRUPTIBLE);
		schedule_timeout(FREEZE_POLL);
	}
	elapsed = (clock - begun) / NSEC_PER_MSEC;
	printk("Freezing user space processes failed after %d.%03d seconds (%d tasks refusing to freeze):\n",
	       elapsed / 1000, elapsed % 1000, left);
	thaw_processes();
	return -EBUSY;
}

void thaw_processes(void)
{
	struct task *task;
	u64 flags;

	WRITE_ONCE(pm_freezing, 0);
	flags = spin_lock_irqsave(&tasklist_lock);
	for (task = task_list; task; task = task->tasks_next)
		try_to_wake_up(task, TASK_FROZEN);
	spin_unlock_irqrestore(&tasklist_lock, flags);
	printk("Restarting tasks ... done.\n");
}

/* ---- Work, which kworkers do one after another. */

enum { WORK_IDLE, WORK_QUEUED, WORK_RUNNING };

static struct work *first_work, *last_work;
static spinlock_t work_lock;
static struct wait_queue work_wait, flush_wait;

void schedule_work(struct work *work)
{
	u64 flags = spin_lock_irqsave(&work_lock);

	if (work->pending != WORK_QUEUED) {
		work->pending = WORK_QUEUED;
		work->next = NULL;
		if (last_work)
			last_work->next = work;
		else
			first_work = work;
		last_work = work;
	}
	spin_unlock_irqrestore(&work_lock, flags);
	wake_up_one(&work_wait);
}

/* Waits until what was queued is done. */
void flush_work(struct work *work)
{
	wait_event(&flush_wait, READ_ONCE(work->pending) == WORK_IDLE);
}

static struct work *take_work(void)
{
	u64 flags = spin_lock_irqsave(&work_lock);
	struct work *work = first_work;

	if (work) {
		first_work = work->next;
		if (!first_work)
			last_work = NULL;
		work->pending = WORK_RUNNING;
	}
	spin_unlock_irqrestore(&work_lock, flags);
	return work;
}

static void end_work(struct work *work)
{
	u64 flags = spin_lock_irqsave(&work_lock);

	if (work->pending == WORK_RUNNING)
		WRITE_ONCE(work->pending, WORK_IDLE);
	spin_unlock_irqrestore(&work_lock, flags);
	wake_up_all(&flush_wait);
}

void worker_thread(void *unused)
{
	(void)unused;
	for (;;) {
		struct work *work;

		wait_event_idle(&work_wait, (work = take_work()) != NULL);
		work->function(work);
		end_work(work);
	}
}
