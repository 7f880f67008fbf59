/* Structures that TypeScript describes (src/.../layout.ts), and constants. */
/* Written by `npm run offsets`: change the descriptions, not this file. */

struct pt_regs;
struct ftrace_ops;
struct traced_call;
struct ftrace_hash;
struct text_poke_loc;
struct bp_patching_desc;
struct klp_func;
struct klp_shadow;
struct task;
struct ret_stack;
struct sigaction;
struct cpu;
struct inactive_task_frame;
struct module;
struct file;
struct file_operations;

struct pt_regs {
	u64 r15;
	u64 r14;
	u64 r13;
	u64 r12;
	u64 bp;
	u64 bx;
	u64 r11;
	u64 r10;
	u64 r9;
	u64 r8;
	u64 ax;
	u64 cx;
	u64 dx;
	u64 si;
	u64 di;
	u64 orig_ax;
	u64 ip;
	u64 cs;
	u64 flags;
	u64 sp;
	u64 ss;
} __attribute__((aligned(8)));
_Static_assert(__builtin_offsetof(struct pt_regs, r15) == 0, "");
_Static_assert(__builtin_offsetof(struct pt_regs, r14) == 8, "");
_Static_assert(__builtin_offsetof(struct pt_regs, r13) == 16, "");
_Static_assert(__builtin_offsetof(struct pt_regs, r12) == 24, "");
_Static_assert(__builtin_offsetof(struct pt_regs, bp) == 32, "");
_Static_assert(__builtin_offsetof(struct pt_regs, bx) == 40, "");
_Static_assert(__builtin_offsetof(struct pt_regs, r11) == 48, "");
_Static_assert(__builtin_offsetof(struct pt_regs, r10) == 56, "");
_Static_assert(__builtin_offsetof(struct pt_regs, r9) == 64, "");
_Static_assert(__builtin_offsetof(struct pt_regs, r8) == 72, "");
_Static_assert(__builtin_offsetof(struct pt_regs, ax) == 80, "");
_Static_assert(__builtin_offsetof(struct pt_regs, cx) == 88, "");
_Static_assert(__builtin_offsetof(struct pt_regs, dx) == 96, "");
_Static_assert(__builtin_offsetof(struct pt_regs, si) == 104, "");
_Static_assert(__builtin_offsetof(struct pt_regs, di) == 112, "");
_Static_assert(__builtin_offsetof(struct pt_regs, orig_ax) == 120, "");
_Static_assert(__builtin_offsetof(struct pt_regs, ip) == 128, "");
_Static_assert(__builtin_offsetof(struct pt_regs, cs) == 136, "");
_Static_assert(__builtin_offsetof(struct pt_regs, flags) == 144, "");
_Static_assert(__builtin_offsetof(struct pt_regs, sp) == 152, "");
_Static_assert(__builtin_offsetof(struct pt_regs, ss) == 160, "");
_Static_assert(sizeof(struct pt_regs) == 168, "");

struct ftrace_ops {
	u64 func;
	u64 private;
	struct ftrace_ops *next;
	struct ftrace_hash *hash;
	int flags;
} __attribute__((aligned(8)));
_Static_assert(__builtin_offsetof(struct ftrace_ops, func) == 0, "");
_Static_assert(__builtin_offsetof(struct ftrace_ops, private) == 8, "");
_Static_assert(__builtin_offsetof(struct ftrace_ops, next) == 16, "");
_Static_assert(__builtin_offsetof(struct ftrace_ops, hash) == 24, "");
_Static_assert(__builtin_offsetof(struct ftrace_ops, flags) == 32, "");
_Static_assert(sizeof(struct ftrace_ops) == 40, "");

struct traced_call {
	u64 ip;
	u64 parent_ip;
	struct ftrace_ops *ops;
	struct pt_regs *regs;
} __attribute__((aligned(8)));
_Static_assert(__builtin_offsetof(struct traced_call, ip) == 0, "");
_Static_assert(__builtin_offsetof(struct traced_call, parent_ip) == 8, "");
_Static_assert(__builtin_offsetof(struct traced_call, ops) == 16, "");
_Static_assert(__builtin_offsetof(struct traced_call, regs) == 24, "");
_Static_assert(sizeof(struct traced_call) == 32, "");

