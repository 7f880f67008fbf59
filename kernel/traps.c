/* What the CPU enters the kernel for: exceptions, interrupts, NMIs. Called from asm/entry.S, interrupts off. */
#include "kernel.h"

/* An instruction that may fault, and where the kernel goes on then (asm/macros.inc). */
struct fixup {
	u64 ip;
	u64 target;
};

/* The laboratory says where they are, as a linker script would. */
struct fixup *fixups;
u64 nr_fixups;

void bug(const char *what)
{
	for (;;)
		hypercall(HC_PANIC, (long)what, 0, 0);
}

static int fix_up(struct pt_regs *regs)
{
	u64 n;

	for (n = 0; n < nr_fixups; n++) {
		if (fixups[n].ip != regs->ip)
			continue;
		regs->ip = fixups[n].target;
		return 1;
	}
	return 0;
}

/* What user code gets for an exception, by vector (Linux arch/x86/kernel/traps.c). */
static const u8 signals[32] = {
	[0] = SIGFPE,  [1] = SIGTRAP, [3] = SIGTRAP,  [4] = SIGSEGV,  [5] = SIGSEGV,  [6] = SIGILL,
	[7] = SIGFPE,  [10] = SIGSEGV, [11] = SIGBUS, [12] = SIGBUS, [13] = SIGSEGV, [14] = SIGSEGV,
};

static const char *const names[32] = {
	[0] = "divide error",	    [4] = "overflow",	      [5] = "bounds",	     [6] = "invalid opcode",
	[7] = "device not available", [10] = "invalid TSS",   [11] = "segment not present",
	[12] = "stack segment",	    [13] = "general protection",
};

#define BREAKPOINT 3
#define PAGE_FAULT 14

/* A task that is going to end of it is worth a line. */
static noinline void report_fault(const struct pt_regs *regs, u64 vector, u64 address, u64 error)
{
	if (vector == PAGE_FAULT)
		printk("%s[%d]: segfault at %lx ip %p sp %p error %lx\n", (u64)current->comm, current->pid, address,
		       regs->ip, regs->sp, error);
	else if (vector < 32 && names[vector])
		printk("traps: %s[%d] trap %s ip:%lx sp:%lx error:%lx\n", (u64)current->comm, current->pid,
		       (u64)names[vector], regs->ip, regs->sp, error);
}

static void user_exception(struct pt_regs *regs, u64 vector)
{
	int sig = vector < 32 && signals[vector] ? signals[vector] : SIGSEGV;
	u64 error = regs->orig_ax == -1UL ? 0 : regs->orig_ax;
	u64 address;

	__asm__ volatile("mov %%cr2, %0" : "=r"(address)); /* interrupts are off: still this fault's */
	/* An error code is no system call's number: nothing is to be restarted. */
	regs->orig_ax = -1UL;
	local_irq_enable();
	if (current->sigactions[sig - 1].handler <= 1)
		report_fault(regs, vector, address, error);
	force_signal(sig);
	local_irq_disable();
}

void exception_handler(struct pt_regs *regs, u64 vector);

notrace void do_exception(struct pt_regs *regs, u64 vector)
{
	if (user_mode(regs)) {
		user_exception(regs, vector);
	} else if (!(vector == BREAKPOINT && poke_int3_handler(regs)) && !fix_up(regs)) {
		exception_handler(regs, vector);
	}
}

/* Modules that want to hear of the device's interrupts. */
void (*device_handler)(void);

/* Asks for a switch where somebody waits, wakes those whose time has come. */
noinline void timer_tick(struct pt_regs *regs)
{
	struct cpu *cpu = this_cpu_struct();

	cpu->ticks++;
	if (user_mode(regs))
		WRITE_ONCE(cpu->quiescent, cpu->quiescent + 1);
	run_timers();
	scheduler_tick(cpu);
}

/* Readers may be in interrupts: a CPU that handles one does not idle. */
notrace void interrupt_handler(struct pt_regs *regs, u64 vector)
{
	struct cpu *cpu = this_cpu_struct();
	void (*handler)(void);

	preempt_count_add(HARDIRQ_OFFSET);
	WRITE_ONCE(cpu->idling, 0);
	switch (vector) {
	case TIMER_VECTOR:
		timer_tick(regs);
		break;
	case CALL_FUNCTION_VECTOR:
		handle_call_function(cpu);
		break;
	case DEVICE_VECTOR:
		cpu->devices++;
		handler = READ_ONCE(device_handler);
		if (handler)
			handler();
		break;
	}
	preempt_count_add(-HARDIRQ_OFFSET);
}

/* A test's: makes the next NMIs meet a breakpoint, whose return unblocks NMIs while one is handled. */
int nmi_breakpoints;

notrace void nmi_handler(void)
{
	struct cpu *cpu = this_cpu_struct();
	int idling = cpu->idling;

	preempt_count_add(NMI_OFFSET);
	WRITE_ONCE(cpu->idling, 0);
	cpu->nmis++;
	if (READ_ONCE(nmi_breakpoints))
		__asm__ volatile("int3\n"
				 "1:\n"
				 ".pushsection __ex_table, \"a\"\n"
				 ".quad 1b, 1b\n"
				 ".popsection" ::: "memory");
	WRITE_ONCE(cpu->idling, idling);
	preempt_count_add(-NMI_OFFSET);
}
