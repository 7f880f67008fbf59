// The kernel's running part: tasks with stacks of their own, and who runs on which vCPU.
//
// All of it lies in guest memory; what is kept here are addresses.

import { type Addr, addr } from "../base/addr.ts";
import { bug, refuse } from "../base/refuse.ts";
import type { Image } from "../image/image.ts";
import { STACKS } from "../image/layout.ts";
import { STACK_SIZE } from "../machine/callRecord.ts";
import type { Exit } from "../machine/exit.ts";
import type { Heap } from "../machine/heap.ts";
import type { Machine } from "../machine/machine.ts";
import { StructView } from "../machine/struct.ts";
import type { Vcpu } from "../machine/vcpu.ts";
import { RFLAGS_AT_REST } from "../x86/register.ts";
import { CPU, PATCH_STATE, type PatchState, TASK } from "./layout.ts";

export type TaskView = StructView<keyof typeof TASK.fields>;

export interface Task {
  readonly struct: TaskView;
  readonly pid: number;
  /** Lowest address and the one past the highest. */
  readonly stack: { readonly low: Addr; readonly high: Addr };
}

/** The registers that the first six integer arguments go in (System V ABI, 3.2.3). */
const ARGUMENTS = ["rdi", "rsi", "rdx", "rcx", "r8", "r9"] as const;

export class Kernel {
  private readonly machine: Machine;
  private readonly heap: Heap;
  private readonly image: Image;
  private readonly cpus: StructView<keyof typeof CPU.fields>[];
  private readonly list: Task[] = [];

  constructor(machine: Machine, heap: Heap, image: Image) {
    this.machine = machine;
    this.heap = heap;
    this.image = image;
    this.cpus = machine.vcpus.map((vcpu, number) => {
      const cpu = new StructView(machine.memory, CPU, heap.allocate(CPU.size, 64));
      cpu.set("number", number);
      vcpu.gsBase = BigInt(cpu.at);
      return cpu;
    });
  }

  get tasks(): readonly Task[] {
    return this.list;
  }

  /** A task that does nothing yet. Its stack lies above an unmapped guard page. */
  createTask(): Task {
    const pid = this.list.length + 1;
    const low = addr(STACKS + this.list.length * 2 * STACK_SIZE);
    this.machine.memory.map(low, STACK_SIZE, { write: true, execute: false, user: false });
    const struct = new StructView(this.machine.memory, TASK, this.heap.allocate(TASK.size, 64));
    struct.set("pid", pid);
    struct.set("patch_state", PATCH_STATE.KLP_UNDEFINED);
    struct.set("stack", low);
    struct.set("sp", low + STACK_SIZE);
    const task: Task = { struct, pid, stack: { low, high: addr(low + STACK_SIZE) } };
    this.list.push(task);
    return task;
  }

  /** The task that runs on `vcpu`. */
  current(vcpu: Vcpu): Task | undefined {
    const at = this.cpus[vcpu.index]!.get("current");
    return this.list.find(({ struct }) => BigInt.asUintN(64, BigInt(struct.at)) === at);
  }

  /**
   * Puts `task` on `vcpu` at the start of a call to `target`, with up to six integer arguments. Run the vCPU
   * until the call's hypercall to see it through: `result` then has what it returned.
   */
  begin(vcpu: Vcpu, task: Task, target: Addr, args: readonly bigint[]): void {
    if (args.length > ARGUMENTS.length)
      refuse("too-many-arguments", { count: args.length, limit: ARGUMENTS.length });
    this.cpus[vcpu.index]!.set("current", task.struct.at);
    this.machine.calls.forget(task.stack.low);
    vcpu.rflags = RFLAGS_AT_REST;
    args.forEach((value, n) => {
      vcpu.set(ARGUMENTS[n]!, value);
    });
    vcpu.setNumber("rax", target);
    vcpu.rsp = task.struct.getNumber("sp") as Addr;
    vcpu.rip = this.image.symbol("lab_call").address;
  }

  /** True if `exit` is the end of a call that `begin` prepared. */
  returned(exit: Exit): boolean {
    return exit.kind === "hypercall" && exit.ip === this.image.symbol("lab_call_return").address;
  }

  patchState({ struct }: Task): PatchState {
    const value = struct.getNumber("patch_state");
    const found = (Object.keys(PATCH_STATE) as PatchState[]).find((name) => PATCH_STATE[name] === value);
    return found ?? bug(`task with patch_state ${value}`);
  }

  setPatchState({ struct }: Task, state: PatchState): void {
    struct.set("patch_state", PATCH_STATE[state]);
  }
}