struct ftrace_hash {
	u64 mask;
} __attribute__((aligned(8)));
_Static_assert(__builtin_offsetof(struct ftrace_hash, mask) == 0, "");
_Static_assert(sizeof(struct ftrace_hash) == 8, "");

struct text_poke_loc {
	u64 ip;
	u64 target;
	int opcode;
} __attribute__((aligned(8)));
_Static_assert(__builtin_offsetof(struct text_poke_loc, ip) == 0, "");
_Static_assert(__builtin_offsetof(struct text_poke_loc, target) == 8, "");
_Static_assert(__builtin_offsetof(struct text_poke_loc, opcode) == 16, "");
_Static_assert(sizeof(struct text_poke_loc) == 24, "");

struct bp_patching_desc {
	struct text_poke_loc *vec;
	int nr_entries;
	int refs;
} __attribute__((aligned(8)));
_Static_assert(__builtin_offsetof(struct bp_patching_desc, vec) == 0, "");
_Static_assert(__builtin_offsetof(struct bp_patching_desc, nr_entries) == 8, "");
_Static_assert(__builtin_offsetof(struct bp_patching_desc, refs) == 12, "");
_Static_assert(sizeof(struct bp_patching_desc) == 16, "");

struct klp_func {
	u64 new_func;
	struct klp_func *next;
	u8 transition;
} __attribute__((aligned(8)));
_Static_assert(__builtin_offsetof(struct klp_func, new_func) == 0, "");
_Static_assert(__builtin_offsetof(struct klp_func, next) == 8, "");
_Static_assert(__builtin_offsetof(struct klp_func, transition) == 16, "");
_Static_assert(sizeof(struct klp_func) == 24, "");

struct klp_shadow {
	struct klp_shadow *next;
	void *obj;
	u64 id;
	u64 data_size;
} __attribute__((aligned(8)));
_Static_assert(__builtin_offsetof(struct klp_shadow, next) == 0, "");
_Static_assert(__builtin_offsetof(struct klp_shadow, obj) == 8, "");
_Static_assert(__builtin_offsetof(struct klp_shadow, id) == 16, "");
_Static_assert(__builtin_offsetof(struct klp_shadow, data_size) == 24, "");
_Static_assert(sizeof(struct klp_shadow) == 32, "");

