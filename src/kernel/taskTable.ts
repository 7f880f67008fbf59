// Memory for tasks: structures and stacks, made when they are first needed and used again when a task has ended.
//
// Which there are, and which are free, are lists in guest memory, as is the next pid.

import { type Addr, addr, offset } from "../base/addr.ts";
import type { Image } from "../image/image.ts";
import { STACKS } from "../image/layout.ts";
import { STACK_SIZE } from "../machine/callRecord.ts";
import type { Heap } from "../machine/heap.ts";
import type { Machine } from "../machine/machine.ts";
import { CONSTANTS, PATCH_STATE, RET_STACK, SIGACTION, TASK, TASK_STATE } from "./layout.ts";
import { Task } from "./task.ts";

/** Of these a structure keeps what it has when it is used again. */
const LASTING = ["stack", "ret_stack", "sigactions"] as const;

const NO_STACK = new Uint8Array(STACK_SIZE);

export class TaskTable {
  private readonly machine: Machine;
  private readonly heap: Heap;
  private readonly limit: number;
  private readonly first: Addr;
  private readonly free: Addr;
  /** Words: how many were made, and the next pid. */
  private readonly made: Addr;
  private readonly nextPid: Addr;
  /** One object for each structure: where that is never changes. */
  private readonly known = new Map<Addr, Task>();

  constructor(machine: Machine, heap: Heap, image: Image, limit: number) {
    this.machine = machine;
    this.heap = heap;
    this.limit = limit;
    this.first = image.symbol("task_list").address;
    this.free = image.symbol("free_tasks").address;
    this.made = heap.allocate(8, 8);
    this.nextPid = heap.allocate(8, 8);
    machine.memory.writeWord(this.nextPid, 1n);
  }

  /** All that have begun and not been released, but for idle tasks, by pid. */
  get all(): Task[] {
    return this.everything.filter((task) => !task.has("PF_IDLE"));
  }

  /** With the idle tasks. The kernel's list has the latest first, and numbers are given out in turn. */
  get everything(): Task[] {
    const tasks: Task[] = [];
    const most = this.word(this.made); // a list that guest code has bent into a circle ends too
    for (let at = this.word(this.first); at !== 0 && tasks.length < most; ) {
      const task = this.at(at as Addr);
      tasks.push(task);
      at = task.struct.getNumber("tasks_next");
    }
    return tasks.reverse();
  }

  /** The task whose structure is at `at`. */
  at(at: Addr): Task {
    let task = this.known.get(at);
    if (task === undefined) {
      task = new Task(this.machine.memory, at);
      this.known.set(at, task);
    }
    return task;
  }

  /** A blank one in the list, TASK_NEW; an idle one has no number. Undefined if there are as many as there may be. */
  create(idle = false): Task | undefined {
    const at = this.reuse() ?? this.make();
    if (at === undefined) return undefined;
    const task = this.at(at);
    const { struct } = task;
    const pid = this.word(this.nextPid);
    if (!idle) this.machine.memory.writeWord(this.nextPid, BigInt(pid + 1));
    struct.set("pid", idle ? 0 : pid);
    struct.set("patch_state", PATCH_STATE.KLP_UNDEFINED);
    struct.set("sp", task.stack.high);
    struct.set("state", TASK_STATE.TASK_NEW);
    struct.set("cpus_allowed", -1n);
    struct.set("tasks_next", this.word(this.first));
    this.machine.memory.writeWord(this.first, BigInt(at));
    this.machine.memory.writeWord(task.stack.low, BigInt(CONSTANTS.STACK_END_MAGIC));
    this.machine.calls.forget(task.stack.low);
    return task;
  }

  /** The page below a stack stays unmapped, to guard it. */
  mapStack(low: Addr): { readonly low: Addr; readonly high: Addr } {
    this.machine.memory.map(low, STACK_SIZE, { write: true, execute: false, user: false });
    return { low, high: addr(low + STACK_SIZE) };
  }

  private reuse(): Addr | undefined {
    const { memory } = this.machine;
    const at = this.word(this.free);
    if (at === 0) return undefined;
    const { struct } = this.at(at as Addr);
    memory.writeWord(this.free, struct.get("tasks_next"));
    const kept = LASTING.map((field) => [field, struct.get(field)] as const);
    const actions = struct.getNumber("sigactions") as Addr;
    memory.write(at as Addr, new Uint8Array(TASK.size));
    memory.write(actions, new Uint8Array(SIGACTION.size * CONSTANTS.NR_SIGNALS));
    for (const [field, value] of kept) struct.set(field, value);
    memory.write(struct.getNumber("stack") as Addr, NO_STACK); // as the kernel does with stacks that it uses again
    return at as Addr;
  }

  private make(): Addr | undefined {
    const { memory } = this.machine;
    const made = this.word(this.made);
    if (made >= this.limit) return undefined;
    memory.writeWord(this.made, BigInt(made + 1));
    const at = this.heap.allocate(TASK.size, 64);
    const { low } = this.mapStack(addr(STACKS + made * 2 * STACK_SIZE));
    const field = (name: keyof typeof TASK.fields, value: Addr) =>
      memory.writeWord(offset(at, TASK.fields[name].offset), BigInt(value));
    field("stack", low);
    field("ret_stack", this.heap.allocate(RET_STACK.size * CONSTANTS.MAX_RET_DEPTH));
    field("sigactions", this.heap.allocate(SIGACTION.size * CONSTANTS.NR_SIGNALS));
    return at;
  }

  private word(at: Addr): number {
    return this.machine.memory.readNumber(at)!;
  }
}
