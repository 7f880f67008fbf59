// The kernel's running part as TypeScript drives it: CPUs, tasks, and what guest code asks of the laboratory.
//
// All of it lies in guest memory; what is kept here are addresses. What the guest's kernel does is in asm/ and kernel/.

import { type Addr, addr, offset } from "../base/addr.ts";
import { type Chooser, FIRST } from "../base/chooser.ts";
import { bug, refuse } from "../base/refuse.ts";
import type { Image } from "../image/image.ts";
import { CPU_STACKS } from "../image/layout.ts";
import { Agenda } from "../machine/agenda.ts";
import { STACK_SIZE } from "../machine/callRecord.ts";
import type { Exit } from "../machine/exit.ts";
import type { Heap } from "../machine/heap.ts";
import type { Machine } from "../machine/machine.ts";
import { Pool } from "../machine/pool.ts";
import { PT_REGS } from "../machine/ptRegs.ts";
import { StructView } from "../machine/struct.ts";
import type { RunOptions, Vcpu } from "../machine/vcpu.ts";
import type { StackInfo, UnwindContext, Start as WalkStart } from "../unwind/walk.ts";
import { FLAG, RFLAGS_AT_REST } from "../x86/register.ts";
import { Allocator } from "./allocator.ts";
import { loadTables, makeIdt } from "./descriptorTables.ts";
import { GATES, type TakenException, takenException } from "./exception.ts";
import { answerHypercall, type Panic } from "./hypercall.ts";
import {
  CONSTANTS,
  CPU,
  INACTIVE_TASK_FRAME,
  PATCH_STATE,
  type PatchState,
  PROCESS_FLAG,
  SELECTOR,
  TASK_STATE,
  THREAD_FLAG,
  VECTORS,
} from "./layout.ts";
import { Log } from "./log.ts";
import { grace } from "./quiescence.ts";
import type { Stack, Task } from "./task.ts";
import { TaskTable } from "./taskTable.ts";
import { TaskContext, type UnwindingParts } from "./unwindContext.ts";

export type CpuView = StructView<keyof typeof CPU.fields>;
export type { Stack, Task };

/** What belongs to one vCPU: its per-CPU area, its idle task, and the stacks on which it handles what interrupts it. */
export interface Cpu {
  readonly struct: CpuView;
  readonly idle: Task;
  readonly irqStack: Stack;
  /** Of double faults and of NMIs, which the hardware switches to by itself. */
  readonly exceptionStacks: readonly Stack[];
}

/** Where a task that was never run begins: a function of one argument. */
export interface Start {
  readonly function: Addr;
  readonly argument?: bigint;
}

/** A thread of the kernel's: what it runs, and by which name. */
export interface KthreadOptions extends Start {
  readonly comm: string;
  /** Flags beside PF_KTHREAD. */
  readonly flags?: number;
  /** CPUs that it may use, a bit each; all if not given. */
  readonly allowed?: bigint;
}

/** A user task: where its program begins and its stack ends. */
export interface UserTaskOptions {
  readonly comm: string;
  readonly entry: Addr;
  readonly stack: Addr;
  /** In rdi. */
  readonly argument?: bigint;
  readonly allowed?: bigint;
}

/** The registers that the first six integer arguments go in (System V ABI, 3.2.3). */
export const ARGUMENTS = ["rdi", "rsi", "rdx", "rcx", "r8", "r9"] as const;

/** How syscall enters the kernel: IF, TF, DF, AC, NT off (Linux arch/x86/kernel/cpu/common.c). */
const SYSCALL_MASK = FLAG.TF | FLAG.IF | FLAG.DF | FLAG.IOPL | FLAG.NT | FLAG.AC | FLAG.ID;
/** Selectors of syscall, and of sysret, which adds 16 and 8 to its own. */
const STAR = (BigInt(SELECTOR.KERNEL_CS) << 32n) | (BigInt(SELECTOR.USER_CS - 16) << 48n);
const PATCH_STATES: ReadonlyMap<number, PatchState> = new Map(
  (Object.keys(PATCH_STATE) as PatchState[]).map((name) => [PATCH_STATE[name], name]),
);
const DEFAULT_TASKS = 1024;

