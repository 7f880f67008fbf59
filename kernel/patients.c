/*
 * A module of patients: kernel code that a live patch has a hard time with. Each does its `rounds` and ends, so that at
 * the end nothing is left of them but what they have counted. asm/user/patients.S has those that are user tasks.
 */
#include "kernel.h"

/* By number: rounds that each has done. What a patient's function is called is what it is about. */
enum patient {
	SCHEDULE_LOOP,
	FREEZE_LOOP,
	BUSY,
	RECURSION,
	ALWAYS_ON_STACK,
	HELD_POINTER,
	LOCK_PROTOCOL,
	PRODUCER,
	CONSUMER,
	INLINED,
	FROM_INTERRUPT,
	UNINTERRUPTIBLE,
	PREEMPTED,
	WORKER,
	NR_PATIENTS,
	/* User tasks count from here on. */
	USER_PATIENTS = 32,
};

long rounds = 3;
u64 progress[64];
/* What went wrong, for a run to end with. */
u64 failures;

static void done(int patient)
{
	__atomic_fetch_add(&progress[patient], 1, __ATOMIC_RELAXED);
}

static void expect(int right)
{
	if (!right)
		__atomic_fetch_add(&failures, 1, __ATOMIC_RELAXED);
}

#define NAP 2000

static noinline void nap(u64 time)
{
	set_current_state(TASK_UNINTERRUPTIBLE);
	schedule_timeout(time);
	set_current_state(TASK_RUNNING);
}

/* ---- while (!stop) { ret = foo(); schedule(); use(ret); }: foo is on no stack while its value is in hand. */

noinline long foo(long x)
{
	return x + 1;
}

noinline void use(long before, long ret)
{
	expect(ret == before + 1);
}

void schedule_loop(void *unused)
{
	long x = 0;

	(void)unused;
	while (!kthread_should_stop()) {
		long ret = foo(x);

		schedule();
		use(x, ret);
		x = ret;
		done(SCHEDULE_LOOP);
		nap(NAP);
	}
}

/* The same with the freezer's safe point. */
void freeze_loop(void *unused)
{
	long x = 0;

	(void)unused;
	set_freezable();
	while (!kthread_should_stop()) {
		long ret = foo(x);

		try_to_freeze();
		use(x, ret);
		x = ret;
		done(FREEZE_LOOP);
		set_current_state(TASK_INTERRUPTIBLE);
		schedule_timeout(NAP);
	}
}

/* ---- Runs without end, and lets others run where it says so. */

noinline u64 mix(u64 x)
{
	int n;

	for (n = 0; n < 20; n++)
		x = x * 6364136223846793005UL + 1442695040888963407UL;
	return x;
}

/* Where a busy thread looks at its own stack, this is on it. */
noinline u64 churn(u64 x)
{
	x = mix(x);
	cond_resched();
	return mix(x);
}

void busy(void *unused)
{
	u64 x = 1;

	(void)unused;
	while (!kthread_should_stop()) {
		x = churn(x);
		cond_resched();
		done(BUSY);
	}
	expect(x != 1);
}

/* ---- Two functions that call one another, with a sleep at the bottom. */

int is_odd(int n);

noinline int is_even(int n)
{
	if (n == 0) {
		nap(NAP);
		return 1;
	}
	return is_odd(n - 1);
}

noinline int is_odd(int n)
{
	return n == 0 ? 0 : is_even(n - 1);
}

void recursion(void *unused)
{
	int n;

	(void)unused;
	for (n = 0; n < rounds; n++) {
		int depth = 2 * (n % 4) + 6;

		expect(is_even(depth) && !is_odd(depth));
		done(RECURSION);
	}
}

/* ---- A function that is always on some stack. */

noinline void forever(void)
{
	while (!kthread_should_stop()) {
		nap(NAP);
		done(ALWAYS_ON_STACK);
	}
}

void always_on_stack(void *unused)
{
	(void)unused;
	forever();
}

/* ---- A function pointer that is loaded before a switch and called behind it. */

long (*volatile operation)(long) = foo;

void held_pointer(void *unused)
{
	int n;

	(void)unused;
	for (n = 0; n < rounds; n++) {
		long (*held)(long) = operation;

		nap(NAP);
		expect(held(n) == n + 1);
		done(HELD_POINTER);
	}
}

/* ---- A lock that one function takes and another gives back, with a sleep between. */

static struct mutex protocol;
static int inside;

noinline void enter_section(void)
{
	mutex_lock(&protocol);
	expect(__atomic_fetch_add(&inside, 1, __ATOMIC_RELAXED) == 0);
}

noinline void leave_section(void)
{
	expect(__atomic_fetch_sub(&inside, 1, __ATOMIC_RELAXED) == 1);
	mutex_unlock(&protocol);
}

void lock_protocol(void *unused)
{
	int n;

	(void)unused;
	for (n = 0; n < rounds; n++) {
		enter_section();
		nap(NAP / 4);
		leave_section();
		done(LOCK_PROTOCOL);
	}
}

/* ---- One makes data, another takes it: both must know what it means. */

struct item {
	struct item *next;
	u64 value, check;
};

#define NR_ITEMS 4
#define CHECK 0x5a5a5a5aUL

static struct item items[NR_ITEMS];
static struct item *free_items, *full_items;
static spinlock_t items_lock;
static struct wait_queue items_wait;

static struct item *take(struct item **list)
{
	u64 flags = spin_lock_irqsave(&items_lock);
	struct item *item = *list;

	if (item)
		*list = item->next;
	spin_unlock_irqrestore(&items_lock, flags);
	return item;
}

