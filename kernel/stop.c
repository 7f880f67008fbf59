/* All CPUs at once: functions called on each of them by interrupts, and a machine that is stopped. */
#include "kernel.h"

static spinlock_t call_lock;

/* On every CPU, this one included; returns when all have. Not from interrupts, nor with interrupts off. */
void on_each_cpu(void (*function)(void *), void *argument)
{
	struct cpu *this;
	int n;

	spin_lock(&call_lock);
	this = this_cpu_struct();
	for (n = 0; n < nr_cpus; n++) {
		struct cpu *cpu = cpus[n];

		if (cpu == this)
			continue;
		cpu->call_function = function;
		cpu->call_argument = argument;
		smp_store_release(&cpu->call_pending, 1);
		hypercall(HC_SEND_IPI, n, CALL_FUNCTION_VECTOR, 0);
	}
	local_irq_disable();
	function(argument);
	local_irq_enable();
	for (n = 0; n < nr_cpus; n++)
		while (smp_load_acquire(&cpus[n]->call_pending))
			cpu_relax();
	spin_unlock(&call_lock);
}

static void sync_core(void *unused);

void handle_call_function(struct cpu *cpu)
{
	int wanted = smp_load_acquire(&cpu->sync_wanted);

	/* Read before, told after: whoever asks in between is served by the next interrupt. */
	if (wanted != cpu->sync_done) {
		sync_core(NULL);
		smp_store_release(&cpu->sync_done, wanted);
	}
	if (smp_load_acquire(&cpu->kick)) {
		if (cpu->kick->flags & PF_KTHREAD)
			try_to_wake_up(cpu->kick, TASK_INTERRUPTIBLE);
		else
			fake_signal(cpu->kick);
		smp_store_release(&cpu->kick, NULL);
	}
	if (!smp_load_acquire(&cpu->call_pending))
		return;
	((void (*)(void *))cpu->call_function)(cpu->call_argument);
	smp_store_release(&cpu->call_pending, 0);
}

/* cpuid serialises: whatever was fetched before is fetched anew (SDM vol. 3, 8.3). */
static void sync_core(void *unused)
{
	u32 a = 0, b, c = 0, d;

	(void)unused;
	__asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d)::"memory");
}

void sync_core_all(void)
{
	on_each_cpu(sync_core, NULL);
}

/* ---- Stoppers: a thread for each CPU that runs before all others there. */

static struct mutex stop_mutex;
static struct completion stopped;

void stopper_thread(void *unused)
{
	struct cpu *cpu = this_cpu_struct();

	(void)unused;
	for (;;) {
		set_current_state(TASK_INTERRUPTIBLE);
		if (!smp_load_acquire(&cpu->stop_pending)) {
			schedule();
			continue;
		}
		set_current_state(TASK_RUNNING);
		preempt_disable();
		((void (*)(void *))cpu->stop_function)(cpu->stop_argument);
		preempt_enable();
		smp_store_release(&cpu->stop_pending, 0);
		complete(&stopped);
	}
}

static void queue_stop(struct cpu *cpu, void (*function)(void *), void *argument)
{
	cpu->stop_function = function;
	cpu->stop_argument = argument;
	smp_store_release(&cpu->stop_pending, 1);
	wake_up_process(cpu->stopper);
}

/* Calls `function` on `cpu` in place of whatever runs there. */
void stop_one_cpu(int cpu, void (*function)(void *), void *argument)
{
	mutex_lock(&stop_mutex);
	queue_stop(cpus[cpu], function, argument);
	wait_for_completion(&stopped);
	mutex_unlock(&stop_mutex);
}

enum stop_state { STOP_NONE, STOP_PREPARE, STOP_DISABLE_IRQS, STOP_RUN, STOP_EXIT };

static struct {
	int state;
	int acknowledgements;
	struct cpu *runner;
	void (*function)(void *);
	void *argument;
} stop;

static void set_stop_state(int state)
{
	WRITE_ONCE(stop.acknowledgements, nr_cpus);
	smp_store_release(&stop.state, state);
}

/* All CPUs go from state to state together. */
static void multi_cpu_stop(void *unused)
{
	int state = STOP_NONE;
	u64 flags = 0;

	(void)unused;
	while (state != STOP_EXIT) {
		int next = smp_load_acquire(&stop.state);

		cpu_relax();
		if (next == state)
			continue;
		state = next;
		if (state == STOP_DISABLE_IRQS)
			flags = local_irq_save();
		if (state == STOP_RUN && stop.runner == this_cpu_struct())
			stop.function(stop.argument);
		if (__atomic_sub_fetch(&stop.acknowledgements, 1, __ATOMIC_SEQ_CST) == 0 && state != STOP_EXIT)
			set_stop_state(state + 1);
	}
	local_irq_restore(flags);
}

/* Calls `function` on one CPU while all others do nothing, with interrupts off everywhere. May sleep. */
void stop_machine(void (*function)(void *), void *argument)
{
	int n;

	mutex_lock(&stop_mutex);
	stop.function = function;
	stop.argument = argument;
	stop.runner = this_cpu_struct();
	set_stop_state(STOP_PREPARE);
	/* All of them before this CPU's own takes its place: it would wait for the others for ever. */
	preempt_disable();
	for (n = 0; n < nr_cpus; n++)
		queue_stop(cpus[n], multi_cpu_stop, NULL);
	preempt_enable();
	for (n = 0; n < nr_cpus; n++)
		wait_for_completion(&stopped);
	mutex_unlock(&stop_mutex);
}
