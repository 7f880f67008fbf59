/*
 * What every part of the guest's kernel needs: the CPU and the task that run, atomic words, interrupts and
 * preemption, spin locks; and what the parts offer one another.
 */
#ifndef KERNEL_H
#define KERNEL_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;
typedef unsigned long size_t;

#include "layout.h"

#define NULL ((void *)0)
#define noreturn __attribute__((__noreturn__))
#define notrace __attribute__((no_instrument_function))
#define noinline __attribute__((__noinline__))
#define always_inline inline __attribute__((always_inline))

#define READ_ONCE(x) (*(const volatile __typeof__(x) *)&(x))
#define WRITE_ONCE(x, v) (*(volatile __typeof__(x) *)&(x) = (v))
#define barrier() __asm__ volatile("" ::: "memory")
#define smp_mb() __asm__ volatile("lock addl $0, -4(%%rsp)" ::: "memory", "cc")
/* x86 keeps the order of loads, and of stores; only the compiler has to. */
#define smp_load_acquire(p) __atomic_load_n(p, __ATOMIC_ACQUIRE)
#define smp_store_release(p, v) __atomic_store_n(p, v, __ATOMIC_RELEASE)
#define cpu_relax() __asm__ volatile("pause" ::: "memory")

/* ---- The CPU. One instruction each: a task can be moved to another CPU between any two. */

#define this_cpu ((volatile struct cpu __seg_gs *)0)

static always_inline struct task *get_current(void)
{
	return this_cpu->current;
}

static always_inline struct task *cpu_current(struct cpu *cpu)
{
	return READ_ONCE(cpu->current);
}

#define current get_current()

static always_inline struct cpu *this_cpu_struct(void)
{
	return this_cpu->self;
}

static always_inline void preempt_count_add(int n)
{
	__asm__ volatile("addl %0, %%gs:%c1" ::"ri"(n), "i"(__builtin_offsetof(struct cpu, preempt_count))
			 : "memory", "cc");
}

static always_inline int preempt_count(void)
{
	return this_cpu->preempt_count;
}

#define IRQS_ON X86_EFLAGS_IF

static always_inline u64 local_irq_save(void)
{
	u64 flags;

	__asm__ volatile("pushfq; popq %0; cli" : "=r"(flags)::"memory");
	return flags;
}

static always_inline void local_irq_restore(u64 flags)
{
	if (flags & IRQS_ON)
		__asm__ volatile("sti" ::: "memory");
}

static always_inline void local_irq_disable(void)
{
	__asm__ volatile("cli" ::: "memory");
}

static always_inline void local_irq_enable(void)
{
	__asm__ volatile("sti" ::: "memory");
}

static always_inline int irqs_on(void)
{
	u64 flags;

	__asm__ volatile("pushfq; popq %0" : "=r"(flags));
	return (flags & IRQS_ON) != 0;
}

/* ---- Flags of a task that others set too. */

static always_inline void set_flags(int *word, int bits)
{
	__atomic_fetch_or(word, bits, __ATOMIC_SEQ_CST);
}

static always_inline void clear_flags(int *word, int bits)
{
	__atomic_fetch_and(word, ~bits, __ATOMIC_SEQ_CST);
}

static always_inline int thread_flags(struct task *task)
{
	return READ_ONCE(task->thread_flags);
}

static always_inline int need_resched(void)
{
	return thread_flags(current) & TIF_NEED_RESCHED;
}

/* ---- Preemption. */

void preempt_schedule(void);

static always_inline void preempt_disable(void)
{
	preempt_count_add(1);
}

static always_inline void preempt_enable_no_resched(void)
{
	preempt_count_add(-1);
}

static always_inline void preempt_enable(void)
{
	preempt_count_add(-1);
	if (need_resched())
		preempt_schedule();
}

/* For handlers of traced calls: what they call must not be traced itself. */
void preempt_schedule_notrace(void);

static always_inline int preempt_count_dec_and_test(void)
{
	int zero;

	__asm__ volatile("decl %%gs:%c1"
			 : "=@ccz"(zero)
			 : "i"(__builtin_offsetof(struct cpu, preempt_count))
			 : "memory");
	return zero;
}

