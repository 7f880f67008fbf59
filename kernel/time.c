/* Time: the clock, timers of sleeping tasks, what a tick does. */
#include "kernel.h"

volatile u64 clock;

/* Armed timers, the first to expire first; the laboratory looks at the first one's time when every CPU is idle. */
struct task *timers;
static spinlock_t timer_lock;

static void arm_timer(struct task *task, u64 expires)
{
	u64 flags = spin_lock_irqsave(&timer_lock);
	struct task **at = &timers;

	while (*at && (*at)->timer_expires <= expires)
		at = &(*at)->timer_next;
	task->timer_expires = expires;
	task->timer_next = *at;
	task->timer_armed = 1;
	*at = task;
	spin_unlock_irqrestore(&timer_lock, flags);
}

static void disarm_timer(struct task *task)
{
	u64 flags = spin_lock_irqsave(&timer_lock);
	struct task **at = &timers;

	if (task->timer_armed) {
		while (*at != task)
			at = &(*at)->timer_next;
		*at = task->timer_next;
		task->timer_armed = 0;
	}
	spin_unlock_irqrestore(&timer_lock, flags);
}

long schedule_timeout(u64 time)
{
	u64 expires = clock + time;

	arm_timer(current, expires);
	schedule();
	disarm_timer(current);
	return clock < expires ? (long)(expires - clock) : 0;
}

/* Wakes those whose time has come; from the timer's interrupt. */
void run_timers(void)
{
	if (!READ_ONCE(timers))
		return;
	for (;;) {
		u64 flags = spin_lock_irqsave(&timer_lock);
		struct task *task = timers;
		int due = task && task->timer_expires <= clock;

		if (due) {
			timers = task->timer_next;
			task->timer_armed = 0;
		}
		spin_unlock_irqrestore(&timer_lock, flags);
		if (!due)
			return;
		wake_up_process(task);
	}
}

#define MAX_SECONDS 1000000

long get_timespec(u64 *time, const struct timespec *from)
{
	struct timespec value;

	if (copy_from_user(&value, from, sizeof(value)))
		return -EFAULT;
	if (value.tv_sec < 0 || value.tv_sec > MAX_SECONDS || (u64)value.tv_nsec >= NSEC_PER_SEC)
		return -EINVAL;
	*time = value.tv_sec * NSEC_PER_SEC + value.tv_nsec;
	return 0;
}

static long put_timespec(struct timespec *to, u64 time)
{
	struct timespec value = { time / NSEC_PER_SEC, time % NSEC_PER_SEC };

	return copy_to_user(to, &value, sizeof(value));
}

/* What is left is stored at `left`, if that is not NULL, where a signal ends the sleep. */
static long nanosleep_until(u64 expires, struct timespec *left)
{
	long result = 0;

	for (;;) {
		set_current_state(TASK_INTERRUPTIBLE);
		if (clock >= expires)
			break;
		if (signal_pending(current)) {
			result = -ERESTART_RESTARTBLOCK;
			break;
		}
		schedule_timeout(expires - clock);
	}
	set_current_state(TASK_RUNNING);
	if (result && left && put_timespec(left, expires > clock ? expires - clock : 0))
		return -EFAULT;
	return result;
}

static long restart_nanosleep(struct task *task)
{
	return nanosleep_until(task->restart_expires, (struct timespec *)task->restart_argument);
}

/* nanosleep(2) */
long sys_nanosleep(const struct timespec *time, struct timespec *left)
{
	u64 length;
	long result = get_timespec(&length, time);

	if (result)
		return result;
	current->restart_function = restart_nanosleep;
	current->restart_expires = clock + length;
	current->restart_argument = (u64)left;
	return nanosleep_until(current->restart_expires, left);
}

/* clock_gettime(2): there is one clock. */
long sys_clock_gettime(long id, struct timespec *time)
{
	(void)id;
	return put_timespec(time, clock);
}
