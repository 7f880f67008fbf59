/*
 * Who is called at traced sites when it is more than one, or one that does not look after itself; and what a CPU does that
 * meets a breakpoint where a site is being rewritten. Nothing here can be traced.
 */
#include "kernel.h"

/* All that are registered, the latest first; changed by the laboratory, which waits for those in here before it frees. */
struct ftrace_ops *ftrace_ops_list;

notrace int ftrace_recursion_trylock_elsewhere(struct task *self, int start)
{
	int count = preempt_count();
	int context = count & NMI_MASK	     ? TRACE_CTX_NMI
		      : count & HARDIRQ_MASK ? TRACE_CTX_IRQ
		      : count & SOFTIRQ_MASK ? TRACE_CTX_SOFTIRQ
					     : TRACE_CTX_TASK;
	int bit = (1 << context) << start;

	if (self->trace_recursion & bit) {
		bit = (1 << TRACE_CTX_TRANSITION) << start;
		if (self->trace_recursion & bit)
			return 0;
	}
	self->trace_recursion |= bit;
	barrier();
	return bit;
}

static always_inline int hash_contains_ip(const struct ftrace_hash *hash, u64 ip)
{
	const u64 *slots = (const u64 *)(hash + 1);
	u64 n;

	for (n = ip >> 4;; n++) {
		u64 found = slots[n & hash->mask];

		if (found == ip)
			return 1;
		if (!found)
			return 0;
	}
}

/* Called by trampolines in place of one handler. */
notrace void ftrace_ops_list_func(u64 ip, u64 parent_ip, struct ftrace_ops *unused, struct pt_regs *regs)
{
	struct task *self = current;
	int bit = ftrace_test_recursion_trylock(self, TRACE_LIST_START);
	struct ftrace_ops *ops;

	(void)unused;
	if (!bit)
		return;
	for (ops = READ_ONCE(ftrace_ops_list); ops; ops = READ_ONCE(ops->next))
		if (hash_contains_ip(READ_ONCE(ops->hash), ip))
			((ftrace_func_t)ops->func)(ip, parent_ip, ops, regs);
	ftrace_test_recursion_unlock(self, bit);
}

/* Called in place of a handler that wants to be guarded. */
notrace void ftrace_ops_assist_func(u64 ip, u64 parent_ip, struct ftrace_ops *ops, struct pt_regs *regs)
{
	struct task *self = current;
	int bit = ftrace_test_recursion_trylock(self, TRACE_FTRACE_START);

	if (!bit)
		return;
	((ftrace_func_t)ops->func)(ip, parent_ip, ops, regs);
	ftrace_test_recursion_unlock(self, bit);
}

/* The handler of an ops whose sites call something else: the trampoline that has all registers goes there behind the handlers. */
notrace void call_direct_funcs(u64 ip, u64 parent_ip, struct ftrace_ops *ops, struct pt_regs *regs)
{
	(void)ip;
	(void)parent_ip;
	regs->orig_ax = ops->private;
}

/* The handler of an ops whose handler is in TypeScript. */
notrace void ftrace_hypercall_func(u64 ip, u64 parent_ip, struct ftrace_ops *ops, struct pt_regs *regs)
{
	struct traced_call call = { .ip = ip, .parent_ip = parent_ip, .ops = ops, .regs = regs };

	hypercall(HC_FTRACE, (long)&call, 0, 0);
}

/* ---- Breakpoints where text is being written (Linux arch/x86/kernel/alternative.c). */

struct bp_patching_desc bp_desc;

static always_inline int try_get_desc(void)
{
	int refs = READ_ONCE(bp_desc.refs);

	do {
		if (!refs)
			return 0;
	} while (!__atomic_compare_exchange_n(&bp_desc.refs, &refs, refs + 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
	return 1;
}

static always_inline const struct text_poke_loc *find_poke(u64 ip)
{
	int low = 0, high = bp_desc.nr_entries;

	while (low < high) {
		int middle = (low + high) / 2;
		const struct text_poke_loc *at = &bp_desc.vec[middle];

		if (at->ip == ip)
			return at;
		if (at->ip < ip)
			low = middle + 1;
		else
			high = middle;
	}
	return NULL;
}

notrace int poke_int3_handler(struct pt_regs *regs)
{
	const struct text_poke_loc *poke;

	/*
	 * The breakpoint is read before the description of what it is for. Pairs with whoever pokes, who writes the description
	 * first, and makes it void only after all CPUs have serialised behind the last byte.
	 */
	if (!try_get_desc())
		return 0;
	poke = find_poke(regs->ip - 1);
	if (poke) {
		u64 next = poke->ip + FTRACE_SITE_SIZE;

		switch (poke->opcode) {
		case CALL_INSN_OPCODE:
			/* There is room: the entry code left some between the stack that was interrupted and regs. */
			regs->sp -= 8;
			*(u64 *)regs->sp = next;
			regs->ip = poke->target;
			break;
		case JMP32_INSN_OPCODE:
			regs->ip = poke->target;
			break;
		default:
			regs->ip = next;
			break;
		}
	}
	__atomic_sub_fetch(&bp_desc.refs, 1, __ATOMIC_SEQ_CST);
	return poke != NULL;
}