static always_inline int in_interrupt(void)
{
	return preempt_count() & (HARDIRQ_MASK | NMI_MASK);
}

/* ---- Spin locks: 0 is free. */

typedef int spinlock_t;

static always_inline int spin_trylock_raw(spinlock_t *lock)
{
	return __atomic_exchange_n(lock, 1, __ATOMIC_ACQUIRE) == 0;
}

static always_inline void spin_lock_raw(spinlock_t *lock)
{
	while (!spin_trylock_raw(lock))
		while (READ_ONCE(*lock))
			cpu_relax();
}

static always_inline void spin_unlock_raw(spinlock_t *lock)
{
	smp_store_release(lock, 0);
}

static always_inline void spin_lock(spinlock_t *lock)
{
	preempt_disable();
	spin_lock_raw(lock);
}

static always_inline void spin_unlock(spinlock_t *lock)
{
	spin_unlock_raw(lock);
	preempt_enable();
}

static always_inline u64 spin_lock_irqsave(spinlock_t *lock)
{
	u64 flags = local_irq_save();

	spin_lock(lock);
	return flags;
}

static always_inline void spin_unlock_irqrestore(spinlock_t *lock, u64 flags)
{
	spin_unlock_raw(lock);
	preempt_enable_no_resched();
	local_irq_restore(flags);
	if ((flags & IRQS_ON) && preempt_count() == 0 && need_resched())
		preempt_schedule();
}

/* ---- Wait queues: entries are on the stacks of those that wait. */

struct wait_entry {
	struct task *task;
	struct wait_entry *next, *prev;
};

struct wait_queue {
	spinlock_t lock;
	struct wait_entry *first, *last;
};

void prepare_to_wait(struct wait_queue *queue, struct wait_entry *entry, int state);
void finish_wait(struct wait_queue *queue, struct wait_entry *entry);
/* Wakes those of `states` that wait: at most `count`, the first first. */
void wake_up(struct wait_queue *queue, int states, int count);
#define wake_up_one(queue) wake_up(queue, TASK_NORMAL, 1)
#define wake_up_all(queue) wake_up(queue, TASK_NORMAL, -1)

#define TASK_NORMAL (TASK_INTERRUPTIBLE | TASK_UNINTERRUPTIBLE)

#define wait_event_state(queue, condition, sleep_state, interruptible)                  \
	({                                                                              \
		struct wait_entry __entry = { current, NULL, NULL };                    \
		long __result = 0;                                                      \
                                                                                        \
		for (;;) {                                                              \
			prepare_to_wait(queue, &__entry, sleep_state);                  \
			if (condition)                                                  \
				break;                                                  \
			if ((interruptible) && signal_pending(current)) {               \
				__result = -ERESTARTSYS;                                \
				break;                                                  \
			}                                                               \
			schedule();                                                     \
		}                                                                       \
		finish_wait(queue, &__entry);                                           \
		__result;                                                               \
	})
#define wait_event(queue, condition) ((void)wait_event_state(queue, condition, TASK_UNINTERRUPTIBLE, 0))
/* Of kthreads, which no signal interrupts, so as not to count as blocked. */
#define wait_event_idle(queue, condition) ((void)wait_event_state(queue, condition, TASK_INTERRUPTIBLE, 0))
#define wait_event_interruptible(queue, condition) \
	wait_event_state(queue, condition, TASK_INTERRUPTIBLE, 1)

/* ---- sched.c */

extern struct cpu *cpus[MAX_CPUS];
extern int nr_cpus;
extern struct task *task_list;
extern spinlock_t tasklist_lock;

void schedule(void);
void cond_resched(void);
void schedule_tail(void);
int try_to_wake_up(struct task *task, int states);
void wake_up_new_task(struct task *task);
void wake_up_process(struct task *task);
void resched_cpu(struct cpu *cpu);
void scheduler_tick(struct cpu *cpu);
long set_cpus_allowed(struct task *task, u64 allowed);
void cpu_idle(void);

static always_inline void set_current_state(int state)
{
	__atomic_store_n(&current->state, state, __ATOMIC_SEQ_CST);
}

/* ---- time.c */