/** Calls the handler in TypeScript of a traced call: of which ops, and where its registers are. False if there is none. */
export type TraceHandler = (call: Addr) => boolean;

/** What maps modules for the guest's kernel, and unmaps them. */
export interface ModuleLoader {
  /** Maps the module of that name: its struct module; undefined if none is offered. */
  map(name: string): Addr | undefined;
  /** Unmaps one, by its struct module. */
  unmap(module: Addr): void;
}

/** Live patching, as guest code knows it. */
export interface LivepatchHooks {
  /** A module, by its struct module, is coming or going. */
  notify(module: Addr): void;
  /** What has come of that: 1 if it is not done with, 0, or minus an error number. */
  notified(module: Addr): number;
  /** The task that a CPU executes asks to be switched. */
  trySwitch(task: Task): void;
}

export interface KernelOptions {
  /** None can be loaded without it. */
  readonly modules?: ModuleLoader;
  /** Default: one of its own. */
  readonly agenda?: Agenda;
  readonly traceHandler?: TraceHandler;
  /** How many tasks there can be at a time; default 1024. */
  readonly maxTasks?: number;
}

export class Kernel {
  readonly cpus: readonly Cpu[];
  readonly table: TaskTable;
  readonly log: Log;
  /** Memory for guest code. */
  readonly allocator: Allocator;
  readonly modules: ModuleLoader | undefined;
  livepatch: LivepatchHooks | undefined;
  readonly traceHandler: TraceHandler | undefined;
  /** What is done on its behalf while it runs. */
  readonly agenda: Agenda;
  /** Whom guest code's questions go to. */
  chooser: Chooser = FIRST;
  readonly machine: Machine;
  private readonly image: Image;
  private readonly symbols: Readonly<Record<(typeof SYMBOLS)[number], Addr>>;

  constructor(
    machine: Machine,
    heap: Heap,
    image: Image,
    { maxTasks = DEFAULT_TASKS, modules, agenda, traceHandler }: KernelOptions = {},
  ) {
    this.machine = machine;
    this.modules = modules;
    this.traceHandler = traceHandler;
    const { keeper } = machine;
    this.agenda = agenda ?? new Agenda(keeper);
    this.allocator = new Allocator({
      ...{ pool: new Pool(heap, keeper), keeper, agenda: this.agenda },
      grace: () => grace(this),
    });
    this.image = image;
    const { memory } = machine;
    if (machine.vcpus.length > CONSTANTS.MAX_CPUS)
      refuse("cpu-count", { count: machine.vcpus.length, limit: CONSTANTS.MAX_CPUS });
    this.symbols = Object.fromEntries(SYMBOLS.map((name) => [name, image.symbol(name).address])) as Record<
      (typeof SYMBOLS)[number],
      Addr
    >;
    this.table = new TaskTable(machine, heap, image, maxTasks);
    this.log = new Log(memory, heap, () => this.clock);
    const gates = GATES.map(({ symbol, ...gate }) => ({ ...gate, handler: image.symbol(symbol).address }));
    const idt = makeIdt(memory, heap, gates);
    this.cpus = machine.vcpus.map((vcpu) => this.startCpu(vcpu, heap, idt));
    memory.writeWord(image.symbol("nr_cpus").address, BigInt(this.cpus.length));
    const [fixups] = image.sectionsNamed("__ex_table");
    memory.writeWord(image.symbol("fixups").address, BigInt(fixups?.address ?? 0));
    memory.writeWord(image.symbol("nr_fixups").address, BigInt((fixups?.size ?? 0) / 16));
  }

  /** All tasks but the idle ones, by pid. */
  get tasks(): readonly Task[] {
    return this.table.all;
  }

  /** Guest time, in nanoseconds: an instruction takes one. */
  get clock(): number {
    return this.machine.memory.readNumber(this.symbols.clock)!;
  }

  set clock(time: number) {
    this.machine.memory.writeWord(this.symbols.clock, BigInt(time));
  }