struct task {
	int pid;
	int patch_state;
	u64 stack;
	u64 sp;
	struct ret_stack *ret_stack;
	int ret_depth;
	int state;
	int thread_flags;
	int flags;
	int cpu;
	int on_rq;
	int on_cpu;
	int lock;
	u64 cpus_allowed;
	struct task *rq_next;
	struct task *tasks_next;
	struct task *parent;
	char comm[16];
	u64 pending;
	u64 blocked;
	struct sigaction *sigactions;
	int exit_code;
	int jobctl;
	struct task *tracer;
	void *restart_function;
	u64 restart_argument;
	u64 restart_value;
	u64 restart_expires;
	u64 timer_expires;
	struct task *timer_next;
	int timer_armed;
	int kthread;
	void *thread_function;
	void *thread_argument;
	u64 futex;
	struct task *futex_next;
	int trace_signal;
	u64 switches;
	u64 switched_at;
	int trace_recursion;
} __attribute__((aligned(8)));
_Static_assert(__builtin_offsetof(struct task, pid) == 0, "");
_Static_assert(__builtin_offsetof(struct task, patch_state) == 4, "");
_Static_assert(__builtin_offsetof(struct task, stack) == 8, "");
_Static_assert(__builtin_offsetof(struct task, sp) == 16, "");
_Static_assert(__builtin_offsetof(struct task, ret_stack) == 24, "");
_Static_assert(__builtin_offsetof(struct task, ret_depth) == 32, "");
_Static_assert(__builtin_offsetof(struct task, state) == 36, "");
_Static_assert(__builtin_offsetof(struct task, thread_flags) == 40, "");
_Static_assert(__builtin_offsetof(struct task, flags) == 44, "");
_Static_assert(__builtin_offsetof(struct task, cpu) == 48, "");
_Static_assert(__builtin_offsetof(struct task, on_rq) == 52, "");
_Static_assert(__builtin_offsetof(struct task, on_cpu) == 56, "");
_Static_assert(__builtin_offsetof(struct task, lock) == 60, "");
_Static_assert(__builtin_offsetof(struct task, cpus_allowed) == 64, "");
_Static_assert(__builtin_offsetof(struct task, rq_next) == 72, "");
_Static_assert(__builtin_offsetof(struct task, tasks_next) == 80, "");
_Static_assert(__builtin_offsetof(struct task, parent) == 88, "");
_Static_assert(__builtin_offsetof(struct task, comm) == 96, "");
_Static_assert(__builtin_offsetof(struct task, pending) == 112, "");
_Static_assert(__builtin_offsetof(struct task, blocked) == 120, "");
_Static_assert(__builtin_offsetof(struct task, sigactions) == 128, "");
_Static_assert(__builtin_offsetof(struct task, exit_code) == 136, "");
_Static_assert(__builtin_offsetof(struct task, jobctl) == 140, "");
_Static_assert(__builtin_offsetof(struct task, tracer) == 144, "");
_Static_assert(__builtin_offsetof(struct task, restart_function) == 152, "");
_Static_assert(__builtin_offsetof(struct task, restart_argument) == 160, "");
_Static_assert(__builtin_offsetof(struct task, restart_value) == 168, "");
_Static_assert(__builtin_offsetof(struct task, restart_expires) == 176, "");
_Static_assert(__builtin_offsetof(struct task, timer_expires) == 184, "");
_Static_assert(__builtin_offsetof(struct task, timer_next) == 192, "");
_Static_assert(__builtin_offsetof(struct task, timer_armed) == 200, "");
_Static_assert(__builtin_offsetof(struct task, kthread) == 204, "");
_Static_assert(__builtin_offsetof(struct task, thread_function) == 208, "");
_Static_assert(__builtin_offsetof(struct task, thread_argument) == 216, "");
_Static_assert(__builtin_offsetof(struct task, futex) == 224, "");
_Static_assert(__builtin_offsetof(struct task, futex_next) == 232, "");
_Static_assert(__builtin_offsetof(struct task, trace_signal) == 240, "");
_Static_assert(__builtin_offsetof(struct task, switches) == 248, "");
_Static_assert(__builtin_offsetof(struct task, switched_at) == 256, "");
_Static_assert(__builtin_offsetof(struct task, trace_recursion) == 264, "");
_Static_assert(sizeof(struct task) == 272, "");

struct ret_stack {
	u64 ret;
	u64 slot;
} __attribute__((aligned(8)));
_Static_assert(__builtin_offsetof(struct ret_stack, ret) == 0, "");
_Static_assert(__builtin_offsetof(struct ret_stack, slot) == 8, "");
_Static_assert(sizeof(struct ret_stack) == 16, "");

struct sigaction {
	u64 handler;
	u64 flags;
	u64 restorer;
	u64 mask;
} __attribute__((aligned(8)));
_Static_assert(__builtin_offsetof(struct sigaction, handler) == 0, "");
_Static_assert(__builtin_offsetof(struct sigaction, flags) == 8, "");
_Static_assert(__builtin_offsetof(struct sigaction, restorer) == 16, "");
_Static_assert(__builtin_offsetof(struct sigaction, mask) == 24, "");
_Static_assert(sizeof(struct sigaction) == 32, "");