/* Guest time in nanoseconds: an instruction takes one. Hardware's, which the laboratory keeps. */
extern volatile u64 clock;

struct timespec {
	long tv_sec, tv_nsec;
};

#define NSEC_PER_SEC 1000000000UL

/* As nanoseconds; -EFAULT, or -EINVAL for what is no time. */
long get_timespec(u64 *time, const struct timespec *from);

/* Sleeps in the state that was set; what is left of the time when something else woke it. */
long schedule_timeout(u64 time);
void run_timers(void);

/* ---- locks and grace periods: lock.c */

struct mutex {
	spinlock_t lock;
	struct task *owner;
	struct wait_queue waiters;
};

struct completion {
	int done;
	struct wait_queue waiters;
};

void mutex_lock(struct mutex *mutex);
void mutex_unlock(struct mutex *mutex);
void wait_for_completion(struct completion *completion);
void complete(struct completion *completion);

/* Readers do no more than not to be preempted. */
static always_inline void rcu_read_lock(void)
{
	preempt_disable();
}

static always_inline void rcu_read_unlock(void)
{
	preempt_enable();
}

void synchronize_rcu(void);

/* ---- stop.c */

void on_each_cpu(void (*function)(void *), void *argument);
void sync_core_all(void);
void handle_call_function(struct cpu *cpu);
void stop_one_cpu(int cpu, void (*function)(void *), void *argument);
void stop_machine(void (*function)(void *), void *argument);

/* ---- kthread.c */

void kthread_main(void *function);
int kthread_should_stop(void);
void kthread_stop(struct task *task);
void set_freezable(void);
int freezing(struct task *task);
void try_to_freeze(void);
int freeze_processes(void);
void thaw_processes(void);

struct work {
	struct work *next;
	void (*function)(struct work *work);
	int pending;
};

void schedule_work(struct work *work);
void flush_work(struct work *work);

/* ---- module.c */

long sys_init_module(const char *name);
long sys_delete_module(const char *name);

/* ---- signal.c */

#define SIGBIT(n) (1UL << ((n)-1))
#define KILLABLE (SIGBIT(SIGKILL))

static always_inline int signal_pending(struct task *task)
{
	return thread_flags(task) & (TIF_SIGPENDING | TIF_NOTIFY_SIGNAL);
}

void send_signal(struct task *task, int sig);
void force_signal(int sig);
void fake_signal(struct task *task);
void do_signal(struct pt_regs *regs);
void signal_wake_up(struct task *task, int states);
long sys_rt_sigaction(long sig, const struct sigaction *act, struct sigaction *old);
long sys_rt_sigprocmask(long how, const u64 *set, u64 *old);
long sys_rt_sigreturn(struct pt_regs *regs);
long sys_kill(long pid, long sig);
long sys_pause(void);
long sys_ptrace(long request, long pid, long address, long data);

/* ---- fork.c */

struct task *find_task(int pid);
struct task *create_task(const char *comm, u64 function, void *argument, int flags);
void noreturn do_exit(long code);
void release_task(struct task *task);
long sys_clone(struct pt_regs *regs);
long sys_wait4(long pid, int *status, long options);
void lab_exit(long code) noreturn;
extern struct wait_queue child_wait;

/* ---- syscall.c, pipe.c, futex.c */

static always_inline struct pt_regs *task_pt_regs(struct task *task)
{
	return (struct pt_regs *)(task->stack + STACK_SIZE) - 1;
}

extern void *laboratory_call;
long sys_read(u32 fd, char *buffer, size_t count);
long sys_write(u32 fd, const char *buffer, size_t count);
long sys_close(u32 fd);
long sys_pipe(int *fds);
long sys_futex(u64 address, long operation, long value, const struct timespec *timeout);
long sys_epoll_wait(u32 fd, void *events, long count, long timeout);
long sys_nanosleep(const struct timespec *time, struct timespec *left);
long sys_clock_gettime(long id, struct timespec *time);
long futex_wait(u64 address, u32 value, u64 expires);

/* ---- asm/entry.S, asm/uaccess.S */

