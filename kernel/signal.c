/*
 * Signals: sent, waited for, handled at the boundary to user mode; stops, tracers, and what becomes of a system call
 * that one interrupts (signal(7)).
 *
 * siglock guards pending, blocked, sigactions, jobctl and trace_signal of all tasks.
 */
#include "kernel.h"

static spinlock_t siglock;

#define SIG_DFL 0
#define SIG_IGN 1
#define SA_RESTART 0x10000000
#define SA_NODEFER 0x40000000
#define SA_RESETHAND 0x80000000
#define STOPS (SIGBIT(SIGSTOP) | SIGBIT(SIGTSTP))
#define IGNORED_BY_DEFAULT (SIGBIT(SIGCHLD) | SIGBIT(SIGCONT))
#define UNBLOCKABLE (SIGBIT(SIGKILL) | SIGBIT(SIGSTOP))

/* Makes a task look at its signals: wakes it if it sleeps interruptibly or in one of `states`, interrupts it if it runs. */
void signal_wake_up(struct task *task, int states)
{
	set_flags(&task->thread_flags, TIF_SIGPENDING);
	if (!try_to_wake_up(task, states | TASK_INTERRUPTIBLE) && READ_ONCE(task->on_cpu) && task != current)
		hypercall(HC_SEND_IPI, READ_ONCE(task->cpu), RESCHEDULE_VECTOR, 0);
}

/* Gets a task to the boundary and through it, with no signal: what it sleeps in is restarted there. */
void fake_signal(struct task *task)
{
	set_flags(&task->thread_flags, TIF_NOTIFY_SIGNAL);
	if (!try_to_wake_up(task, TASK_INTERRUPTIBLE) && READ_ONCE(task->on_cpu) && task != current)
		hypercall(HC_SEND_IPI, READ_ONCE(task->cpu), RESCHEDULE_VECTOR, 0);
}

/* Whether a signal would do nothing; a tracer hears of it all the same. */
static int is_ignored(struct task *task, int sig)
{
	u64 handler = task->sigactions[sig - 1].handler;

	if (task->tracer || (task->blocked & SIGBIT(sig)))
		return 0;
	return handler == SIG_IGN || (handler == SIG_DFL && (SIGBIT(sig) & IGNORED_BY_DEFAULT));
}

void send_signal(struct task *task, int sig)
{
	u64 flags = spin_lock_irqsave(&siglock);

	if (sig == SIGCONT || sig == SIGKILL) {
		task->pending &= ~STOPS;
		task->jobctl &= ~JOBCTL_STOPPED;
		try_to_wake_up(task, TASK_STOPPED);
	} else if (SIGBIT(sig) & STOPS) {
		task->pending &= ~SIGBIT(SIGCONT);
	}
	if (!(task->flags & (PF_KTHREAD | PF_EXITING)) && !is_ignored(task, sig)) {
		WRITE_ONCE(task->pending, task->pending | SIGBIT(sig));
		if (!(task->blocked & SIGBIT(sig)))
			signal_wake_up(task, sig == SIGKILL ? TASK_STOPPED | TASK_TRACED : 0);
	}
	spin_unlock_irqrestore(&siglock, flags);
}

/* For what the task did itself: neither blocked nor ignored. */
void force_signal(int sig)
{
	struct task *task = current;
	u64 flags = spin_lock_irqsave(&siglock);
	struct sigaction *action = &task->sigactions[sig - 1];

	if (action->handler == SIG_IGN || (task->blocked & SIGBIT(sig)))
		action->handler = SIG_DFL;
	task->blocked &= ~SIGBIT(sig);
	task->pending |= SIGBIT(sig);
	set_flags(&task->thread_flags, TIF_SIGPENDING);
	spin_unlock_irqrestore(&siglock, flags);
}

/* With siglock held. */
static void recalc_sigpending(void)
{
	if (current->pending & ~current->blocked)
		set_flags(&current->thread_flags, TIF_SIGPENDING);
	else
		clear_flags(&current->thread_flags, TIF_SIGPENDING);
}

static int dequeue_signal(void)
{
	u64 due = current->pending & ~current->blocked;
	int sig;

	if (!due)
		return 0;
	sig = (due & KILLABLE) ? SIGKILL : __builtin_ctzl(due) + 1;
	current->pending &= ~SIGBIT(sig);
	return sig;
}

/* Tells whoever waits for this task that it has stopped. With siglock held, which child_wait's own lock is inside. */
static void notify_stopped(int sig)
{
	WRITE_ONCE(current->exit_code, sig);
	wake_up_all(&child_wait);
}

/* Until SIGCONT, or SIGKILL. Takes siglock over, and gives it back. */
static void stop_here(int sig, u64 flags)
{
	struct task *task = current;

	task->jobctl |= JOBCTL_STOPPED;
	while ((task->jobctl & JOBCTL_STOPPED) && !(task->pending & KILLABLE)) {
		set_current_state(TASK_STOPPED);
		notify_stopped(sig);
		spin_unlock_irqrestore(&siglock, flags);
		schedule();
		flags = spin_lock_irqsave(&siglock);
	}
	task->jobctl &= ~JOBCTL_STOPPED;
	task->exit_code = 0;
	spin_unlock_irqrestore(&siglock, flags);
}

