// What was live on a stack, told by what was executed later: a frame was live if what lies in its slot was returned
// to. Reads instructions as they are executed, and rsp; knows nothing of the record of calls, and no stack's memory.

import { type Addr, offset } from "../../src/base/addr.ts";
import { STACK_SIZE } from "../../src/machine/callRecord.ts";
import type { Machine } from "../../src/machine/machine.ts";
import { INT3_GAP, NMI_COPY } from "../../src/machine/ptRegs.ts";
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
  /** In use by what a call pushed or what was delivered; and by a word that was pushed otherwise. */
  private readonly called = new Set<Addr>();
  private readonly pushed = new Set<Addr>();
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
    const isJump = kind === "return" && mnemonic === Mnemonic.Ret && this.pushed.has(rsp);
    const moment: Moment = { rsp, kind: isJump ? "other" : kind, to: vcpu.rip, after: vcpu.rsp };
    this.note(moment);
    this.moments.push(moment);
    return exit;
  }

  /** A return by a word that was pushed where no call had been is a jump to it, and nobody's return. */
  private note({ kind, rsp, after }: Moment): void {
    const { called, pushed } = this;
    if (kind === "call" || kind === "delivery") {
      for (const place of placesOf(kind, after)) {
        called.add(place);
        pushed.delete(place);
      }
    } else if (kind === "return") {
      called.add(rsp); // by whom, may have been before this began
    } else if (after === rsp - 8 && !called.has(after)) {
      pushed.add(after);
    }
    if (after <= rsp) return;
    // What was just returned by may be pushed again, by a trampoline that returned to itself.
    for (const slots of [called, pushed])
      for (const slot of slots) if (slot < after - 8 && stackOf(slot) === stackOf(after)) slots.delete(slot);
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
      const isIt = first !== undefined && placesOf(kind, after).includes(first.slot);
      if (isIt) stacks.set(pushed, others);
    }
    if (kind !== "return") return;
    // A return to a trampoline leaves the slot to be returned by again, before anything is called there.
    const stack = stackOf(rsp);
    const later = stacks.get(stack) ?? [];
    if (later[0]?.slot !== rsp) stacks.set(stack, [{ slot: rsp, to }, ...later]);
  }
}

/** Where the address may lie that a call or a delivery pushed, with rsp `after` it. */
function placesOf(kind: "call" | "delivery", after: Addr): readonly Addr[] {
  if (kind === "call") return [after];
  return [0, 8, -NMI_COPY, -INT3_GAP].map((distance) => offset(after, distance));
}

/** A number for the 16 KiB that hold `at`. */
export function stackOf(at: Addr): number {
  return Math.floor(at / STACK_SIZE);
}