struct cpu {
	struct task *current;
	struct task *next;
	u64 irq_stack;
	u64 ticks;
	u64 nmis;
	int number;
	int preempt_count;
	struct cpu *self;
	u64 stack_top;
	u64 user_sp;
	u64 tss;
	struct task *idle;
	struct task *stopper;
	int rq_lock;
	int nr_queued;
	struct task *rq_first;
	struct task *rq_last;
	struct task *prev;
	int idling;
	int halted;
	u64 quiescent;
	void *call_function;
	void *call_argument;
	int call_pending;
	int stop_pending;
	void *stop_function;
	void *stop_argument;
	u64 touched;
	u64 devices;
	u64 tick_at;
	int sync_wanted;
	int sync_done;
	struct task *kick;
} __attribute__((aligned(8)));
_Static_assert(__builtin_offsetof(struct cpu, current) == 0, "");
_Static_assert(__builtin_offsetof(struct cpu, next) == 8, "");
_Static_assert(__builtin_offsetof(struct cpu, irq_stack) == 16, "");
_Static_assert(__builtin_offsetof(struct cpu, ticks) == 24, "");
_Static_assert(__builtin_offsetof(struct cpu, nmis) == 32, "");
_Static_assert(__builtin_offsetof(struct cpu, number) == 40, "");
_Static_assert(__builtin_offsetof(struct cpu, preempt_count) == 44, "");
_Static_assert(__builtin_offsetof(struct cpu, self) == 48, "");
_Static_assert(__builtin_offsetof(struct cpu, stack_top) == 56, "");
_Static_assert(__builtin_offsetof(struct cpu, user_sp) == 64, "");
_Static_assert(__builtin_offsetof(struct cpu, tss) == 72, "");
_Static_assert(__builtin_offsetof(struct cpu, idle) == 80, "");
_Static_assert(__builtin_offsetof(struct cpu, stopper) == 88, "");
_Static_assert(__builtin_offsetof(struct cpu, rq_lock) == 96, "");
_Static_assert(__builtin_offsetof(struct cpu, nr_queued) == 100, "");
_Static_assert(__builtin_offsetof(struct cpu, rq_first) == 104, "");
_Static_assert(__builtin_offsetof(struct cpu, rq_last) == 112, "");
_Static_assert(__builtin_offsetof(struct cpu, prev) == 120, "");
_Static_assert(__builtin_offsetof(struct cpu, idling) == 128, "");
_Static_assert(__builtin_offsetof(struct cpu, halted) == 132, "");
_Static_assert(__builtin_offsetof(struct cpu, quiescent) == 136, "");
_Static_assert(__builtin_offsetof(struct cpu, call_function) == 144, "");
_Static_assert(__builtin_offsetof(struct cpu, call_argument) == 152, "");
_Static_assert(__builtin_offsetof(struct cpu, call_pending) == 160, "");
_Static_assert(__builtin_offsetof(struct cpu, stop_pending) == 164, "");
_Static_assert(__builtin_offsetof(struct cpu, stop_function) == 168, "");
_Static_assert(__builtin_offsetof(struct cpu, stop_argument) == 176, "");
_Static_assert(__builtin_offsetof(struct cpu, touched) == 184, "");
_Static_assert(__builtin_offsetof(struct cpu, devices) == 192, "");
_Static_assert(__builtin_offsetof(struct cpu, tick_at) == 200, "");
_Static_assert(__builtin_offsetof(struct cpu, sync_wanted) == 208, "");
_Static_assert(__builtin_offsetof(struct cpu, sync_done) == 212, "");
_Static_assert(__builtin_offsetof(struct cpu, kick) == 216, "");
_Static_assert(sizeof(struct cpu) == 224, "");

struct inactive_task_frame {
	u64 r15;
	u64 r14;
	u64 r13;
	u64 r12;
	u64 bx;
	u64 bp;
	u64 ret_addr;
} __attribute__((aligned(8)));
_Static_assert(__builtin_offsetof(struct inactive_task_frame, r15) == 0, "");
_Static_assert(__builtin_offsetof(struct inactive_task_frame, r14) == 8, "");
_Static_assert(__builtin_offsetof(struct inactive_task_frame, r13) == 16, "");
_Static_assert(__builtin_offsetof(struct inactive_task_frame, r12) == 24, "");
_Static_assert(__builtin_offsetof(struct inactive_task_frame, bx) == 32, "");
_Static_assert(__builtin_offsetof(struct inactive_task_frame, bp) == 40, "");
_Static_assert(__builtin_offsetof(struct inactive_task_frame, ret_addr) == 48, "");
_Static_assert(sizeof(struct inactive_task_frame) == 56, "");

