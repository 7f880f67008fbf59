/* What live patching needs of the kernel: a task's patch state moves on where it is in none of the kernel's functions. */
#include "kernel.h"

int klp_target_state = KLP_UNDEFINED;

/*
 * Called at the boundary to user mode and in the idle loop, without a look at the stack: so nothing that leads here can be patched
 * itself. The flag is cleared before the target is read: whoever
 * starts a transition writes the target before it sets the flags.
 */
notrace void klp_update_patch_state(struct task *task)
{
	preempt_disable();
	if (__atomic_fetch_and(&task->thread_flags, ~TIF_PATCH_PENDING, __ATOMIC_SEQ_CST) & TIF_PATCH_PENDING)
		WRITE_ONCE(task->patch_state, READ_ONCE(klp_target_state));
	preempt_enable();
}

/* A handler has found a function in transition, and a task without a state: somebody got the order of writes wrong. */
int klp_warned;

/*
 * ops->private is the top of the function's stack. The original is at the bottom: one that goes on behind the site, as a
 * NOP does that sends tasks back to the original. So there is always one, and always one below a replacement.
 */
static always_inline void redirect(struct ftrace_ops *ops, struct pt_regs *regs, struct task *self)
{
	/*
	 * The stack is read before the transition flag. Pairs with whoever enables a patch, who writes the flags of its
	 * functions before they are put on their stacks.
	 */
	struct klp_func *func = (struct klp_func *)smp_load_acquire(&ops->private);

	/*
	 * The transition flag is read before the task's state. Pairs with whoever starts a transition, who writes every
	 * task's state before the flags.
	 */
	barrier();
	if (__builtin_expect(func->transition, 0)) {
		int state;

		barrier();
		state = READ_ONCE(self->patch_state);
		if (state == KLP_UNPATCHED)
			func = READ_ONCE(func->next);
		else if (state == KLP_UNDEFINED)
			WRITE_ONCE(klp_warned, 1);
	}
	regs->ip = func->new_func;
}

/*
 * What is rare, in one place and with one call, so that the handler needs no frame: interrupts, NMIs and calls from within a
 * handler; and if somebody waits for the CPU, with nothing left to redirect.
 */
static notrace noinline void redirect_rarely(struct ftrace_ops *ops, struct pt_regs *regs, struct task *self)
{
	if (ops) {
		int bit = ftrace_recursion_trylock_elsewhere(self, TRACE_FTRACE_START);

		if (!bit)
			return;
		preempt_disable();
		redirect(ops, regs, self);
		if (!ftrace_recursion_unlock_wants_schedule(self, bit))
			return;
	}
	preempt_schedule_notrace();
}

/*
 * Which body of a patched function does this task get? The top of the function's stack, outside a transition; within one,
 * tasks that have not been switched get what is below. Where the guard refuses, the original runs. This is executed
 * with every call of a patched function for as long as the site does not jump: every instruction of it counts.
 */
notrace void klp_ftrace_handler(u64 ip, u64 parent_ip, struct ftrace_ops *ops, struct pt_regs *regs)
{
	struct task *self = current;

	(void)ip;
	(void)parent_ip;
	if (__builtin_expect(ftrace_recursion_trylock_task(self, TRACE_FTRACE_START), 1)) {
		preempt_disable();
		redirect(ops, regs, self);
		if (!ftrace_recursion_unlock_wants_schedule(self, TRACE_TASK_BIT(TRACE_FTRACE_START)))
			return;
		ops = NULL;
	}
	redirect_rarely(ops, regs, self);
}
