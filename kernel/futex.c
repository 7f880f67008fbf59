/* futex(2): wait while a word of user memory has a value, and wake those that wait. */
#include "kernel.h"

/* All that wait, the first first: chained by futex_next. */
struct task *futex_waiters;
static spinlock_t futex_lock;

enum { FUTEX_WAIT, FUTEX_WAKE };

static void queue_waiter(struct task *task, u64 address)
{
	struct task **at = &futex_waiters;

	while (*at)
		at = &(*at)->futex_next;
	task->futex = address;
	task->futex_next = NULL;
	*at = task;
}

/* False if it is not queued: somebody has woken it. */
static int unqueue_waiter(struct task *task)
{
	u64 flags = spin_lock_irqsave(&futex_lock);
	struct task **at = &futex_waiters;
	int found;

	while (*at && *at != task)
		at = &(*at)->futex_next;
	found = *at != NULL;
	if (found)
		*at = task->futex_next;
	task->futex = 0;
	spin_unlock_irqrestore(&futex_lock, flags);
	return found;
}

/* `expires`: when it is over, 0 for never. */
noinline long futex_wait(u64 address, u32 value, u64 expires)
{
	u64 flags;
	u32 now;
	long failed;

	for (;;) {
		flags = spin_lock_irqsave(&futex_lock);
		/* With the lock held: whoever changes the word and then wakes finds us queued, or we see the change. */
		failed = copy_from_user(&now, (void *)address, sizeof(now));
		if (!failed && now == value) {
			queue_waiter(current, address);
			set_current_state(TASK_INTERRUPTIBLE);
		}
		spin_unlock_irqrestore(&futex_lock, flags);
		if (failed)
			return failed;
		if (now != value)
			return -EAGAIN;
		if (!signal_pending(current) && (!expires || clock < expires)) {
			if (expires)
				schedule_timeout(expires - clock);
			else
				schedule();
		}
		set_current_state(TASK_RUNNING);
		if (!unqueue_waiter(current))
			return 0;
		if (expires && clock >= expires)
			return -ETIMEDOUT;
		if (signal_pending(current))
			return expires ? -ERESTART_RESTARTBLOCK : -ERESTARTSYS;
	}
}

static long restart_futex(struct task *task)
{
	return futex_wait(task->restart_argument, task->restart_value, task->restart_expires);
}

static long futex_wake(u64 address, long count)
{
	long woken = 0;

	while (woken < count) {
		u64 flags = spin_lock_irqsave(&futex_lock);
		struct task **at = &futex_waiters;
		struct task *task;

		while (*at && (*at)->futex != address)
			at = &(*at)->futex_next;
		task = *at;
		if (task) {
			*at = task->futex_next;
			task->futex = 0;
			/* With the lock held: it cannot have gone before it has taken itself off the queue. */
			wake_up_process(task);
		}
		spin_unlock_irqrestore(&futex_lock, flags);
		if (!task)
			break;
		woken++;
	}
	return woken;
}

long sys_futex(u64 address, long operation, long value, const struct timespec *timeout)
{
	u64 length, expires = 0;

	if (operation == FUTEX_WAKE)
		return futex_wake(address, value);
	if (operation != FUTEX_WAIT || (address & 3))
		return -EINVAL;
	if (timeout) {
		long result = get_timespec(&length, timeout);

		if (result)
			return result;
		expires = clock + length;
		current->restart_function = restart_futex;
		current->restart_argument = address;
		current->restart_value = (u32)value;
		current->restart_expires = expires;
	}
	return futex_wait(address, value, expires);
}
