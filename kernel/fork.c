/* Tasks begin and end. Where memory for one comes from is the laboratory's to say. */
#include "kernel.h"

/* Ended tasks, to be used again. */
struct task *free_tasks;
struct wait_queue child_wait;

/* The caller holds tasklist_lock. */
struct task *find_task(int pid)
{
	struct task *task = task_list;

	while (task && (task->pid != pid || (task->flags & PF_IDLE)))
		task = task->tasks_next;
	return task;
}

/* For who wants to see what comes of a new task that a transition misses. */
int klp_misses_fork;

/*
 * With tasklist_lock held a transition looks at nobody: a new task is in the state that its parent is in, and pending if that is, from the
 * moment that it is there.
 */
static struct task *new_task(void)
{
	u64 flags = spin_lock_irqsave(&tasklist_lock);
	struct task *task = (struct task *)hypercall(HC_NEW_TASK, 0, 0, 0);

	if (task && !klp_misses_fork) {
		WRITE_ONCE(task->patch_state, READ_ONCE(current->patch_state));
		if (thread_flags(current) & TIF_PATCH_PENDING)
			set_flags(&task->thread_flags, TIF_PATCH_PENDING);
	}
	spin_unlock_irqrestore(&tasklist_lock, flags);
	return task;
}

/* Makes the first switch to it return to `entry`, below `top` on its stack. */
static void set_beginning(struct task *task, void *top, void (*entry)(void), u64 bx, u64 r12, u64 bp)
{
	struct inactive_task_frame *frame = (struct inactive_task_frame *)top - 1;

	*frame = (struct inactive_task_frame){ .ret_addr = (u64)entry, .bx = bx, .r12 = r12, .bp = bp };
	task->sp = (u64)frame;
	hypercall(HC_TASK_BEGINS, (long)task, 0, 0);
}

static void copy_text(char *to, const char *from)
{
	int n;

	for (n = 0; n < 15 && from[n]; n++)
		to[n] = from[n];
	to[n] = 0;
}

/* A kthread that is going to run `function`, once it is woken; NULL if there is no memory for one. */
struct task *create_task(const char *comm, u64 function, void *argument, int flags)
{
	struct task *task = new_task();

	if (!task)
		return NULL;
	copy_text(task->comm, comm);
	task->flags = PF_KTHREAD | flags;
	task->thread_function = (void *)function;
	task->thread_argument = argument;
	set_beginning(task, (void *)(task->stack + STACK_SIZE), ret_from_kthread, (u64)kthread_main, 0, 0);
	return task;
}

#define CLONE_VM 0x100

/* clone(2): all tasks share one address space, so a child needs a stack of its own. */
long sys_clone(struct pt_regs *regs)
{
	struct task *task, *parent = current;
	struct pt_regs *childregs;
	int n, pid;

	if (!(regs->di & CLONE_VM) || !regs->si || regs->si >= USER_END)
		return -EINVAL;
	/* What came first is handled first: a task that forks for ever could not be stopped otherwise. */
	if (signal_pending(current))
		return -ERESTARTNOINTR;
	task = new_task();
	if (!task)
		return -EAGAIN;
	copy_text(task->comm, parent->comm);
	task->parent = parent;
	task->blocked = parent->blocked;
	task->cpus_allowed = parent->cpus_allowed;
	for (n = 0; n < NR_SIGNALS; n++)
		task->sigactions[n] = parent->sigactions[n];
	childregs = task_pt_regs(task);
	*childregs = *regs;
	childregs->ax = 0;
	childregs->sp = regs->si;
	set_beginning(task, childregs, ret_from_fork, 0, 0, (u64)childregs | 1);
	pid = task->pid;
	wake_up_new_task(task);
	return pid;
}

/* The last of a task: nothing of it runs any more, and nobody waits for it. */
void release_task(struct task *task)
{
	u64 flags;
	struct task **at;

	while (smp_load_acquire(&task->on_cpu))
		cpu_relax();
	flags = local_irq_save();
	spin_lock_raw(&tasklist_lock);
	for (at = &task_list; *at != task; at = &(*at)->tasks_next)
		;
	*at = task->tasks_next;
	WRITE_ONCE(task->state, TASK_DEAD);
	task->tasks_next = free_tasks;
	free_tasks = task;
	spin_unlock_raw(&tasklist_lock);
	local_irq_restore(flags);
}

