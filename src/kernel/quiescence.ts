// Waiting for everybody: until each CPU has serialised, has been where no handler is at work, or nobody is in some code.

import type { Addr } from "../base/addr.ts";
import { type Agenda, type Step, until } from "../machine/agenda.ts";
import type { Vcpu } from "../machine/vcpu.ts";
import type { Cpu, Kernel } from "./kernel.ts";
import { VECTORS } from "./layout.ts";
import type { Stack, Task } from "./task.ts";

/** Interrupts every CPU, whose handler serialises (kernel/stop.c), and waits until all have; at once where nobody runs. */
export function serialiseAll(kernel: Kernel, agenda: Agenda): readonly Step[] {
  const { cpus, machine } = kernel;
  const send: Step = {
    what: "have every CPU serialise",
    run: () => {
      if (!agenda.live) {
        for (const vcpu of machine.vcpus) vcpu.serialise();
        return undefined;
      }
      const isDone = cpus.map((cpu) => serialise(kernel, cpu));
      return [until("every CPU has serialised", () => isDone.every((done) => done()))];
    },
  };
  return [send];
}

/** Interrupts one, and answers whether it has serialised since. Several may ask for it at once. */
export function serialise(kernel: Kernel, { struct }: Cpu): () => boolean {
  const wanted = (struct.getNumber("sync_wanted") + 1) | 0;
  struct.set("sync_wanted", wanted);
  kernel.interrupt(struct.getNumber("number"), VECTORS.CALL_FUNCTION_VECTOR);
  return () => ((struct.getNumber("sync_done") - wanted) | 0) >= 0;
}

/**
 * From now on: answers whether every CPU has been where it might be preempted, which ends whatever was not preemptible when
 * this was called, handlers of traced calls among that. What synchronize_rcu() waits for in the guest.
 */
export function grace({ cpus }: Kernel): () => boolean {
  const before = cpus.map(({ struct }) => struct.getNumber("quiescent"));
  return () =>
    cpus.every(
      ({ struct }, n) =>
        struct.getNumber("preempt_count") === 0 || struct.getNumber("quiescent") !== before[n],
    );
}

/**
 * A task that may be in code from `low` up to `high`, or come back to it; undefined if there is none. Taken for a way
 * back is every word that could be one: a register of a CPU, or what lies on a stack above its pointer.
 */
export function holder(kernel: Kernel, low: Addr, high: Addr): string | undefined {
  const { memory } = kernel.machine;
  const isIn = (word: number | undefined) => word !== undefined && word >= low && word < high;
  const onStack = (from: Addr, { high: end }: Stack) => {
    const start = (from - (from % 8)) as Addr;
    const view = viewOf(memory.read(start, end - start));
    // All at once: this is asked between any two slices. What is no canonical address gets rounded, and is in no code.
    for (let at = 0; at < view.byteLength; at += 8)
      if (isIn(view.getInt32(at + 4, true) * 2 ** 32 + view.getUint32(at, true))) return true;
    return false;
  };
  const looked = new Set<Task>();
  for (const [n, cpu] of kernel.cpus.entries()) {
    const vcpu = kernel.machine.vcpus[n]!;
    const task = kernel.current(vcpu);
    if (task !== undefined) looked.add(task);
    if (registers(vcpu).some(isIn)) return `CPU ${n}, in ${task ?? "no task"}`;
    for (const { from, stack } of liveStacks(vcpu, cpu, task))
      if (onStack(from, stack)) return `CPU ${n}, on a stack of ${task ?? "no task"}`;
  }
  for (const task of kernel.table.everything) {
    if (looked.has(task) || task.hasEnded) continue;
    // In the middle of a switch both tasks are on a CPU, and one of them is current: of the other everything counts.
    const from = task.onCpu ? task.stack.low : (task.struct.getNumber("sp") as Addr);
    if (onStack(from, task.stack)) return `${task}, on its stack`;
  }
  return undefined;
}

/**
 * What is in use of a CPU's stacks. On its task's it has left all others; on another one, how far the rest are in use only
 * their interrupted code's registers say: everything counts until it is back. In user mode nothing does.
 */
function liveStacks(vcpu: Vcpu, { irqStack, exceptionStacks }: Cpu, task: Task | undefined): readonly Live[] {
  if (vcpu.system.user) return [];
  const own = task?.stack;
  if (own !== undefined && isOn(vcpu.rsp, own)) return [{ from: vcpu.rsp, stack: own }];
  const all = [...(own === undefined ? [] : [own]), irqStack, ...exceptionStacks];
  return all.map((stack) => ({ from: isOn(vcpu.rsp, stack) ? vcpu.rsp : stack.low, stack }));
}

interface Live {
  readonly from: Addr;
  readonly stack: Stack;
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function isOn(rsp: Addr, { low, high }: Stack): boolean {
  return rsp > low && rsp <= high;
}

function registers(vcpu: Vcpu): readonly number[] {
  return [vcpu.rip, ...Object.values(vcpu.registers()).map((value) => Number(BigInt.asIntN(64, value)))];
}