/* A tracer is shown each signal before it has any effect, and says what it is to be: a signal, or none. */
static int trace_stop(int sig, u64 flags)
{
	struct task *task = current;

	task->trace_signal = sig;
	task->jobctl |= JOBCTL_TRACED;
	while ((task->jobctl & JOBCTL_TRACED) && READ_ONCE(task->tracer) && !(task->pending & KILLABLE)) {
		set_current_state(TASK_TRACED);
		notify_stopped(sig);
		spin_unlock_irqrestore(&siglock, flags);
		schedule();
		flags = spin_lock_irqsave(&siglock);
	}
	task->jobctl &= ~JOBCTL_TRACED;
	task->exit_code = 0;
	sig = task->trace_signal;
	spin_unlock_irqrestore(&siglock, flags);
	return sig;
}

/* What lies on the user's stack while a handler runs: where it returns to, and all that was before. */
struct sigframe {
	u64 restorer;
	u64 mask;
	struct pt_regs regs;
};

#define RED_ZONE 128
#define FLAGS_FOR_HANDLERS ~0x500UL /* single step and direction are off */
#define USER_FLAGS 0xcd5UL

static int in_syscall(const struct pt_regs *regs)
{
	return (long)regs->orig_ax >= 0;
}

static void restart_syscall(struct pt_regs *regs, u64 number)
{
	regs->ax = number;
	regs->ip -= 2; /* the syscall instruction */
}

/* Makes the user's code go on in the handler. False if its stack is not there. */
static int set_up_handler(int sig, const struct sigaction *action, struct pt_regs *regs)
{
	struct sigframe frame;
	u64 at = ((regs->sp - RED_ZONE - sizeof(frame)) & ~15UL) - 8;

	if (in_syscall(regs)) {
		switch (-(long)regs->ax) {
		case ERESTARTNOHAND:
		case ERESTART_RESTARTBLOCK:
			regs->ax = -EINTR;
			break;
		case ERESTARTSYS:
			if (!(action->flags & SA_RESTART)) {
				regs->ax = -EINTR;
				break;
			}
			restart_syscall(regs, regs->orig_ax);
			break;
		case ERESTARTNOINTR:
			restart_syscall(regs, regs->orig_ax);
			break;
		}
	}
	frame.restorer = action->restorer;
	frame.mask = current->blocked;
	frame.regs = *regs;
	if (copy_to_user((void *)at, &frame, sizeof(frame)))
		return 0;
	regs->ip = action->handler;
	regs->sp = at;
	regs->di = sig;
	regs->si = 0;
	regs->dx = 0;
	regs->ax = 0;
	regs->flags &= FLAGS_FOR_HANDLERS;
	regs->orig_ax = -1UL;
	return 1;
}

/* Takes the signals that are due, to the first that has a handler; without one, restarts what was interrupted. */
void do_signal(struct pt_regs *regs)
{
	struct task *task = current;

	for (;;) {
		struct sigaction action;
		u64 flags;
		int sig;

		try_to_freeze();
		clear_flags(&task->thread_flags, TIF_NOTIFY_SIGNAL);
		flags = spin_lock_irqsave(&siglock);
		sig = dequeue_signal();
		if (!sig) {
			recalc_sigpending();
			spin_unlock_irqrestore(&siglock, flags);
			break;
		}
		if (task->tracer && sig != SIGKILL) {
			sig = trace_stop(sig, flags);
			if (!sig)
				continue;
			flags = spin_lock_irqsave(&siglock);
		}
		action = task->sigactions[sig - 1];
		if (action.handler == SIG_DFL && (SIGBIT(sig) & STOPS)) {
			stop_here(sig, flags);
			continue;
		}
		if (action.handler > SIG_IGN) {
			u64 before = task->blocked;

			if (action.flags & SA_RESETHAND)
				task->sigactions[sig - 1].handler = SIG_DFL;
			spin_unlock_irqrestore(&siglock, flags);
			if (!set_up_handler(sig, &action, regs))
				do_exit(SIGSEGV);
			flags = spin_lock_irqsave(&siglock);
			task->blocked = before | action.mask;
			if (!(action.flags & SA_NODEFER))
				task->blocked |= SIGBIT(sig);
			task->blocked &= ~UNBLOCKABLE;
			recalc_sigpending();
			spin_unlock_irqrestore(&siglock, flags);
			return;
		}
		spin_unlock_irqrestore(&siglock, flags);
		if (action.handler == SIG_DFL && !(SIGBIT(sig) & IGNORED_BY_DEFAULT))
			do_exit(sig);
	}
	if (!in_syscall(regs))
		return;
	switch (-(long)regs->ax) {
	case ERESTARTSYS:
	case ERESTARTNOINTR:
	case ERESTARTNOHAND:
		restart_syscall(regs, regs->orig_ax);
		break;
	case ERESTART_RESTARTBLOCK:
		restart_syscall(regs, NR_restart_syscall);
		break;
	}
}

