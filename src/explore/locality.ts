// Which steps of a CPU are its own affair: what others do before such a step, they could as well do after it.
//
// A step is local if no memory that it reads or writes is used by anybody else, nobody rewrites the bytes that it is
// fetched from, and it does not serialise. It commutes with every step of every other actor, so that an exploration need
// not stop between it and the next step of the same CPU: local steps up to the first one that is not, and that one, are
// one block. (Lipton's reduction: what commutes both ways may be moved up to what does not.)
//
// Interrupts may be requested at any boundary, also between two local steps, and the one to serialise is taken at once
// where interrupts are on. That does not break blocks up either: from its delivery to its iretq it leaves registers,
// flags and the stack above rsp as they were, which is all that a local step reads beside what is the CPU's own; so it
// could as well come before the block. What it does besides (it serialises, and says so) are steps that are not local, and
// blocks end there. Code that reads below rsp would break this; there is none without a red zone. So would whoever looks into a
// CPU's registers and stack from elsewhere, as to free a trampoline: that is to be explored instruction by instruction.

import { type Addr, addr, offset } from "../base/addr.ts";
import type { Kernel } from "../kernel/kernel.ts";
import { CPU, TASK } from "../kernel/layout.ts";
import { serialises } from "../machine/system/serialising.ts";
import type { Vcpu } from "../machine/vcpu.ts";
import { decode, type Instruction, MAX_LENGTH } from "../x86/decode.ts";
import { GPR } from "../x86/register.ts";

/** From `low` up to `high`. */
export interface Range {
  readonly low: Addr;
  readonly high: Addr;
}

export interface LocalityParts {
  readonly kernel: Kernel;
  /** Code that is rewritten. */
  readonly contested: Range;
  /** Memory of CPU `n`'s own, beside its stacks, its task and its per-CPU area. */
  readonly own: (n: number) => readonly Range[];
}

export class Locality {
  private readonly kernel: Kernel;
  private readonly contested: Range;
  /** By CPU. */
  private readonly stacks: readonly (readonly Range[])[];
  private readonly ranges: readonly (readonly Range[])[];
  /** Outside of what is rewritten, code stays as it is. */
  private readonly instructions = new Map<Addr, Instruction | undefined>();

  /** Every vCPU has its task already, and keeps it. */
  constructor({ kernel, contested, own }: LocalityParts) {
    this.kernel = kernel;
    this.contested = contested;
    const { cpus, machine } = kernel;
    const tasks = machine.vcpus.map((vcpu) => kernel.current(vcpu));
    this.stacks = cpus.map(({ irqStack, exceptionStacks }, n) => {
      const task = tasks[n];
      return [irqStack, ...exceptionStacks, ...(task === undefined ? [] : [task.stack])];
    });
    this.ranges = cpus.map(({ struct }, n) => {
      // Whoever has a CPU serialise writes the one, and waits for the other.
      const { sync_wanted, sync_done } = CPU.fields;
      const wanted = offset(struct.at, sync_wanted.offset);
      const task = tasks[n]?.struct.at;
      return [
        ...this.stacks[n]!,
        { low: struct.at, high: wanted },
        { low: offset(struct.at, sync_done.offset + sync_done.size), high: offset(struct.at, CPU.size) },
        ...(task === undefined ? [] : [{ low: task, high: offset(task, TASK.size) }]),
        ...own(n),
      ];
    });
  }

  /** Whether what the vCPU executes next is local. */
  isLocal(vcpu: Vcpu): boolean {
    const instruction = this.next(vcpu);
    if (instruction === undefined || serialises(instruction)) return false;
    // What it pushes and pops; the frame of an exception that it raises may lie there as well.
    if (!isIn(this.stacks[vcpu.index]!, vcpu.rsp, 0)) return false;
    return instruction.operands.every((operand) => {
      if (operand.kind === "string") return false;
      if (operand.kind !== "memory" || operand.size === 0) return true;
      return isIn(this.ranges[vcpu.index]!, addressOf(instruction, vcpu), operand.size);
    });
  }

  /** What is at rip; undefined in code that is rewritten, and where nothing can be executed. */
  next({ rip }: Vcpu): Instruction | undefined {
    if (rip < this.contested.high && rip + MAX_LENGTH > this.contested.low) {
      const before = this.decoded(rip);
      // In the same bytes, what is there now need not be what is fetched.
      if (rip >= this.contested.low || before === undefined || before.next > this.contested.low)
        return undefined;
      return before;
    }
    const known = this.instructions.get(rip);
    if (known !== undefined) return known;
    const found = this.decoded(rip);
    this.instructions.set(rip, found);
    return found;
  }

  private decoded(rip: Addr): Instruction | undefined {
    const { memory } = this.kernel.machine;
    if (!memory.isMapped(rip, MAX_LENGTH)) return undefined;
    const decoded = decode(memory.read(rip, MAX_LENGTH), rip);
    return decoded.kind === "instruction" ? decoded.instruction : undefined;
  }
}

/** The effective address of an instruction's memory operand, with the registers as they are. */
function addressOf({ memory, addressSize }: Instruction, vcpu: Vcpu): Addr {
  if (memory === undefined || addressSize !== 8) return addr(0); // nobody's own
  const { base, index, shift, displacement, segment } = memory;
  let at = displacement;
  if (base !== undefined) at += vcpu.get(GPR[base]!);
  if (index !== undefined) at += vcpu.get(GPR[index]!) << BigInt(shift);
  if (segment === "gs") at += vcpu.gsBase;
  if (segment === "fs") at += vcpu.fsBase;
  return Number(BigInt.asIntN(64, at)) as Addr;
}

/** A stack's end, where nothing has been pushed, is in it. */
function isIn(ranges: readonly Range[], at: Addr, size: number): boolean {
  return ranges.some(({ low, high }) => at >= low && at + size <= high);
}
