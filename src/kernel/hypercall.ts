// What guest code asks of the laboratory (`hypercall` in asm/entry.S): policy, hardware that is not there, memory, the log.
//
// Guest code may ask anything: what makes no sense is a value that ends the run.

import { type Addr, addr, offset } from "../base/addr.ts";
import type { Vcpu } from "../machine/vcpu.ts";
import { isBroken, unlessBroken } from "./broken.ts";
import type { Kernel } from "./kernel.ts";
import { HYPERCALL, VECTORS } from "./layout.ts";

/** Guest code has found that it cannot go on. */
export interface Panic {
  readonly kind: "panic";
  readonly ip: Addr;
  readonly text: string;
}

const MAX_WORDS = 8;
const IPIS: readonly number[] = [VECTORS.RESCHEDULE_VECTOR, VECTORS.CALL_FUNCTION_VECTOR];

/** A number for rax; or, as a text, why there is none. */
type Answer = (kernel: Kernel, vcpu: Vcpu, args: readonly [bigint, bigint, bigint]) => number | string;

const ANSWERS: Readonly<Record<number, Answer>> = {
  [HYPERCALL.HC_PICK_TASK]: (kernel, vcpu) => {
    const tasks = kernel.queued(kernel.cpus[vcpu.index]!);
    return tasks[choose(kernel, "task", tasks.length)]?.struct.at ?? "there is no task to pick";
  },
  [HYPERCALL.HC_SELECT_CPU]: (kernel, _, [task]) => {
    const allowed = kernel.table.at(addr(task)).struct.get("cpus_allowed");
    const able = kernel.cpus.flatMap((__, n) => (((allowed >> BigInt(n)) & 1n) === 0n ? [] : [n]));
    return able[choose(kernel, "cpu", able.length)] ?? 0;
  },
  [HYPERCALL.HC_BALANCE]: (kernel, vcpu) => {
    const busy = kernel.cpus.flatMap(({ struct }, n) =>
      n !== vcpu.index && struct.getNumber("nr_queued") > 0 ? [n] : [],
    );
    return busy[choose(kernel, "balance", busy.length + 1)] ?? -1;
  },
  [HYPERCALL.HC_SEND_IPI]: (kernel, _, [cpu, vector]) => {
    if (cpu >= kernel.cpus.length || !IPIS.includes(Number(vector)))
      return `vector ${vector} is sent to CPU ${BigInt.asIntN(64, cpu)}`;
    kernel.interrupt(Number(cpu), Number(vector));
    return 0;
  },
  [HYPERCALL.HC_NEW_TASK]: (kernel) => kernel.table.create()?.struct.at ?? 0,
  [HYPERCALL.HC_TASK_BEGINS]: (kernel, _, [task]) => {
    kernel.begins(kernel.table.at(addr(task)));
    return 0;
  },
  [HYPERCALL.HC_PRINTK]: (kernel, _, [format, words, count]) => {
    const { memory } = kernel.machine;
    const length = count > MAX_WORDS ? MAX_WORDS : Number(count);
    const args = Array.from({ length }, (__, n) => memory.readWord(offset(addr(words), 8 * n)));
    kernel.log.printf(addr(format), args);
    return 0;
  },
  [HYPERCALL.HC_MAP_MODULE]: (kernel, _, [name]) => kernel.modules?.map(kernel.log.text(addr(name))) ?? 0,
  [HYPERCALL.HC_UNMAP_MODULE]: (kernel, _, [module]) => {
    kernel.modules?.unmap(addr(module));
    return 0;
  },
  [HYPERCALL.HC_FTRACE]: (kernel, _, [call]) =>
    kernel.traceHandler?.(addr(call)) === true ? 0 : "a traced call has no handler",
  [HYPERCALL.HC_KMALLOC]: (kernel, _, [bytes]) => kernel.allocator.kmalloc(Number(bytes)) ?? 0,
  [HYPERCALL.HC_KFREE_RCU]: (kernel, _, [at, bytes]) =>
    kernel.allocator.kfreeRcu(addr(at), Number(bytes)) ? 0 : "memory is given back that nobody has",
  [HYPERCALL.HC_MODULE_NOTIFY]: (kernel, _, [module]) => {
    kernel.livepatch?.notify(addr(module));
    return 0;
  },
  [HYPERCALL.HC_MODULE_NOTIFIED]: (kernel, _, [module]) => kernel.livepatch?.notified(addr(module)) ?? 0,
  [HYPERCALL.HC_KLP_TRY_SWITCH]: (kernel, vcpu) => {
    const task = kernel.current(vcpu);
    if (task !== undefined) kernel.livepatch?.trySwitch(task);
    return 0;
  },
  [HYPERCALL.HC_PANIC]: (kernel, _, [what]) => kernel.log.text(addr(what)),
};

/** Answers the question that `vcpu` has just asked; undefined, or why nothing can go on. */
export function answerHypercall(kernel: Kernel, vcpu: Vcpu): Panic | undefined {
  const number = vcpu.getNumber("rdi");
  const result = ask(kernel, vcpu, number);
  if (typeof result === "string") return { kind: "panic", ip: vcpu.rip, text: result };
  vcpu.setNumber("rax", result);
  return undefined;
}

function ask(kernel: Kernel, vcpu: Vcpu, number: number): number | string {
  const answer = ANSWERS[number];
  if (answer === undefined) return `hypercall ${number} is none`;
  const found = unlessBroken(() => answer(kernel, vcpu, [vcpu.get("rsi"), vcpu.get("rdx"), vcpu.get("rcx")]));
  return isBroken(found) ? `hypercall ${number}: ${found.broken}` : found;
}

function choose(kernel: Kernel, kind: "task" | "cpu" | "balance", count: number): number {
  return count > 1 ? kernel.chooser.choose(kind, count) : 0;
}