long hypercall(long number, long a, long b, long c);
struct task *switch_to(struct task *prev, struct task *next);
void ret_from_fork(void);
void ret_from_kthread(void);
/* Bytes that were not copied, because user memory is not there. */
size_t copy_user(void *to, const void *from, size_t count);

static always_inline int user_range(const void *at, size_t size)
{
	return (u64)at < USER_END && size <= USER_END - (u64)at;
}

static always_inline long copy_from_user(void *to, const void *from, size_t size)
{
	return user_range(from, size) && copy_user(to, from, size) == 0 ? 0 : -EFAULT;
}

static always_inline long copy_to_user(void *to, const void *from, size_t size)
{
	return user_range(to, size) && copy_user(to, from, size) == 0 ? 0 : -EFAULT;
}

/* ---- ftrace.c */

/*
 * A handler runs once in each context: in an NMI, an interrupt, or a task. Interrupts come before preempt_count says so, and
 * then it looks as if one context were entered twice, which is let pass once. Each context has a bit in the task's word, which
 * nobody else writes, and which who interrupts this leaves as it was: no locked instruction. `start` is TRACE_FTRACE_START
 * or TRACE_LIST_START.
 */

/* Of tasks, which nearly all calls are in. True if the bit was free, and is held from now on; two tests, and no more. */
static always_inline int ftrace_recursion_trylock_task(struct task *self, int start)
{
	int interrupted, held;

	__asm__ volatile("testl %1, %%gs:%c2"
			 : "=@ccnz"(interrupted)
			 : "i"(NMI_MASK | HARDIRQ_MASK | SOFTIRQ_MASK), "i"(__builtin_offsetof(struct cpu, preempt_count))
			 : "memory");
	if (__builtin_expect(interrupted, 0))
		return 0;
	__asm__ volatile("btsl %2, %1" : "=@ccc"(held), "+m"(self->trace_recursion) : "i"(start + TRACE_CTX_TASK) : "memory");
	return !__builtin_expect(held, 0);
}

/* The bit of a task, as ftrace_test_recursion_unlock() takes it. */
#define TRACE_TASK_BIT(start) (1 << ((start) + TRACE_CTX_TASK))

/* The others, and tasks that are in a handler. Answers with the bit that is held from now on; zero if there is none. */
int ftrace_recursion_trylock_elsewhere(struct task *self, int start);

/* Answers with the bit that is held, with preemption off; zero if this call is not to be handled. */
static always_inline int ftrace_test_recursion_trylock(struct task *self, int start)
{
	int bit = TRACE_TASK_BIT(start);

	if (__builtin_expect(!ftrace_recursion_trylock_task(self, start), 0)) {
		bit = ftrace_recursion_trylock_elsewhere(self, start);
		if (!bit)
			return 0;
	}
	preempt_disable();
	return bit;
}

/* True if somebody waits for this CPU, and has to be let: preempt_schedule_notrace(). */
static always_inline int ftrace_recursion_unlock_wants_schedule(struct task *self, int bit)
{
	barrier();
	/* Before preemption may lead to schedule(): what is patched in there would be refused. */
	self->trace_recursion &= ~bit;
	return preempt_count_dec_and_test() && __builtin_expect(self->thread_flags & TIF_NEED_RESCHED, 0);
}

static always_inline void ftrace_test_recursion_unlock(struct task *self, int bit)
{
	if (ftrace_recursion_unlock_wants_schedule(self, bit))
		preempt_schedule_notrace();
}

typedef void (*ftrace_func_t)(u64 ip, u64 parent_ip, struct ftrace_ops *ops, struct pt_regs *regs);

/* Executes in place of a breakpoint what is being written where it lies. Zero if nothing is. */
int poke_int3_handler(struct pt_regs *regs);

/* ---- traps.c */

void bug(const char *what) noreturn;

/* A line of the log; arguments are words, for %s the address of a text. */
#define printk(format, ...)                                                         \
	do {                                                                        \
		u64 __words[] = { __VA_ARGS__ };                                    \
		hypercall(HC_PRINTK, (long)(format), (long)__words, sizeof(__words) / 8); \
	} while (0)

static always_inline int user_mode(const struct pt_regs *regs)
{
	return (regs->cs & 3) != 0;
}

#endif
