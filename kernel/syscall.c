/* System calls: the table, and those that are nobody else's. */
#include "kernel.h"

/* What a module offers as the system call NR_laboratory. */
void *laboratory_call;

static long sys_sched_yield(void)
{
	/* As if its time were over: whoever waits comes first. */
	set_flags(&current->thread_flags, TIF_NEED_RESCHED);
	return 0;
}

static long sys_getpid(void)
{
	return current->pid;
}

static long sys_sched_setaffinity(long pid, size_t size, const u64 *mask)
{
	u64 allowed;

	if (size < sizeof(allowed))
		return -EINVAL;
	if (copy_from_user(&allowed, mask, sizeof(allowed)))
		return -EFAULT;
	/* Of others it could end while it is moved. */
	return pid && pid != current->pid ? -EPERM : set_cpus_allowed(current, allowed);
}

static long sys_restart_syscall(void)
{
	long (*function)(struct task *) = current->restart_function;

	return function ? function(current) : -EINTR;
}

#define PR_SET_NAME 15

/* prctl(2), for a name in messages. */
static long sys_prctl(long option, const char *name)
{
	char comm[16];

	if (option != PR_SET_NAME)
		return -EINVAL;
	if (copy_from_user(comm, name, sizeof(comm)))
		return -EFAULT;
	comm[15] = 0;
	for (option = 0; option < 16; option++)
		current->comm[option] = comm[option];
	return 0;
}

static noinline void sys_exit(long code)
{
	do_exit((code & 0xff) << 8);
}

typedef long (*syscall_t)(long, long, long, long);

static syscall_t table[NR_SYSCALLS] = {
	[NR_read] = (syscall_t)sys_read,
	[NR_write] = (syscall_t)sys_write,
	[NR_close] = (syscall_t)sys_close,
	[NR_rt_sigaction] = (syscall_t)sys_rt_sigaction,
	[NR_rt_sigprocmask] = (syscall_t)sys_rt_sigprocmask,
	[NR_pipe] = (syscall_t)sys_pipe,
	[NR_sched_yield] = (syscall_t)sys_sched_yield,
	[NR_pause] = (syscall_t)sys_pause,
	[NR_nanosleep] = (syscall_t)sys_nanosleep,
	[NR_getpid] = (syscall_t)sys_getpid,
	[NR_exit] = (syscall_t)sys_exit,
	[NR_wait4] = (syscall_t)sys_wait4,
	[NR_kill] = (syscall_t)sys_kill,
	[NR_ptrace] = (syscall_t)sys_ptrace,
	[NR_prctl] = (syscall_t)sys_prctl,
	[NR_init_module] = (syscall_t)sys_init_module,
	[NR_delete_module] = (syscall_t)sys_delete_module,
	[NR_futex] = (syscall_t)sys_futex,
	[NR_sched_setaffinity] = (syscall_t)sys_sched_setaffinity,
	[NR_clock_gettime] = (syscall_t)sys_clock_gettime,
	[NR_restart_syscall] = (syscall_t)sys_restart_syscall,
	[NR_epoll_wait] = (syscall_t)sys_epoll_wait,
};

/* What is done on the way out, until nothing is left to do: called with interrupts off, and returns so. */
void klp_update_patch_state(struct task *task);

#define EXIT_WORK (TIF_NEED_RESCHED | TIF_SIGPENDING | TIF_NOTIFY_SIGNAL | TIF_PATCH_PENDING)

notrace void exit_to_user_mode(struct pt_regs *regs)
{
	int work;

	while ((work = thread_flags(current) & EXIT_WORK) != 0) {
		local_irq_enable();
		if (work & TIF_NEED_RESCHED)
			schedule();
		if (work & TIF_PATCH_PENDING)
			klp_update_patch_state(current);
		if (work & (TIF_SIGPENDING | TIF_NOTIFY_SIGNAL))
			do_signal(regs);
		local_irq_disable();
	}
}

/* From asm/entry.S with interrupts off; whether sysret may go back, which takes ip and flags from rcx and r11. */
notrace int do_syscall_64(struct pt_regs *regs, u64 number)
{
	local_irq_enable();
	if (number == NR_clone)
		regs->ax = sys_clone(regs);
	else if (number == NR_rt_sigreturn)
		regs->ax = sys_rt_sigreturn(regs);
	else if (number == NR_laboratory && laboratory_call)
		regs->ax = ((syscall_t)laboratory_call)(regs->di, regs->si, regs->dx, regs->r10);
	else if (number < NR_SYSCALLS && table[number])
		regs->ax = table[number](regs->di, regs->si, regs->dx, regs->r10);
	local_irq_disable();
	exit_to_user_mode(regs);
	return regs->cx == regs->ip && regs->r11 == regs->flags && regs->ip < USER_END;
}