  /** When the first of the timers is due that tasks sleep until; undefined if none is armed. */
  get nextTimer(): number | undefined {
    const first = this.machine.memory.readNumber(this.symbols.timers)!;
    return first === 0 ? undefined : this.table.at(first as Addr).struct.getNumber("timer_expires");
  }

  // ---- Tasks.

  /**
   * A task of the laboratory's, which no scheduler knows before it has run: it begins at `start` when it is first
   * switched to; without it, at what `begin` says.
   */
  createTask(start?: Start): Task {
    const task = this.newTask("lab", PROCESS_FLAG.PF_KTHREAD | PROCESS_FLAG.PF_LAB);
    task.struct.set("state", TASK_STATE.TASK_RUNNING);
    if (start !== undefined)
      this.setBeginning(task, task.stack.high, "ret_from_kthread", start.function, start.argument);
    return task;
  }

  /** A thread of the kernel's, which `start` lets run. */
  createKthread({ comm, flags = 0, allowed = -1n, ...start }: KthreadOptions): Task {
    const task = this.newTask(comm, PROCESS_FLAG.PF_KTHREAD | flags);
    task.struct.set("cpus_allowed", allowed);
    task.struct.set("thread_function", start.function);
    task.struct.set("thread_argument", start.argument ?? 0n);
    this.setBeginning(task, task.stack.high, "ret_from_kthread", this.image.symbol("kthread_main").address);
    return task;
  }

  /** A user task, which `start` lets run. */
  createUserTask({ comm, entry, stack, argument = 0n, allowed = -1n }: UserTaskOptions): Task {
    const task = this.newTask(comm, 0);
    task.struct.set("cpus_allowed", allowed);
    const regs = new StructView(this.machine.memory, PT_REGS, offset(task.stack.high, -PT_REGS.size));
    regs.set("orig_ax", -1n);
    regs.set("ip", entry);
    regs.set("cs", SELECTOR.USER_CS);
    regs.set("flags", RFLAGS_AT_REST | FLAG.IF);
    regs.set("sp", stack);
    regs.set("ss", SELECTOR.USER_DS);
    regs.set("di", argument);
    this.setBeginning(task, regs.at, "ret_from_fork", addr(0), 0n, regs.at + 1);
    return task;
  }

  /**
   * Puts a new task into the run queue of a CPU that it may use. What wake_up_new_task() does for tasks that guest
   * code makes; here while no CPU is between its queue's lock and unlock: before a run.
   */
  start(task: Task): void {
    const allowed = task.struct.get("cpus_allowed");
    const able = this.cpus.filter((_, n) => ((allowed >> BigInt(n)) & 1n) !== 0n);
    if (able.length === 0) refuse("no-cpu", { task: task.toString() });
    const { struct } = able[able.length > 1 ? this.chooser.choose("cpu", able.length) : 0]!;
    if (struct.getNumber("rq_lock") !== 0) bug(`${task} is started while a run queue is locked`);
    task.struct.set("state", TASK_STATE.TASK_RUNNING);
    task.struct.set("on_rq", 1);
    task.struct.set("cpu", struct.getNumber("number"));
    const last = struct.getNumber("rq_last");
    if (last === 0) struct.set("rq_first", task.struct.at);
    else this.table.at(last as Addr).struct.set("rq_next", task.struct.at);
    struct.set("rq_last", task.struct.at);
    struct.set("nr_queued", struct.getNumber("nr_queued") + 1);
    const current = struct.getNumber("current");
    if (current === 0) return;
    const running = this.table.at(current as Addr).struct;
    running.set("thread_flags", running.getNumber("thread_flags") | THREAD_FLAG.TIF_NEED_RESCHED);
    if (struct.getNumber("halted") !== 0)
      this.interrupt(struct.getNumber("number"), VECTORS.RESCHEDULE_VECTOR);
  }

  /** The tasks in a CPU's run queue, the first first. */
  queued({ struct }: Cpu): Task[] {
    const tasks: Task[] = [];
    for (let at = struct.getNumber("rq_first"); at !== 0; at = tasks.at(-1)!.struct.getNumber("rq_next")) {
      if (tasks.length > struct.getNumber("nr_queued")) break; // a circle, or in the middle of a change
      tasks.push(this.table.at(at as Addr));
    }
    return tasks;
  }

