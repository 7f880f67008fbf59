// The kernel's structures as guest code knows them, and the constants that go with them.

import { STACK_SIZE } from "../machine/callRecord.ts";
import { INT3_GAP, NMI_COPY } from "../machine/ptRegs.ts";
import { layout } from "../machine/struct.ts";

/**
 * A task. Its stack's lowest address is `stack`; `sp` is its stack pointer while it is on no CPU. `ret_stack` has
 * `ret_depth` entries for return addresses that were replaced on the stack, the innermost last.
 *
 * `on_rq`: it runs or is in a run queue; `on_cpu`: its registers are still, or already, in a CPU. `rq_next` chains a
 * run queue, `tasks_next` all tasks, `timer_next` the armed timers by `timer_expires`, `futex_next` the waiters on
 * futexes. Times are the clock's. Signals are bits, signal n at n - 1.
 */
export const TASK = layout("task", {
  pid: 4,
  patch_state: 4,
  stack: 8,
  sp: 8,
  ret_stack: "struct ret_stack *",
  ret_depth: 4,
  state: 4,
  thread_flags: 4,
  flags: 4,
  cpu: 4,
  on_rq: 4,
  on_cpu: 4,
  lock: 4,
  cpus_allowed: 8,
  rq_next: "struct task *",
  tasks_next: "struct task *",
  parent: "struct task *",
  comm: "text",
  pending: 8,
  blocked: 8,
  sigactions: "struct sigaction *",
  exit_code: 4,
  /** What a stop is for: JOBCTL flags. */
  jobctl: 4,
  tracer: "struct task *",
  /** What `restart_syscall` goes on with. */
  restart_function: "void *",
  restart_argument: 8,
  restart_value: 8,
  restart_expires: 8,
  timer_expires: 8,
  timer_next: "struct task *",
  timer_armed: 4,
  /** Of a kthread: KTHREAD flags, and what it runs. */
  kthread: 4,
  thread_function: "void *",
  thread_argument: "void *",
  futex: 8,
  futex_next: "struct task *",
  /** Of a tracer's request, what the tracee is to go on with. */
  trace_signal: 4,
  /** Switches to it, and when the last one away from it was. */
  switches: 8,
  switched_at: 8,
  /** A bit for each context that a traced call is being handled in: TRACE constants. */
  trace_recursion: 4,
});

/** What a signal does: SIG_DFL, SIG_IGN or a function; flags; where its handler returns to (rt_sigaction(2)). */
export const SIGACTION = layout("sigaction", { handler: 8, flags: 8, restorer: 8, mask: 8 });

/** One return address that was replaced: what it was, and the slot it was in (Linux include/linux/ftrace.h). */
export const RET_STACK = layout("ret_stack", { ret: 8, slot: 8 });

/** A task's `patch_state` (Linux include/linux/livepatch.h): undefined outside transitions. */
export const PATCH_STATE = { KLP_UNDEFINED: -1, KLP_UNPATCHED: 0, KLP_PATCHED: 1 } as const;
export type PatchState = keyof typeof PATCH_STATE;

/**
 * What gs points at on each vCPU. `next` is the task that the laboratory wants there at the next chance, zero for
 * none; `irq_stack` the topmost word of the stack that interrupts are handled on; `stack_top` the beginning of the current
 * task's stack, `user_sp` what syscall saves; `ticks` and `nmis` count. `rq_*` is the run queue, of tasks that could run
 * and do not; `prev` whom a switch under way has left. `halted` is hardware's: hlt was executed and nothing has come
 * since. `quiescent` counts what ends every read-side section that had begun before. `touched` is when it last looked
 * for whom to run, for the watchdog; `tick_at` hardware's again: when its timer interrupts next, at the latest.
 */
export const CPU = layout("cpu", {
  current: "struct task *",
  next: "struct task *",
  irq_stack: 8,
  ticks: 8,
  nmis: 8,
  number: 4,
  preempt_count: 4,
  self: "struct cpu *",
  stack_top: 8,
  user_sp: 8,
  tss: 8,
  idle: "struct task *",
  stopper: "struct task *",
  rq_lock: 4,
  nr_queued: 4,
  rq_first: "struct task *",
  rq_last: "struct task *",
  prev: "struct task *",
  idling: 4,
  halted: 4,
  quiescent: 8,
  call_function: "void *",
  call_argument: "void *",
  call_pending: 4,
  stop_pending: 4,
  stop_function: "void *",
  stop_argument: "void *",
  touched: 8,
  devices: 8,
  tick_at: 8,
  /** How often it is to have serialised, for those who have written to code and wait; and how often it has. */
  sync_wanted: 4,
  sync_done: 4,
  /** The task that it is to get out of where it sleeps: by a signal that is none, or a kthread by waking it. */
  kick: "struct task *",
});

/** What switch_to leaves at the `sp` of a task that does not run (Linux arch/x86/include/asm/switch_to.h). */
export const INACTIVE_TASK_FRAME = layout("inactive_task_frame", {
  r15: 8,
  r14: 8,
  r13: 8,
  r12: 8,
  bx: 8,
  bp: 8,
  ret_addr: 8,
});