/* Children and tracees of a task that ends: the first have no parent then, and are nobody's to wait for. */
static void leave_relatives(void)
{
	struct task *task;
	struct task *dead = NULL;

	for (task = task_list; task; task = task->tasks_next) {
		if (task->tracer == current) {
			task->tracer = NULL;
			task->trace_signal = 0;
			try_to_wake_up(task, TASK_TRACED);
		}
		if (task->parent != current)
			continue;
		task->parent = NULL;
		/* Nobody else takes it apart; its rq_next is free to chain it. */
		if (task->state == EXIT_ZOMBIE) {
			WRITE_ONCE(task->state, EXIT_DEAD);
			task->rq_next = dead;
			dead = task;
		}
	}
	spin_unlock_raw(&tasklist_lock);
	while (dead) {
		task = dead;
		dead = task->rq_next;
		release_task(task);
	}
	spin_lock_raw(&tasklist_lock);
}

void noreturn do_exit(long code)
{
	if (current->flags & PF_LAB)
		lab_exit(code);
	if (in_interrupt() || (current->flags & PF_IDLE))
		bug("an interrupt or an idle task wants to exit");
	set_flags(&current->flags, PF_EXITING);
	current->exit_code = code;
	/* From here on no interrupt: a task that is marked as ended must get off its CPU before it is looked at. */
	local_irq_disable();
	spin_lock_raw(&tasklist_lock);
	leave_relatives();
	if (current->parent || (current->kthread & KTHREAD_SHOULD_STOP)) {
		set_current_state(EXIT_ZOMBIE);
		if (current->parent)
			send_signal(current->parent, SIGCHLD);
		wake_up_all(&child_wait);
	} else {
		set_current_state(TASK_DEAD);
	}
	spin_unlock_raw(&tasklist_lock);
	schedule();
	bug("a task that has ended runs");
}

#define WNOHANG 1
#define WUNTRACED 2

/* A child that has ended, or stopped if that is asked for too; or a tracee that has. */
static struct task *find_waitable(long pid, long options, int *relatives)
{
	struct task *task;

	for (task = task_list; task; task = task->tasks_next) {
		int child = task->parent == current;
		int tracee = task->tracer == current;

		if ((pid > 0 && task->pid != pid) || !(child || tracee))
			continue;
		(*relatives)++;
		if (child && READ_ONCE(task->state) == EXIT_ZOMBIE)
			return task;
		if (!task->exit_code)
			continue;
		if ((tracee && task->state == TASK_TRACED) ||
		    (child && (options & WUNTRACED) && task->state == TASK_STOPPED))
			return task;
	}
	return NULL;
}

/* wait4(2), status in its traditional form: code << 8, the signal, or 0x7f with what it stopped for. */
long sys_wait4(long pid, int *status, long options)
{
	struct wait_entry entry = { current, NULL, NULL };
	struct task *ended = NULL;
	long result = 0;
	int how = 0;

	for (;;) {
		struct task *task;
		int relatives = 0;
		u64 flags;

		prepare_to_wait(&child_wait, &entry, TASK_INTERRUPTIBLE);
		flags = spin_lock_irqsave(&tasklist_lock);
		task = find_waitable(pid, options, &relatives);
		if (task) {
			result = task->pid;
			if (task->state == EXIT_ZOMBIE) {
				how = task->exit_code;
				task->parent = NULL;
				WRITE_ONCE(task->state, EXIT_DEAD); /* this one's to release */
				ended = task;
			} else {
				how = task->exit_code << 8 | 0x7f;
				task->exit_code = 0; /* reported */
			}
		} else if (!relatives) {
			result = -ECHILD;
		} else if (signal_pending(current)) {
			result = -ERESTARTSYS;
		}
		spin_unlock_irqrestore(&tasklist_lock, flags);
		if (result || (options & WNOHANG))
			break;
		schedule();
	}
	finish_wait(&child_wait, &entry);
	if (ended)
		release_task(ended);
	if (result > 0 && status && copy_to_user(status, &how, sizeof(how)))
		return -EFAULT;
	return result;
}
