// What was live on a stack, told by what was executed later: a frame was live if what lies in its slot was returned
// to. Reads instructions as they are executed, and rsp; knows nothing of the record of calls, and no stack's memory.

import type { Addr } from "../../src/base/addr.ts";
import { STACK_SIZE } from "../../src/machine/callRecord.ts";
import type { Machine } from "../../src/machine/machine.ts";
import { NMI_COPY } from "../../src/machine/ptRegs.ts";
import type { Vcpu } from "../../src/machine/vcpu.ts";
import { decode, MAX_LENGTH, Mnemonic } from "../../src/x86/decode.ts";

/** A slot that was returned by, and where that went. */
export interface Return {
  readonly slot: Addr;
  readonly to: Addr;
}

type Kind = "call" | "return" | "delivery" | "other";

interface Moment {
  readonly rsp: Addr;
  readonly kind: Kind;
  /** Where execution was afterwards, and rsp. */
  readonly to: Addr;
  readonly after: Addr;
}

const KINDS: ReadonlyMap<Mnemonic, Kind> = new Map([
  [Mnemonic.Call, "call"],
  [Mnemonic.Ret, "return"],
  [Mnemonic.Iretq, "return"],
]);
const INTERRUPTS: readonly Mnemonic[] = [Mnemonic.Int, Mnemonic.Int1, Mnemonic.Int3];

export class Prophecy {
  private readonly moments: Moment[] = [];
  private readonly machine: Machine;
  private readonly vcpu: Vcpu;

  constructor(machine: Machine, vcpu: Vcpu) {
    this.machine = machine;
    this.vcpu = vcpu;
  }

  /** Steps the vCPU, and remembers. */
  step(): ReturnType<Vcpu["step"]> {
    const { vcpu, machine } = this;
    const { rip, rsp, instructions } = vcpu;
    const decoded = decode(machine.memory.read(rip, MAX_LENGTH), rip);
    const exit = vcpu.step();
    const mnemonic = decoded.kind === "instruction" ? decoded.instruction.mnemonic : Mnemonic.INVALID;
    // What comes instead of an instruction retires none; those that are there for it retire themselves.
    const delivered = vcpu.instructions === instructions || INTERRUPTS.includes(mnemonic);
    const kind = delivered ? "delivery" : (KINDS.get(mnemonic) ?? "other");
    this.moments.push({ rsp, kind, to: vcpu.rip, after: vcpu.rsp });
    return exit;
  }

  /** For every step, before it: the returns to come from the stacks in use then or later, by stack, innermost first. */
  told(): ReadonlyMap<number, readonly Return[]>[] {
    const told: ReadonlyMap<number, readonly Return[]>[] = [];
    const stacks = new Map<number, readonly Return[]>();
    for (const moment of this.moments.toReversed()) {
      this.backOver(moment, stacks);
      told.push(new Map(stacks));
    }
    return told.reverse();
  }

  private backOver({ rsp, kind, to, after }: Moment, stacks: Map<number, readonly Return[]>): void {
    if (kind === "call" || kind === "delivery") {
      // What it pushed was not there before: a return address, or ip, with or without an error code below, or copied.
      const pushed = stackOf(after);
      const [first, ...others] = stacks.get(pushed) ?? [];
      const places = kind === "delivery" ? [after, after + 8, after - NMI_COPY] : [after];
      const isIt = first !== undefined && places.includes(first.slot);
      if (isIt) stacks.set(pushed, others);
    }
    if (kind !== "return") return;
    // A return to a trampoline leaves the slot to be returned by again, before anything is called there.
    const stack = stackOf(rsp);
    const later = stacks.get(stack) ?? [];
    if (later[0]?.slot !== rsp) stacks.set(stack, [{ slot: rsp, to }, ...later]);
  }
}

/** A number for the 16 KiB that hold `at`. */
export function stackOf(at: Addr): number {
  return Math.floor(at / STACK_SIZE);
}
