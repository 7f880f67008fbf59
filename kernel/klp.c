/* What live patching needs of the kernel: a task's patch state moves on where it is in none of the kernel's functions. */
#include "kernel.h"

int klp_target_state = KLP_UNDEFINED;

/*
 * Called at the boundary to user mode and in the idle loop. The flag is cleared before the target is read: whoever
 * starts a transition writes the target before it sets the flags.
 */
void klp_update_patch_state(struct task *task)
{
	preempt_disable();
	if (__atomic_fetch_and(&task->thread_flags, ~TIF_PATCH_PENDING, __ATOMIC_SEQ_CST) & TIF_PATCH_PENDING)
		WRITE_ONCE(task->patch_state, READ_ONCE(klp_target_state));
	preempt_enable();
}

/*
 * Which body of a patched function does this task get? ops->private is the function's klp_func. Outside a transition everybody
 * gets the replacement; within one, the tasks that have been switched do. Where the guard refuses, the original runs.
 */
notrace void klp_ftrace_handler(u64 ip, u64 parent_ip, struct ftrace_ops *ops, struct pt_regs *regs)
{
	struct klp_func *func = (struct klp_func *)ops->private;
	struct task *self = current;
	int bit = ftrace_test_recursion_trylock(self, TRACE_FTRACE_START);

	(void)ip;
	(void)parent_ip;
	if (!bit)
		return;
	/*
	 * The transition flag is read before the task's state. Pairs with whoever starts a transition, who writes every
	 * task's state before the flag.
	 */
	if (!smp_load_acquire(&func->transition) || READ_ONCE(self->patch_state) == KLP_PATCHED)
		regs->ip = func->new_func;
	ftrace_test_recursion_unlock(self, bit);
}
