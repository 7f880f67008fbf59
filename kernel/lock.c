/* Waiting: wait queues, mutexes, completions, grace periods. */
#include "kernel.h"

/* The state is written before the condition is read. Pairs with try_to_wake_up(). */
void prepare_to_wait(struct wait_queue *queue, struct wait_entry *entry, int state)
{
	u64 flags = spin_lock_irqsave(&queue->lock);

	if (!entry->prev && !entry->next && queue->first != entry) {
		entry->prev = queue->last;
		if (queue->last)
			queue->last->next = entry;
		else
			queue->first = entry;
		queue->last = entry;
	}
	set_current_state(state);
	spin_unlock_irqrestore(&queue->lock, flags);
}

void finish_wait(struct wait_queue *queue, struct wait_entry *entry)
{
	u64 flags;

	set_current_state(TASK_RUNNING);
	flags = spin_lock_irqsave(&queue->lock);
	if (entry->prev)
		entry->prev->next = entry->next;
	else
		queue->first = entry->next;
	if (entry->next)
		entry->next->prev = entry->prev;
	else
		queue->last = entry->prev;
	spin_unlock_irqrestore(&queue->lock, flags);
}

void wake_up(struct wait_queue *queue, int states, int count)
{
	u64 flags = spin_lock_irqsave(&queue->lock);
	struct wait_entry *entry;

	for (entry = queue->first; entry && count; entry = entry->next)
		if (try_to_wake_up(entry->task, states))
			count--;
	spin_unlock_irqrestore(&queue->lock, flags);
}

static int mutex_trylock(struct mutex *mutex)
{
	struct task *none = NULL;

	return __atomic_compare_exchange_n(&mutex->owner, &none, current, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}

void mutex_lock(struct mutex *mutex)
{
	if (!mutex_trylock(mutex))
		wait_event(&mutex->waiters, mutex_trylock(mutex));
}

void mutex_unlock(struct mutex *mutex)
{
	if (mutex->owner != current)
		bug("a mutex is unlocked by a task that does not own it");
	__atomic_store_n(&mutex->owner, NULL, __ATOMIC_SEQ_CST);
	wake_up_one(&mutex->waiters);
}

/* Each completion is waited for by one task, on whose stack it may be: it is not touched behind `done`'s last use. */
void wait_for_completion(struct completion *completion)
{
	u64 flags;

	wait_event(&completion->waiters, READ_ONCE(completion->done));
	/* Whoever completed it may still be in wake_up(). */
	flags = spin_lock_irqsave(&completion->waiters.lock);
	completion->done--;
	spin_unlock_irqrestore(&completion->waiters.lock, flags);
}

void complete(struct completion *completion)
{
	u64 flags = spin_lock_irqsave(&completion->waiters.lock);
	struct wait_entry *entry = completion->waiters.first;

	WRITE_ONCE(completion->done, completion->done + 1);
	if (entry)
		try_to_wake_up(entry->task, TASK_NORMAL);
	spin_unlock_irqrestore(&completion->waiters.lock, flags);
}

#define GRACE_PERIOD_POLL 1000

/* Whether no section of a reader on `cpu` is open any more that was when `seen` was read. */
static int passed(struct cpu *cpu, u64 seen)
{
	return READ_ONCE(cpu->quiescent) != seen || READ_ONCE(cpu->idling) || cpu == this_cpu_struct();
}

/* Waits until every read-side section has ended that has begun before: every CPU switches, idles or is in user mode. */
void synchronize_rcu(void)
{
	u64 seen[MAX_CPUS];
	int n;

	smp_mb();
	for (n = 0; n < nr_cpus; n++)
		seen[n] = READ_ONCE(cpus[n]->quiescent);
	for (n = 0; n < nr_cpus; n++) {
		while (!passed(cpus[n], seen[n])) {
			set_current_state(TASK_UNINTERRUPTIBLE);
			schedule_timeout(GRACE_PERIOD_POLL);
		}
	}
	smp_mb();
}
