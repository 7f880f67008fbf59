// The kernel's running part: tasks with stacks of their own, and who runs on which vCPU.
//
// All of it lies in guest memory; what is kept here are addresses.

import { type Addr, addr, offset } from "../base/addr.ts";
import { bug, refuse } from "../base/refuse.ts";
import type { Image } from "../image/image.ts";
import { CPU_STACKS, STACKS } from "../image/layout.ts";
import { STACK_SIZE } from "../machine/callRecord.ts";
import type { Exit } from "../machine/exit.ts";
import type { Heap } from "../machine/heap.ts";
import type { Machine } from "../machine/machine.ts";
import { StructView } from "../machine/struct.ts";
import type { Vcpu } from "../machine/vcpu.ts";
import type { StackInfo, UnwindContext, Start as WalkStart } from "../unwind/walk.ts";
import { RFLAGS_AT_REST } from "../x86/register.ts";
import { loadTables, makeIdt } from "./descriptorTables.ts";
import { GATES, type TakenException, takenException } from "./exception.ts";
import {
  CONSTANTS,
  CPU,
  INACTIVE_TASK_FRAME,
  PATCH_STATE,
  type PatchState,
  RET_STACK,
  TASK,
} from "./layout.ts";

import { TaskContext, type UnwindingParts } from "./unwindContext.ts";

export type TaskView = StructView<keyof typeof TASK.fields>;
export type CpuView = StructView<keyof typeof CPU.fields>;

/** Lowest address, and the one past the highest. */
export interface Stack {
  readonly low: Addr;
  readonly high: Addr;
}

export interface Task {
  readonly struct: TaskView;
  readonly pid: number;
  readonly stack: Stack;
}

/** What belongs to one vCPU: its per-CPU area, and the stacks on which it handles what interrupts it. */
export interface Cpu {
  readonly struct: CpuView;
  readonly irqStack: Stack;
  /** Of double faults and of NMIs, which the hardware switches to by itself. */
  readonly exceptionStacks: readonly Stack[];
}

/** Where a task that was never run begins: a function of one argument. */
export interface Start {
  readonly function: Addr;
  readonly argument?: bigint;
}

/** The registers that the first six integer arguments go in (System V ABI, 3.2.3). */
export const ARGUMENTS = ["rdi", "rsi", "rdx", "rcx", "r8", "r9"] as const;

export class Kernel {
  private readonly machine: Machine;
  private readonly heap: Heap;
  private readonly image: Image;
  readonly cpus: readonly Cpu[];
  private readonly list: Task[] = [];

  constructor(machine: Machine, heap: Heap, image: Image) {
    this.machine = machine;
    this.heap = heap;
    this.image = image;
    const { memory } = machine;
    const gates = GATES.map(({ symbol, ...gate }) => ({ ...gate, handler: image.symbol(symbol).address }));
    const idt = makeIdt(memory, heap, gates);
    this.cpus = machine.vcpus.map((vcpu) => this.startCpu(vcpu, idt));
  }

  get tasks(): readonly Task[] {
    return this.list;
  }

  /** A task that begins at `start` when it is first switched to; without it, at what `begin` says. */
  createTask(start?: Start): Task {
    const { memory } = this.machine;
    const pid = this.list.length + 1;
    const stack = this.mapStack(addr(STACKS + this.list.length * 2 * STACK_SIZE));
    const struct = new StructView(memory, TASK, this.heap.allocate(TASK.size, 64));
    struct.set("pid", pid);
    struct.set("patch_state", PATCH_STATE.KLP_UNDEFINED);
    struct.set("stack", stack.low);
    struct.set("sp", stack.high);
    struct.set("ret_stack", this.heap.allocate(RET_STACK.size * CONSTANTS.MAX_RET_DEPTH));
    const task: Task = { struct, pid, stack };
    this.machine.calls.forget(stack.low);
    if (start !== undefined) {
      const frame = new StructView(
        memory,
        INACTIVE_TASK_FRAME,
        offset(stack.high, -INACTIVE_TASK_FRAME.size),
      );
      const beginning = this.image.symbol("ret_from_fork").address;
      frame.set("ret_addr", beginning);
      this.machine.calls.plant(offset(frame.at, INACTIVE_TASK_FRAME.fields.ret_addr.offset), beginning);
      frame.set("bx", start.function);
      frame.set("r12", start.argument ?? 0n);
      struct.set("sp", frame.at);
    }
    this.list.push(task);
    return task;
  }

  /** The task that runs on `vcpu`. */
  current(vcpu: Vcpu): Task | undefined {
    const at = this.cpus[vcpu.index]!.struct.getNumber("current");
    return this.list.find(({ struct }) => struct.at === at);
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
    this.cpus[vcpu.index]!.struct.set("current", task.struct.at);
    this.machine.calls.forget(task.stack.low);
    vcpu.rflags = RFLAGS_AT_REST;
    args.forEach((value, n) => {
      vcpu.set(ARGUMENTS[n]!, value);
    });
    vcpu.setNumber("rax", target);
    task.struct.set("sp", task.stack.high);
    task.struct.set("ret_depth", 0); // of a call that did not come back
    vcpu.rsp = task.stack.high;
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
    if (ip === this.image.symbol("ret_from_fork").address)
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
    const found = (Object.keys(PATCH_STATE) as PatchState[]).find((name) => PATCH_STATE[name] === value);
    return found ?? bug(`task with patch_state ${value}`);
  }

  setPatchState({ struct }: Task, state: PatchState): void {
    struct.set("patch_state", PATCH_STATE[state]);
  }

  /** Gives `vcpu` its per-CPU area, its stacks and the tables that name them. */
  private startCpu(vcpu: Vcpu, idt: Addr): Cpu {
    const { machine, heap } = this;
    const [irqStack, doubleFaultStack, nmiStack] = [0, 1, 2].map((n) =>
      this.mapStack(addr(CPU_STACKS + (3 * vcpu.index + n) * 2 * STACK_SIZE)),
    ) as [Stack, Stack, Stack];
    const struct = new StructView(machine.memory, CPU, heap.allocate(CPU.size, 64));
    struct.set("number", vcpu.index);
    struct.set("irq_stack", irqStack.high - 8);
    vcpu.gsBase = BigInt(struct.at);
    const exceptionStacks = [doubleFaultStack, nmiStack];
    loadTables(machine.memory, heap, vcpu, idt, {
      rsp0: addr(0),
      ist: exceptionStacks.map(({ high }) => high),
    });
    return { struct, irqStack, exceptionStacks };
  }

  /** The page below it stays unmapped, to guard it. */
  private mapStack(low: Addr): Stack {
    this.machine.memory.map(low, STACK_SIZE, { write: true, execute: false, user: false });
    return { low, high: addr(low + STACK_SIZE) };
  }
}
