/* A module that comes and goes while others run: its thread calls a function of its own until it is told to end. */
#include "kernel.h"

static struct task *guest;
u64 visits;

noinline u64 visit(u64 before)
{
	return before + 1;
}

static void guest_main(void *unused)
{
	(void)unused;
	while (!kthread_should_stop()) {
		visits = visit(visits);
		set_current_state(TASK_UNINTERRUPTIBLE);
		schedule_timeout(1000);
	}
}

int init_module(void)
{
	guest = create_task("visitor", (u64)guest_main, NULL, 0);
	if (!guest)
		return -ENOMEM;
	wake_up_new_task(guest);
	return 0;
}

void cleanup_module(void)
{
	kthread_stop(guest);
}