  /** Lets every CPU begin, in its idle task, with a stopper thread that runs before all others there. */
  boot(): void {
    for (const [n, { struct, idle }] of this.cpus.entries()) {
      const vcpu = this.machine.vcpus[n]!;
      const stopper = this.createKthread({
        comm: `migration/${n}`,
        function: this.image.symbol("stopper_thread").address,
        flags: PROCESS_FLAG.PF_STOPPER | PROCESS_FLAG.PF_NOFREEZE,
        allowed: 1n << BigInt(n),
      });
      struct.set("stopper", stopper.struct.at);
      this.takeCpu(vcpu, idle);
      this.start(stopper);
      vcpu.rflags = RFLAGS_AT_REST;
      vcpu.rip = this.symbols.start_cpu;
    }
    const count = this.cpus.length;
    this.log.print(`smp: Brought up 1 node, ${count} CPU${count === 1 ? "" : "s"}`);
  }

  /** The task that runs on `vcpu`. */
  current(vcpu: Vcpu): Task | undefined {
    const at = this.cpus[vcpu.index]!.struct.getNumber("current");
    return at === 0 ? undefined : this.table.at(at as Addr);
  }

  /** Makes `task` the one that `vcpu` switches to when it next calls schedule(). */
  setNext(vcpu: Vcpu, task: Task): void {
    this.cpus[vcpu.index]!.struct.set("next", task.struct.at);
  }

  /**
   * Puts `task` on `vcpu` at the start of a call to `target`, with up to six integer arguments. Run the vCPU
   * until the call's hypercall to see it through: `result` then has what it returned.
   */
  begin(vcpu: Vcpu, task: Task, target: Addr, args: readonly bigint[]): void {
    if (args.length > ARGUMENTS.length)
      refuse("too-many-arguments", { count: args.length, limit: ARGUMENTS.length });
    this.takeCpu(vcpu, task);
    vcpu.rflags = RFLAGS_AT_REST;
    args.forEach((value, n) => {
      vcpu.set(ARGUMENTS[n]!, value);
    });
    vcpu.setNumber("rax", target);
    task.struct.set("ret_depth", 0); // of a call that did not come back
    vcpu.rip = this.image.symbol("lab_call").address;
  }

  /** True if `exit` is the end of a call that `begin` prepared. */
  returned(exit: Exit): boolean {
    return exit.kind === "hypercall" && exit.ip === this.image.symbol("lab_call_return").address;
  }

  /** For a walk of the task that runs on `vcpu`, or of nothing if none does. */
  unwindContextOf(vcpu: Vcpu, parts: UnwindingParts): UnwindContext {
    const { irqStack, exceptionStacks } = this.cpus[vcpu.index]!;
    const task = this.current(vcpu);
    const own: StackInfo[] = task === undefined ? [] : [{ kind: "task", ...task.stack }];
    return new TaskContext(parts, task, [
      ...own,
      { kind: "irq", ...irqStack },
      ...exceptionStacks.map((stack) => ({ kind: "exception", ...stack }) as const),
    ]);
  }

  /** The same for a task that is on no CPU: it is on its own stack. */
  unwindContext(task: Task, parts: UnwindingParts): UnwindContext {
    return new TaskContext(parts, task, [{ kind: "task", ...task.stack }]);
  }

  /** Where a walk of a task begins that is on no CPU; undefined if nothing is on its stack. */
  startOf({ struct, stack }: Task): Exclude<WalkStart, { from: "live" | "registers" }> | undefined {
    const sp = struct.getNumber("sp") as Addr;
    if (sp === stack.high) return undefined;
    const frame = new StructView(this.machine.memory, INACTIVE_TASK_FRAME, sp);
    const ip = frame.getNumber("ret_addr") as Addr;
    const slot = offset(sp, INACTIVE_TASK_FRAME.fields.ret_addr.offset);
    if (ip === this.symbols.ret_from_fork || ip === this.symbols.ret_from_kthread)
      return { from: "unstarted", ip, sp: offset(slot, 8) };
    return { from: "switched-out", ip, slot, bp: frame.getNumber("bp") };
  }