static void give(struct item **list, struct item *item)
{
	u64 flags = spin_lock_irqsave(&items_lock);

	item->next = *list;
	*list = item;
	spin_unlock_irqrestore(&items_lock, flags);
	wake_up_all(&items_wait);
}

noinline void make_item(struct item *item, u64 value)
{
	item->value = value;
	item->check = value ^ CHECK;
}

noinline void use_item(struct item *item)
{
	expect(item->check == (item->value ^ CHECK));
	item->check = 0;
}

void producer(void *unused)
{
	int n;

	(void)unused;
	for (n = 0; n < 2 * rounds; n++) {
		struct item *item;

		wait_event(&items_wait, (item = take(&free_items)) != NULL);
		make_item(item, n);
		give(&full_items, item);
		done(PRODUCER);
	}
}

void consumer(void *unused)
{
	int n;

	(void)unused;
	for (n = 0; n < 2 * rounds; n++) {
		struct item *item;

		wait_event_idle(&items_wait, (item = take(&full_items)) != NULL);
		use_item(item);
		give(&free_items, item);
		done(CONSUMER);
	}
}

/* ---- A function that the compiler has put into its caller: to patch it is to patch that. */

static inline long helper(long x)
{
	return 3 * x + 1;
}

noinline long with_inlined(long x)
{
	return helper(x) ^ 1;
}

void inlined(void *unused)
{
	int n;

	(void)unused;
	for (n = 0; n < rounds; n++) {
		expect(with_inlined(n) == ((3 * n + 1) ^ 1));
		done(INLINED);
		schedule();
	}
}

/* ---- Called from the device's interrupts, whatever they come between. */

noinline void count_interrupt(void)
{
	done(FROM_INTERRUPT);
}

/* ---- For user tasks, by the laboratory's system call. */

noinline long sleep_uninterruptibly(u64 time)
{
	nap(time);
	done(UNINTERRUPTIBLE);
	return 0;
}

/* Long, and nothing keeps it from being preempted. */
noinline long compute(u64 n)
{
	u64 x = n;

	while (n--)
		x = mix(x);
	done(PREEMPTED);
	return x & 0x7fffffff;
}

enum { CALL_ROUNDS, CALL_PROGRESS, CALL_FAILED, CALL_SLEEP, CALL_COMPUTE };

static long patients_call(long operation, u64 argument)
{
	switch (operation) {
	case CALL_ROUNDS:
		return rounds;
	case CALL_PROGRESS:
		if (argument >= NR_PATIENTS && argument < 64)
			done(argument);
		return 0;
	case CALL_FAILED:
		expect(0);
		return 0;
	case CALL_SLEEP:
		return sleep_uninterruptibly(argument);
	case CALL_COMPUTE:
		return compute(argument);
	}
	return -EINVAL;
}

/* ---- Work, and all that stops the machine. */

static void count_work(struct work *work)
{
	(void)work;
	done(WORKER);
}

static struct work work = { .function = count_work };

static void alone(void *argument)
{
	int *value = argument;

	*value += 1;
}

extern void (*device_handler)(void);

/* Gets every user task to the boundary and back, as a transition that waits for them does. */
static void fake_signals(void)
{
	u64 flags = spin_lock_irqsave(&tasklist_lock);
	struct task *task;

	for (task = task_list; task; task = task->tasks_next)
		if (!(task->flags & (PF_KTHREAD | PF_EXITING)) && task->state != TASK_NEW)
			fake_signal(task);
	spin_unlock_irqrestore(&tasklist_lock, flags);
}

static struct task *run(const char *comm, void (*function)(void *))
{
	struct task *task = create_task(comm, (u64)function, NULL, 0);

	if (task)
		wake_up_new_task(task);
	else
		expect(0);
	return task;
}

static void wait_for_progress(int patient)
{
	while (READ_ONCE(progress[patient]) < (u64)rounds)
		nap(NAP);
}

/* The first user task, which begins all others; the laboratory has made it. */
struct task *first_user_task;

/* All of them: begins those that are threads, disturbs them as a kernel does, stops those that go on until then. */
void patients_main(void *unused)
{
	struct task *loops[4];
	int n, counted = 0;

	(void)unused;
	for (n = 0; n < NR_ITEMS; n++)
		give(&free_items, &items[n]);
	laboratory_call = patients_call;
	WRITE_ONCE(device_handler, count_interrupt);
	loops[0] = run("schedule_loop", schedule_loop);
	loops[1] = run("freeze_loop", freeze_loop);
	loops[2] = run("busy", busy);
	loops[3] = run("always", always_on_stack);
	run("recursion", recursion);
	run("held_pointer", held_pointer);
	run("lock_a", lock_protocol);
	run("lock_b", lock_protocol);
	run("producer", producer);
	run("consumer", consumer);
	run("inlined", inlined);
	if (first_user_task)
		wake_up_new_task(first_user_task);
	for (n = 0; n < rounds; n++) {
		schedule_work(&work);
		flush_work(&work);
		sync_core_all();
		stop_machine(alone, &counted);
		synchronize_rcu();
		fake_signals();
		expect(set_cpus_allowed(current, 1UL << (n % nr_cpus)) == 0);
		if (freeze_processes() == 0)
			thaw_processes();
	}
	expect(counted == rounds);
	expect(set_cpus_allowed(current, -1UL) == 0);
	wait_for_progress(SCHEDULE_LOOP);
	wait_for_progress(FREEZE_LOOP);
	wait_for_progress(BUSY);
	wait_for_progress(ALWAYS_ON_STACK);
	for (n = 0; n < 4; n++)
		if (loops[n])
			kthread_stop(loops[n]);
}