struct module {
	struct module *next;
	int state;
	int refcnt;
	char name[16];
	void *init;
	void *exit;
	u64 text;
	u64 text_size;
} __attribute__((aligned(8)));
_Static_assert(__builtin_offsetof(struct module, next) == 0, "");
_Static_assert(__builtin_offsetof(struct module, state) == 8, "");
_Static_assert(__builtin_offsetof(struct module, refcnt) == 12, "");
_Static_assert(__builtin_offsetof(struct module, name) == 16, "");
_Static_assert(__builtin_offsetof(struct module, init) == 32, "");
_Static_assert(__builtin_offsetof(struct module, exit) == 40, "");
_Static_assert(__builtin_offsetof(struct module, text) == 48, "");
_Static_assert(__builtin_offsetof(struct module, text_size) == 56, "");
_Static_assert(sizeof(struct module) == 64, "");

struct file {
	u64 ops;
	u64 pos;
	u64 size_bytes;
	u64 data;
} __attribute__((aligned(8)));
_Static_assert(__builtin_offsetof(struct file, ops) == 0, "");
_Static_assert(__builtin_offsetof(struct file, pos) == 8, "");
_Static_assert(__builtin_offsetof(struct file, size_bytes) == 16, "");
_Static_assert(__builtin_offsetof(struct file, data) == 24, "");
_Static_assert(sizeof(struct file) == 32, "");

struct file_operations {
	u64 read;
	u64 write;
} __attribute__((aligned(8)));
_Static_assert(__builtin_offsetof(struct file_operations, read) == 0, "");
_Static_assert(__builtin_offsetof(struct file_operations, write) == 8, "");
_Static_assert(sizeof(struct file_operations) == 16, "");