  /** The exception that the guest's handler was called for, if `exit` is that. Registers are at its `regs`. */
  exception(vcpu: Vcpu, exit: Exit): TakenException | undefined {
    if (exit.kind !== "hypercall" || exit.ip !== this.image.symbol("exception_taken").address)
      return undefined;
    const regs = vcpu.getNumber("rdi") as Addr;
    return takenException(this.machine.memory, regs, vcpu.getNumber("rsi"), vcpu.system.getWord("cr2"));
  }

  patchState({ struct }: Task): PatchState {
    const value = struct.getNumber("patch_state");
    return PATCH_STATES.get(value) ?? bug(`task with patch_state ${value}`);
  }

  /** Whether nobody changes the list of tasks, or makes one. */
  get tasklistIsFree(): boolean {
    return this.machine.memory.readInt(this.symbols.tasklist_lock) === 0;
  }

  /** Where the handler of live patches says that it has met a task without a patch state in a transition. */
  get klpWarned(): Addr {
    return this.image.symbol("klp_warned").address;
  }

  /** Whether a new task is left as it is, in no universe, to see what comes of it. */
  setMissesFork(misses: boolean): void {
    this.machine.memory.write(this.image.symbol("klp_misses_fork").address, wordOf(misses ? 1 : 0));
  }

  /** What tasks are switched to that are pending. */
  setTargetState(state: PatchState): void {
    this.machine.memory.write(this.image.symbol("klp_target_state").address, wordOf(PATCH_STATE[state]));
  }

  setPatchState({ struct }: Task, state: PatchState): void {
    struct.set("patch_state", PATCH_STATE[state]);
  }

  /** Runs as `vcpu.run` does, but that guest code's questions are answered on the way. */
  run(vcpu: Vcpu, { budget = Number.POSITIVE_INFINITY, ...options }: RunOptions = {}): Exit | Panic {
    const end = vcpu.instructions + budget;
    for (;;) {
      const exit = vcpu.run({ ...options, budget: end - vcpu.instructions });
      const answer = this.answer(vcpu, exit);
      if (answer !== "answered") return answer;
      if (vcpu.instructions >= end) return { kind: "budget", ip: vcpu.rip };
    }
  }

  /** Answers what guest code asks, if `exit` is that; or else gives it back. */
  answer(vcpu: Vcpu, exit: Exit): Exit | Panic | "answered" {
    if (exit.kind !== "hypercall" || exit.ip !== this.symbols.hypercall) return exit;
    return answerHypercall(this, vcpu) ?? "answered";
  }

  /** Interrupts a CPU from outside: what waits at a hlt goes on. */
  interrupt(cpu: number, vector: number): void {
    this.machine.vcpus[cpu]!.interrupt(vector);
    this.cpus[cpu]!.struct.set("halted", 0);
  }

  nmi(cpu: number): void {
    this.machine.vcpus[cpu]!.nmi();
    this.cpus[cpu]!.struct.set("halted", 0);
  }

  /** Makes the first switch to `task` return to `entry`, with registers below `top` on its stack. */
  private setBeginning(
    task: Task,
    top: Addr,
    entry: "ret_from_fork" | "ret_from_kthread",
    bx: Addr,
    r12 = 0n,
    bp = 0,
  ): void {
    const { memory } = this.machine;
    const frame = new StructView(memory, INACTIVE_TASK_FRAME, offset(top, -INACTIVE_TASK_FRAME.size));
    frame.set("ret_addr", this.symbols[entry]);
    frame.set("bx", bx);
    frame.set("r12", r12);
    frame.set("bp", bp);
    task.struct.set("sp", frame.at);
    this.begins(task);
  }

  /** Tells the record of calls that `task`, whose saved stack pointer leads to its beginning, is going to run. */
  begins({ struct, stack }: Task): void {
    const { memory, calls } = this.machine;
    calls.forget(stack.low);
    const slot = offset(struct.getNumber("sp") as Addr, INACTIVE_TASK_FRAME.fields.ret_addr.offset);
    calls.plant(slot, memory.readNumber(slot) as Addr);
  }