/** A module: its name, functions of its that are called when it comes and goes, 0 for none; where its text is. */
export const MODULE = layout("module", {
  next: "struct module *",
  state: 4,
  /** What it must not go for. */
  refcnt: 4,
  name: "text",
  init: "void *",
  exit: "void *",
  text: 8,
  text_size: 8,
});

/** `state` of a module (Linux include/linux/module.h). */
export const MODULE_STATE = {
  MODULE_STATE_LIVE: 0,
  MODULE_STATE_COMING: 1,
  MODULE_STATE_GOING: 2,
  MODULE_STATE_UNFORMED: 3,
} as const;

export const FILE = layout("file", { ops: 8, pos: 8, size_bytes: 8, data: 8 });
export const FILE_OPERATIONS = layout("file_operations", { read: 8, write: 8 });

/** Segment selectors (Linux arch/x86/include/asm/segment.h). */
export const SELECTOR = {
  KERNEL_CS: 0x10,
  KERNEL_DS: 0x18,
  USER_DS: 0x2b,
  USER_CS: 0x33,
  TSS: 0x40,
} as const;

/** Interrupt vectors (Linux arch/x86/include/asm/irq_vectors.h), NMI's, and the one of the laboratory's only device. */
export const VECTORS = {
  NMI_VECTOR: 2,
  DEVICE_VECTOR: 0x31,
  TIMER_VECTOR: 0xec,
  CALL_FUNCTION_VECTOR: 0xfc,
  RESCHEDULE_VECTOR: 0xfd,
} as const;

/** `state` of a task (Linux include/linux/sched.h, 6.1). */
export const TASK_STATE = {
  TASK_RUNNING: 0,
  TASK_INTERRUPTIBLE: 1,
  TASK_UNINTERRUPTIBLE: 2,
  TASK_STOPPED: 4,
  TASK_TRACED: 8,
  /** A zombie that somebody has seen and takes apart. */
  EXIT_DEAD: 0x10,
  EXIT_ZOMBIE: 0x20,
  TASK_DEAD: 0x80,
  TASK_NEW: 0x800,
  TASK_FROZEN: 0x8000,
} as const;

/** Bits of `thread_flags` (Linux arch/x86/include/asm/thread_info.h). */
export const THREAD_FLAG = {
  TIF_SIGPENDING: 1 << 2,
  TIF_NEED_RESCHED: 1 << 3,
  TIF_PATCH_PENDING: 1 << 13,
  TIF_NOTIFY_SIGNAL: 1 << 17,
} as const;

/** Bits of `flags` (Linux include/linux/sched.h); the last is ours: what it runs was called by the laboratory. */
export const PROCESS_FLAG = {
  PF_IDLE: 0x2,
  PF_EXITING: 0x4,
  PF_WQ_WORKER: 0x20,
  PF_NOFREEZE: 0x8000,
  PF_FREEZABLE: 0x10000,
  PF_STOPPER: 0x20000,
  PF_KTHREAD: 0x200000,
  PF_LAB: 0x40000000,
} as const;

/** Bits of `jobctl` and of `kthread`. */
const JOB_CONTROL = {
  JOBCTL_TRACED: 1,
  JOBCTL_STOPPED: 2,
  KTHREAD_SHOULD_STOP: 1,
} as const;

/** Signal numbers (signal(7), x86). */
export const SIGNAL = {
  SIGHUP: 1,
  SIGINT: 2,
  SIGILL: 4,
  SIGTRAP: 5,
  SIGBUS: 7,
  SIGFPE: 8,
  SIGKILL: 9,
  SIGUSR1: 10,
  SIGSEGV: 11,
  SIGUSR2: 12,
  SIGPIPE: 13,
  SIGTERM: 15,
  SIGCHLD: 17,
  SIGCONT: 18,
  SIGSTOP: 19,
  SIGTSTP: 20,
} as const;

/** Numbers of system calls (Linux arch/x86/entry/syscalls/syscall_64.tbl). */
export const SYSCALL = {
  NR_read: 0,
  NR_write: 1,
  NR_close: 3,
  NR_rt_sigaction: 13,
  NR_rt_sigprocmask: 14,
  NR_rt_sigreturn: 15,
  NR_pipe: 22,
  NR_sched_yield: 24,
  NR_pause: 34,
  NR_nanosleep: 35,
  NR_getpid: 39,
  NR_clone: 56,
  NR_exit: 60,
  NR_wait4: 61,
  NR_kill: 62,
  NR_ptrace: 101,
  NR_prctl: 157,
  NR_init_module: 175,
  NR_delete_module: 176,
  NR_futex: 202,
  NR_sched_setaffinity: 203,
  NR_restart_syscall: 219,
  NR_clock_gettime: 228,
  NR_epoll_wait: 232,
  /** Ours, as modules have no other way to offer one: what they register (kernel/syscall.c). */
  NR_laboratory: 500,
  NR_SYSCALLS: 512,
} as const;