long sys_rt_sigaction(long sig, const struct sigaction *act, struct sigaction *old)
{
	struct sigaction new, before;
	u64 flags;

	if (sig < 1 || sig > NR_SIGNALS || (act && (SIGBIT(sig) & UNBLOCKABLE)))
		return -EINVAL;
	if (act && copy_from_user(&new, act, sizeof(new)))
		return -EFAULT;
	flags = spin_lock_irqsave(&siglock);
	before = current->sigactions[sig - 1];
	if (act) {
		current->sigactions[sig - 1] = new;
		if (is_ignored(current, sig))
			current->pending &= ~SIGBIT(sig);
	}
	spin_unlock_irqrestore(&siglock, flags);
	return old && copy_to_user(old, &before, sizeof(before)) ? -EFAULT : 0;
}

enum { SIG_BLOCK, SIG_UNBLOCK, SIG_SETMASK };

long sys_rt_sigprocmask(long how, const u64 *set, u64 *old)
{
	u64 mask, before, flags;

	if (set && copy_from_user(&mask, set, sizeof(mask)))
		return -EFAULT;
	if (set && (how < SIG_BLOCK || how > SIG_SETMASK))
		return -EINVAL;
	flags = spin_lock_irqsave(&siglock);
	before = current->blocked;
	if (set) {
		u64 blocked = how == SIG_BLOCK ? before | mask : how == SIG_UNBLOCK ? before & ~mask : mask;

		current->blocked = blocked & ~UNBLOCKABLE;
		recalc_sigpending();
	}
	spin_unlock_irqrestore(&siglock, flags);
	return old && copy_to_user(old, &before, sizeof(before)) ? -EFAULT : 0;
}

/* Goes on with what a handler has interrupted. Of what user mode may have written, nothing is believed that matters here. */
long sys_rt_sigreturn(struct pt_regs *regs)
{
	struct sigframe frame;
	u64 flags;

	/* The handler's return has popped the restorer's address. */
	if (copy_from_user(&frame, (void *)(regs->sp - 8), sizeof(frame)) || frame.regs.ip >= USER_END) {
		force_signal(SIGSEGV);
		return 0;
	}
	*regs = frame.regs;
	regs->cs = USER_CS;
	regs->ss = USER_DS;
	regs->flags = (frame.regs.flags & USER_FLAGS) | X86_EFLAGS_IF | 2;
	regs->orig_ax = -1UL;
	flags = spin_lock_irqsave(&siglock);
	current->blocked = frame.mask & ~UNBLOCKABLE;
	recalc_sigpending();
	spin_unlock_irqrestore(&siglock, flags);
	return regs->ax;
}

long sys_kill(long pid, long sig)
{
	struct task *task;
	long result = -ESRCH;
	u64 flags;

	if (sig < 0 || sig > NR_SIGNALS)
		return -EINVAL;
	flags = spin_lock_irqsave(&tasklist_lock);
	task = find_task(pid);
	if (task) {
		result = (task->flags & (PF_KTHREAD | PF_LAB)) ? -EPERM : 0;
		if (sig && !result)
			send_signal(task, sig);
	}
	spin_unlock_irqrestore(&tasklist_lock, flags);
	return result;
}

/* Until a handler has run. */
long sys_pause(void)
{
	while (!signal_pending(current)) {
		set_current_state(TASK_INTERRUPTIBLE);
		if (signal_pending(current))
			break;
		schedule();
	}
	set_current_state(TASK_RUNNING);
	return -ERESTARTNOHAND;
}

enum { PTRACE_CONT = 7, PTRACE_ATTACH = 16, PTRACE_DETACH = 17 };

/* With siglock held: lets a tracee go on, with the signal that its tracer chose. */
static long go_on(struct task *task, long sig)
{
	if (sig < 0 || sig > NR_SIGNALS)
		return -EINVAL;
	task->trace_signal = sig;
	task->jobctl &= ~JOBCTL_TRACED;
	try_to_wake_up(task, TASK_TRACED);
	return 0;
}

/* ptrace(2): attach, which stops the tracee by SIGSTOP; go on from a stop at a signal; detach. */
long sys_ptrace(long request, long pid, long address, long data)
{
	struct task *task;
	u64 flags = spin_lock_irqsave(&tasklist_lock);
	long result = -ESRCH;

	(void)address;
	task = find_task(pid);
	if (task && request == PTRACE_ATTACH) {
		result = -EPERM;
		if (task != current && !task->tracer && !(task->flags & (PF_KTHREAD | PF_LAB | PF_EXITING))) {
			task->tracer = current;
			send_signal(task, SIGSTOP);
			result = 0;
		}
	} else if (task && task->tracer == current && (request == PTRACE_CONT || request == PTRACE_DETACH)) {
		spin_lock_raw(&siglock);
		if (task->jobctl & JOBCTL_TRACED) {
			if (request == PTRACE_DETACH)
				task->tracer = NULL;
			result = go_on(task, data);
		}
		spin_unlock_raw(&siglock);
	} else if (task) {
		result = -EINVAL;
	}
	spin_unlock_irqrestore(&tasklist_lock, flags);
	return result;
}