  private newTask(comm: string, flags: number): Task {
    const task = this.table.create();
    if (task === undefined) refuse("too-many-tasks", { count: this.table.everything.length });
    task.struct.setText("comm", comm);
    task.struct.set("flags", flags);
    // With nothing on its stack it can be where all are going.
    const target = this.machine.memory.readInt(this.image.symbol("klp_target_state").address) ?? -1;
    task.struct.set("patch_state", target);
    return task;
  }

  /** Puts `task` on `vcpu`, at the beginning of its stack. */
  private takeCpu(vcpu: Vcpu, task: Task): void {
    const { struct } = this.cpus[vcpu.index]!;
    struct.set("current", task.struct.at);
    this.setStackTop(struct, task.stack.high);
    this.machine.calls.forget(task.stack.low);
    task.struct.set("cpu", vcpu.index);
    task.struct.set("on_cpu", 1);
    task.struct.set("on_rq", 1);
    task.struct.set("sp", task.stack.high);
    vcpu.rsp = task.stack.high;
  }

  /** What switch_to writes: where system calls, and whatever else comes from user mode, find their stack. */
  private setStackTop(struct: CpuView, top: Addr): void {
    struct.set("stack_top", top);
    const rsp0 = offset(struct.getNumber("tss") as Addr, CONSTANTS.TSS_RSP0);
    this.machine.memory.writeWord(rsp0, BigInt(top));
  }

  /** Gives `vcpu` its per-CPU area, its idle task, its stacks and the tables that name them. */
  private startCpu(vcpu: Vcpu, heap: Heap, idt: Addr): Cpu {
    const { machine, table, image } = this;
    const { memory } = machine;
    const n = vcpu.index;
    const [irqStack, doubleFaultStack, nmiStack] = [0, 1, 2].map((stack) =>
      table.mapStack(addr(CPU_STACKS + (3 * n + stack) * 2 * STACK_SIZE)),
    ) as [Stack, Stack, Stack];
    const struct = new StructView(memory, CPU, heap.allocate(CPU.size, 64));
    struct.set("number", n);
    struct.set("self", struct.at);
    struct.set("irq_stack", irqStack.high - 8);
    memory.writeWord(offset(image.symbol("cpus").address, 8 * n), BigInt(struct.at));
    vcpu.gsBase = BigInt(struct.at);
    const exceptionStacks = [doubleFaultStack, nmiStack];
    const tss = loadTables(memory, heap, vcpu, idt, {
      rsp0: addr(0),
      ist: exceptionStacks.map(({ high }) => high),
    });
    struct.set("tss", tss);
    const { system } = vcpu;
    system.setWord("star", STAR);
    system.setWord("lstar", BigInt.asUintN(64, BigInt(image.symbol("entry_SYSCALL_64").address)));
    system.setWord("fmask", SYSCALL_MASK);
    system.setWord("tscAux", BigInt(n));
    const idle = table.create(true) ?? bug("no memory for an idle task");
    idle.struct.setText("comm", `swapper/${n}`);
    idle.struct.set("flags", PROCESS_FLAG.PF_KTHREAD | PROCESS_FLAG.PF_IDLE | PROCESS_FLAG.PF_NOFREEZE);
    idle.struct.set("state", TASK_STATE.TASK_RUNNING);
    idle.struct.set("cpu", n);
    idle.struct.set("cpus_allowed", 1n << BigInt(n));
    this.setBeginning(idle, idle.stack.high, "ret_from_kthread", image.symbol("cpu_idle").address);
    struct.set("idle", idle.struct.at);
    return { struct, idle, irqStack, exceptionStacks };
  }
}

/** What is asked for again and again. */
const SYMBOLS = [
  "clock",
  "timers",
  "hypercall",
  "ret_from_fork",
  "ret_from_kthread",
  "start_cpu",
  "tasklist_lock",
] as const;

function wordOf(value: number): Uint8Array {
  return new Uint8Array(Int32Array.of(value).buffer);
}
