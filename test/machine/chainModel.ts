// What the chain of calls must be while the entry kernel runs: a logical stack for each task, changed as the labels and
// mnemonics of what is executed say. It knows of no stacks but for two ranges to compare, and of no rule of rsp.

import { type Addr, offset } from "../../src/base/addr.ts";
import type { TrueFrame } from "../../src/machine/callChain.ts";
import { fetch } from "../../src/machine/code.ts";
import { type Instruction, Mnemonic } from "../../src/x86/decode.ts";
import { type EntryKernel, STACKS, VECTOR } from "./entryKernel.ts";
import { ENTRY_STACK_TOP } from "./systemGuest.ts";

const ENTRIES = {
  irq: VECTOR.irq,
  other_irq: VECTOR.otherIrq,
  nmi: VECTOR.nmi,
  software: VECTOR.software,
  invalid: VECTOR.invalid,
  breakpoint: VECTOR.breakpoint,
} as const;
/** Returns that are jumps: nothing called what they go to. */
const JUMPS = ["jump_a", "jump_b", "jump_c", "user_jump"];
/** Instructions that drop return addresses, and how many. */
const DROPS = { drop_one_a: 1, drop_one_b: 1, drop_one_c: 1, drop_two: 2, user_drop: 1 } as const;

/** Innermost first. */
type Frames = readonly TrueFrame[];

export interface ModelState {
  readonly task: number;
  readonly kernel: readonly Frames[];
  readonly user: readonly Frames[];
}

export class ChainModel {
  private readonly guest: EntryKernel;
  private kernel: Frames[];
  private user: Frames[] = [[], []];
  /** Which of the two tasks runs: until rsp is the other's, the one that is leaving. */
  task = 0;
  private readonly entries: ReadonlyMap<Addr, number>;
  private readonly jumps: ReadonlySet<Addr>;
  private readonly drops: ReadonlyMap<Addr, number>;
  private readonly switches: Addr;
  private readonly decoded = new Map<Addr, Instruction>();
  /** What has happened. */
  readonly seen = { deepest: 0, userInterrupts: 0, syscalls: 0, sysrets: 0, emulated: 0, switches: 0 };

  constructor(guest: EntryKernel) {
    this.guest = guest;
    const { at } = guest;
    const planted = { slot: offset(guest.savedRsp(1), 16), returnAddress: at("task_start") };
    this.kernel = [[], [{ kind: "call", call: undefined, ...planted }]];
    this.entries = new Map(Object.entries(ENTRIES).map(([name, vector]) => [at(name), vector]));
    this.jumps = new Set(JUMPS.map(at));
    this.drops = new Map(Object.entries(DROPS).map(([name, count]) => [at(name), count]));
    this.switches = at("switch");
  }

  get state(): ModelState {
    return { task: this.task, kernel: [...this.kernel], user: [...this.user] };
  }

  set state({ task, kernel, user }: ModelState) {
    this.task = task;
    this.kernel = [...kernel];
    this.user = [...user];
  }

  /** Whether an NMI would be one within another, which this kernel cannot take. */
  get inNmi(): boolean {
    return this.chain(this.task).some((frame) => frame.kind === "interrupt" && frame.vector === VECTOR.nmi);
  }

  /** What must be true of the task that runs. */
  get running(): Frames {
    return this.guest.vcpu.system.user ? this.user[this.task]! : this.chain(this.task);
  }

  /** The same of the other one, while it is in the kernel. */
  get waiting(): Frames {
    return this.chain(1 - this.task);
  }

  /** Those that are on the stack that rsp is in; undefined on the entry stack, where others' copies are. */
  get onStack(): Frames | undefined {
    const { rsp } = this.guest.vcpu;
    const [low, high] = STACKS.find((range) => rsp > range[0] && rsp <= range[1])!;
    if (high === ENTRY_STACK_TOP) return undefined;
    // The kernel begins on the user's.
    const frames = low > 0 ? this.user[this.task]! : this.running;
    const end = frames.findIndex(({ slot }) => slot < low || slot >= high);
    return end < 0 ? frames : frames.slice(0, end);
  }

  /** Executes one instruction, or what comes instead, and follows it. */
  step(): void {
    const { vcpu } = this.guest;
    const { rip, rsp } = vcpu;
    const fromUser = vcpu.system.user;
    const { task } = this;
    const instruction = this.instructionAt(rip);
    const exit = vcpu.step();
    if (exit !== undefined) throw new Error(`the kernel stopped: ${exit.kind}`);
    const vector = this.entries.get(vcpu.rip);
    if (vector !== undefined && !this.returned(task, instruction)) {
      const software = vector === VECTOR.breakpoint || vector === VECTOR.software;
      const ip = software ? instruction.next : rip;
      if (fromUser) this.seen.userInterrupts++;
      const frame: TrueFrame = { kind: "interrupt", vector, ip, slot: vcpu.rsp, rsp, user: fromUser };
      this.kernel[task] = [frame, ...(fromUser ? [] : this.chain(task))];
    } else if (rip === this.switches) {
      this.seen.switches++;
      this.task = 1 - task;
    } else if (!this.jumps.has(rip)) {
      const frames = fromUser ? this.user : this.kernel;
      frames[task] = this.after(frames[task]!, rip, instruction);
    }
    this.seen.deepest = Math.max(this.seen.deepest, this.running.length);
  }

  private after(frames: Frames, rip: Addr, { mnemonic, next }: Instruction): Frames {
    const { vcpu, at } = this.guest;
    const drops = this.drops.get(rip);
    if (drops !== undefined) return frames.slice(drops);
    switch (mnemonic) {
      case Mnemonic.Call:
        return [{ kind: "call", call: rip, slot: vcpu.rsp, returnAddress: next }, ...frames];
      case Mnemonic.Ret:
        if (frames[0]?.kind !== "call") throw new Error("a return to nowhere");
        return frames.slice(1);
      case Mnemonic.Syscall:
        this.seen.syscalls++;
        this.kernel[this.task] = [];
        return frames;
      case Mnemonic.Sysretq:
        this.seen.sysrets++;
        return [];
      case Mnemonic.Iretq: {
        if (vcpu.system.user) return [];
        const [through, ...rest] = frames;
        if (through?.kind !== "interrupt") throw new Error("an iretq from nowhere");
        const site = at("emulated_site");
        if (through.ip !== site + 1) return rest;
        this.seen.emulated++;
        return [{ kind: "call", call: site, slot: vcpu.rsp, returnAddress: offset(site, 5) }, ...rest];
      }
      default:
        return frames;
    }
  }

  /** Whether an interrupt's end, at the very start of another handler, has led back there. */
  private returned(task: number, { mnemonic }: Instruction): boolean {
    const { vcpu } = this.guest;
    const [frame] = this.chain(task);
    if (mnemonic !== Mnemonic.Iretq || frame?.kind !== "interrupt") return false;
    return frame.ip === vcpu.rip && frame.rsp === vcpu.rsp;
  }

  private chain(task: number): Frames {
    return this.kernel[task]!;
  }

  private instructionAt(rip: Addr): Instruction {
    let found = this.decoded.get(rip);
    if (found === undefined) {
      const fetched = fetch(this.guest.machine.memory, rip);
      if (fetched.kind !== "instruction") throw new Error("nothing to execute");
      found = fetched.instruction;
      this.decoded.set(rip, found);
    }
    return found;
  }
}