#define KERNEL_CS 16
#define KERNEL_DS 24
#define USER_DS 43
#define USER_CS 51
#define TSS 64
#define NMI_VECTOR 2
#define DEVICE_VECTOR 49
#define TIMER_VECTOR 236
#define CALL_FUNCTION_VECTOR 252
#define RESCHEDULE_VECTOR 253
#define X86_EFLAGS_IF 512
#define STACK_SIZE 16384
#define STACK_END_MAGIC 1470918301
#define MAX_CPUS 8
#define TSS_RSP0 4
#define HARDIRQ_OFFSET 65536
#define NMI_OFFSET 1048576
#define NMI_COPY 64
#define INT3_GAP 48
#define SOFTIRQ_MASK 65280
#define HARDIRQ_MASK 983040
#define NMI_MASK 15728640
#define TRACE_FTRACE_START 0
#define TRACE_LIST_START 5
#define TRACE_CTX_NMI 0
#define TRACE_CTX_IRQ 1
#define TRACE_CTX_SOFTIRQ 2
#define TRACE_CTX_TASK 3
#define TRACE_CTX_TRANSITION 4
#define MAX_RET_DEPTH 50
#define NR_FILES 64
#define NR_SIGNALS 64
#define USER_END 140737488351232
#define TASK_RUNNING 0
#define TASK_INTERRUPTIBLE 1
#define TASK_UNINTERRUPTIBLE 2
#define TASK_STOPPED 4
#define TASK_TRACED 8
#define EXIT_DEAD 16
#define EXIT_ZOMBIE 32
#define TASK_DEAD 128
#define TASK_NEW 2048
#define TASK_FROZEN 32768
#define MODULE_STATE_LIVE 0
#define MODULE_STATE_COMING 1
#define MODULE_STATE_GOING 2
#define MODULE_STATE_UNFORMED 3
#define TIF_SIGPENDING 4
#define TIF_NEED_RESCHED 8
#define TIF_PATCH_PENDING 8192
#define TIF_NOTIFY_SIGNAL 131072
#define PF_IDLE 2
#define PF_EXITING 4
#define PF_WQ_WORKER 32
#define PF_NOFREEZE 32768
#define PF_FREEZABLE 65536
#define PF_STOPPER 131072
#define PF_KTHREAD 2097152
#define PF_LAB 1073741824
#define JOBCTL_TRACED 1
#define JOBCTL_STOPPED 2
#define KTHREAD_SHOULD_STOP 1
#define SIGHUP 1
#define SIGINT 2
#define SIGILL 4
#define SIGTRAP 5
#define SIGBUS 7
#define SIGFPE 8
#define SIGKILL 9
#define SIGUSR1 10
#define SIGSEGV 11
#define SIGUSR2 12
#define SIGPIPE 13
#define SIGTERM 15
#define SIGCHLD 17
#define SIGCONT 18
#define SIGSTOP 19
#define SIGTSTP 20
#define NR_read 0
#define NR_write 1
#define NR_close 3
#define NR_rt_sigaction 13
#define NR_rt_sigprocmask 14
#define NR_rt_sigreturn 15
#define NR_pipe 22
#define NR_sched_yield 24
#define NR_pause 34
#define NR_nanosleep 35
#define NR_getpid 39
#define NR_clone 56
#define NR_exit 60
#define NR_wait4 61
#define NR_kill 62
#define NR_ptrace 101
#define NR_prctl 157
#define NR_init_module 175
#define NR_delete_module 176
#define NR_futex 202
#define NR_sched_setaffinity 203
#define NR_restart_syscall 219
#define NR_clock_gettime 228
#define NR_epoll_wait 232
#define NR_laboratory 500
#define NR_SYSCALLS 512
#define EPERM 1
#define ENOENT 2
#define ESRCH 3
#define EINTR 4
#define EBADF 9
#define ECHILD 10
#define EAGAIN 11
#define ENOMEM 12
#define EFAULT 14
#define EBUSY 16
#define EEXIST 17
#define ENODEV 19
#define EINVAL 22
#define EMFILE 24
#define EPIPE 32
#define ENOSYS 38
#define ETIMEDOUT 110
#define ERESTARTSYS 512
#define ERESTARTNOINTR 513
#define ERESTARTNOHAND 514
#define ERESTART_RESTARTBLOCK 516
#define HC_PICK_TASK 1
#define HC_SELECT_CPU 2
#define HC_BALANCE 3
#define HC_SEND_IPI 4
#define HC_NEW_TASK 5
#define HC_TASK_BEGINS 6
#define HC_PRINTK 7
#define HC_PANIC 8
#define HC_MAP_MODULE 9
#define HC_UNMAP_MODULE 10
#define HC_FTRACE 11
#define HC_KMALLOC 12
#define HC_KFREE_RCU 13
#define HC_MODULE_NOTIFY 14
#define HC_MODULE_NOTIFIED 15
#define HC_KLP_TRY_SWITCH 16
#define KLP_UNDEFINED (-1)
#define KLP_UNPATCHED 0
#define KLP_PATCHED 1
#define FTRACE_OPS_FL_ENABLED 1
#define FTRACE_OPS_FL_DYNAMIC 2
#define FTRACE_OPS_FL_SAVE_REGS 4
#define FTRACE_OPS_FL_RECURSION 16
#define FTRACE_OPS_FL_IPMODIFY 4096
#define FTRACE_OPS_FL_PERMANENT 65536
#define FTRACE_OPS_FL_DIRECT 131072
#define CALL_INSN_OPCODE 232
#define JMP32_INSN_OPCODE 233
#define NOP_INSN_OPCODE 15
#define INT3_INSN_OPCODE 204
#define FTRACE_SITE_SIZE 5
#define UNWIND_HINT_UNDEFINED 0
#define UNWIND_HINT_END_OF_STACK 1
#define UNWIND_HINT_CALL 2
#define UNWIND_HINT_REGS 3
#define UNWIND_HINT_REGS_PARTIAL 4
#define UNWIND_HINT_SAVE 5
#define UNWIND_HINT_RESTORE 6