/** Error numbers (errno(3)), and those that no user program ever sees (Linux include/linux/errno.h). */
export const ERROR = {
  EPERM: 1,
  ENOENT: 2,
  ESRCH: 3,
  EINTR: 4,
  EBADF: 9,
  ECHILD: 10,
  EAGAIN: 11,
  ENOMEM: 12,
  EFAULT: 14,
  EBUSY: 16,
  EEXIST: 17,
  ENODEV: 19,
  EINVAL: 22,
  EMFILE: 24,
  EPIPE: 32,
  ENOSYS: 38,
  ETIMEDOUT: 110,
  ERESTARTSYS: 512,
  ERESTARTNOINTR: 513,
  ERESTARTNOHAND: 514,
  ERESTART_RESTARTBLOCK: 516,
} as const;

/** By its number, without a minus; the number if it has no name here. */
export function nameOfError(error: number): string {
  return Object.entries(ERROR).find(([, number]) => number === error)?.[0] ?? String(error);
}

/** What guest code asks the laboratory for, by `hypercall` (asm/entry.S): the first argument. */
export const HYPERCALL = {
  /** (task *first, cpu *): which of the queued tasks, first and on by rq_next, the CPU takes. */
  HC_PICK_TASK: 1,
  /** (task *): on which of the CPUs that it may use a task goes on that was woken. */
  HC_SELECT_CPU: 2,
  /** (cpu number): from which other CPU an idle one takes a task, -1 for none. */
  HC_BALANCE: 3,
  /** (cpu number, vector): interrupts that CPU. */
  HC_SEND_IPI: 4,
  /** (): memory for one more task, 0 if there is none. */
  HC_NEW_TASK: 5,
  /** (task *): it is going to begin on its stack. */
  HC_TASK_BEGINS: 6,
  /** (level, format, arguments): a line of the log. */
  HC_PRINTK: 7,
  /** (code): nothing can go on. */
  HC_PANIC: 8,
  /** (name): maps a module that the laboratory offers: its struct module, unformed, 0 if there is none of that name. */
  HC_MAP_MODULE: 9,
  /** (module *): unmaps it. */
  HC_UNMAP_MODULE: 10,
  /** (traced_call *): calls the handler of its ops, which is in TypeScript. */
  HC_FTRACE: 11,
  /** (bytes): memory, 0 if there is none. */
  HC_KMALLOC: 12,
  /** (address, bytes): gives it back, once whoever may be reading it with preemption off is done. */
  HC_KFREE_RCU: 13,
  /** (module *): tells live patching that a module is coming or going, as its state says. */
  HC_MODULE_NOTIFY: 14,
  /** (module *): what has come of that: 1 if it is not done with, 0, or an error. */
  HC_MODULE_NOTIFIED: 15,
  /** (): the current task may be switched to the target patch state, if nothing on its stack is in the way. */
  HC_KLP_TRY_SWITCH: 16,
} as const;

/** Table sizes, flags, error numbers. */
export const CONSTANTS = {
  ...SELECTOR,
  ...VECTORS,
  X86_EFLAGS_IF: 0x200,
  STACK_SIZE,
  /** Lowest word of every task's stack (Linux include/uapi/linux/magic.h). */
  STACK_END_MAGIC: 0x57ac6e9d,
  MAX_CPUS: 8,
  /** Where the hardware finds the stack for what interrupts user mode, in a TSS. */
  TSS_RSP0: 4,
  /** What one hardware interrupt, and an NMI, add to preempt_count. */
  HARDIRQ_OFFSET: 0x10000,
  NMI_OFFSET: 0x100000,
  /** How far below its stack's end the copy of an NMI's frame ends (asm/entry.S). */
  NMI_COPY,
  INT3_GAP,
  /** The same masks as Linux's preempt_count, for whoever asks in which context it is (include/linux/preempt.h). */
  SOFTIRQ_MASK: 0xff00,
  HARDIRQ_MASK: 0xf0000,
  NMI_MASK: 0xf00000,
  /**
   * Bits of `trace_recursion`, a group of five each for handlers and for the list function: NMI, interrupt, softirq, task, and
   * one more for an interrupt that comes before preempt_count says so (Linux include/linux/trace_recursion.h).
   */
  TRACE_FTRACE_START: 0,
  TRACE_LIST_START: 5,
  TRACE_CTX_NMI: 0,
  TRACE_CTX_IRQ: 1,
  TRACE_CTX_SOFTIRQ: 2,
  TRACE_CTX_TASK: 3,
  TRACE_CTX_TRANSITION: 4,
  /** Entries of a task's ret_stack. */
  MAX_RET_DEPTH: 50,
  NR_FILES: 64,
  NR_SIGNALS: 64,
  /** The end of user mode's half. */
  USER_END: 0x7ffffffff000,
  ...TASK_STATE,
  ...MODULE_STATE,
  ...THREAD_FLAG,
  ...PROCESS_FLAG,
  ...JOB_CONTROL,
  ...SIGNAL,
  ...SYSCALL,
  ...ERROR,
  ...HYPERCALL,
} as const;
