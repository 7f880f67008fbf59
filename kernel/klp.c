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
