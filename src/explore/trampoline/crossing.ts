// One call through a trampoline, an instruction at a time, from a register state at the site to where the traced function
// goes on. The handler is played: what it gets is judged, then it does with pt_regs what the series says, leaves rubbish in
// every register that is not its caller's, and returns.

import { type Addr, offset, toWord } from "../../base/addr.ts";
import { describeExit, describeFault, type Exit } from "../../machine/exit.ts";
import type { StructView } from "../../machine/struct.ts";
import type { TraceEvent } from "../../machine/trace.ts";
import { FLAG, STATUS_FLAGS } from "../../x86/register.ts";
import type { Bench, Trampoline } from "./bench.ts";
import { CALLEE_SAVED, CONTRACTS, type Contract, FIELD_OF, type Field, SAVED_REGISTERS } from "./contract.ts";
import { type Discrepancy, type Entry, judgeCall, judgeReturn } from "./judge.ts";
import { type State, usedBytes, type Values } from "./states.ts";

/** What the handler does: nothing; sends the call to the replacement; or changes every register that it may. */
export const SERIES = ["nothing", "regs->ip", "registers"] as const;
export type Series = (typeof SERIES)[number];

/** A discrepancy with the instruction to look at. */
export interface Failure extends Discrepancy {
  readonly at: Addr;
  /** Of the register state, by which it can be had again. */
  readonly seed: number;
}

export interface Crossed {
  readonly failures: readonly Failure[];
  /** Instructions of the trampoline that were executed. */
  readonly reached: ReadonlySet<Addr>;
  /** Whether the handler was called, and whether the trampoline came to its end. */
  readonly handled: boolean;
  readonly ended: boolean;
}

/** A call is over within so many instructions. */
export const CALL_LIMIT = 20_000;
const WORD = 8;
const RETURNS: readonly (number | undefined)[] = [0xc3, 0xc2];

type Access = Extract<TraceEvent, { readonly kind: "read" | "write" }>;

/** How far a call has come. */
interface Progress {
  readonly state: State;
  readonly series: Series;
  readonly entry: Entry;
  /** Where the word lies that the trampoline returns by. */
  readonly slot: Addr;
  readonly failures: Failure[];
  readonly reached: Set<Addr>;
  handled: boolean;
  ended: boolean;
  /** The trampoline's last instruction. */
  at: Addr;
  /** Which of them was the last to change each register, and the flags, behind the handler. */
  readonly changedBy: Map<string, Addr>;
}

/** Calls through one trampoline. Nothing else may be traced while it is used. */
export class Crossings {
  private readonly bench: Bench;
  private readonly trampoline: Trampoline;
  private readonly contract: Contract;
  /** Of the last instruction. */
  private readonly accesses: Access[] = [];

  constructor(bench: Bench, trampoline: Trampoline) {
    this.bench = bench;
    this.trampoline = trampoline;
    this.contract = CONTRACTS[trampoline.kind];
  }

  /** What the series asks for that the contract does not promise is left out. */
  get series(): readonly Series[] {
    return SERIES.filter((series) => series !== "regs->ip" || this.contract.redirects);
  }

  /** For as long as `act` calls. */
  traced<T>(act: () => T): T {
    const trace = this.bench.machine.trace({ accesses: true }, (event) => {
      if (event.kind === "read" || event.kind === "write") this.accesses.push(event);
    });
    try {
      return act();
    } finally {
      trace.stop();
    }
  }

  cross(state: State, series: Series): Crossed {
    const crossed = this.follow(state, series, false);
    return crossed.failures.length === 0 ? crossed : this.follow(state, series, true);
  }

  /** `blame`: finds out which instruction changed what, which takes longer. */
  private follow(state: State, series: Series, blame: boolean): Crossed {
    const { bench, trampoline } = this;
    const { vcpu } = bench;
    const entry = this.arrive(state);
    const progress: Progress = {
      ...{ state, series, entry, slot: offset(entry.rsp, -WORD), at: trampoline.entry },
      ...{ handled: false, ended: false },
      ...{ failures: [], reached: new Set<Addr>(), changedBy: new Map<string, Addr>() },
    };
    vcpu.step(); // the site
    for (let steps = 0; ; steps++) {
      if (steps === CALL_LIMIT)
        return this.lost(progress, `it has not returned after ${CALL_LIMIT} instructions`);
      if (trampoline.handlers.includes(vcpu.rip)) {
        const { found, regs } = judgeCall(bench, trampoline, entry);
        for (const one of found) this.note(progress, one);
        if (regs === undefined && series !== "nothing") return progress; // nothing to say of what it would have changed
        this.play(progress, regs);
      }
      const at = vcpu.rip;
      const own = this.isOwn(at);
      const before = blame && progress.handled ? this.registers() : undefined;
      const rsp = vcpu.rsp;
      this.accesses.length = 0;
      const exit = vcpu.step();
      if (own) {
        progress.at = at;
        progress.reached.add(at);
        this.judgeWrites(progress);
        if (before !== undefined) this.blame(progress, before);
      }
      if (exit !== undefined) return this.stopped(progress, exit);
      if (this.hasLeft(progress, at, own, rsp)) return this.judge(progress);
    }
  }

  /** Puts the CPU at the site, on a stack of the state's. */
  private arrive({ registers, rflags, stack, depth }: State): Entry {
    const { vcpu, machine, task, site } = this.bench;
    const { low, high } = task.stack;
    machine.memory.write(offset(high, -stack.length), stack);
    machine.calls.forget(low);
    for (const name of SAVED_REGISTERS) vcpu.set(name, registers[name]);
    const rsp = offset(high, -WORD * depth);
    vcpu.rsp = rsp;
    vcpu.rflags = rflags;
    vcpu.rip = site.ip;
    return { registers, rflags, rsp, parent: this.bench.word(rsp) };
  }

  /** What the handler does. */
  private play(progress: Progress, regs: StructView<Field> | undefined): void {
    const { bench, contract } = this;
    const { vcpu } = bench;
    const { state, series } = progress;
    progress.handled = true;
    if (series === "regs->ip") regs?.set("ip", bench.replacement);
    if (series === "registers") {
      for (const name of contract.saved) regs?.set(FIELD_OF[name], state.changed[name]);
      if (contract.whole) regs?.set("flags", state.changedFlags);
    }
    for (const name of SAVED_REGISTERS) if (!CALLEE_SAVED.includes(name)) vcpu.set(name, state.rubbish[name]);
    vcpu.rflags = (vcpu.rflags & ~(STATUS_FLAGS | FLAG.DF)) | (state.rubbishFlags & STATUS_FLAGS);
    vcpu.rip = bench.ret;
  }

  /** Whether the trampoline is done, wherever it went: it has returned, or jumped to where the call goes on. */
  private hasLeft({ series, slot }: Progress, at: Addr, own: boolean, rsp: Addr): boolean {
    const { bench, trampoline } = this;
    const { vcpu } = bench;
    const now = vcpu.rip;
    if (this.isOwn(now) || trampoline.handlers.includes(now)) return false;
    if (now === this.goesOn(series) || vcpu.rsp > slot || !bench.isText(now)) return true;
    return own && this.isReturn(at) && vcpu.rsp > rsp;
  }

  private judge(progress: Progress): Crossed {
    const { bench, contract } = this;
    const { state, entry, series } = progress;
    progress.ended = true;
    const registers =
      series === "registers" ? { ...state.registers, ...this.changed(state) } : state.registers;
    const rflags = series === "registers" && contract.whole ? state.changedFlags : state.rflags;
    const expected = {
      ...{ rip: this.goesOn(series), registers, rflags },
      clause: series === "registers" ? "changed" : "kept",
    } as const;
    for (const one of judgeReturn(bench.vcpu, contract, entry, expected))
      this.note(progress, one, this.culprit(progress, one));
    if (!progress.handled)
      this.note(progress, { clause: "arguments", why: "the handler was not called", differences: [] });
    this.judgeStack(progress);
    return progress;
  }

  /** Nothing of what is the caller's may have changed. */
  private judgeStack(progress: Progress): void {
    const { bench } = this;
    const { state, entry } = progress;
    const used = usedBytes(state);
    const now = bench.machine.memory.read(entry.rsp, used);
    const then = state.stack.subarray(state.stack.length - used);
    const [before, after] = [words(then), words(now)];
    const n = after.findIndex((word, index) => word !== before[index]);
    if (n < 0) return;
    const differences = [{ what: `${WORD * n}(rsp)`, found: after[n]!, expected: before[n]! }];
    this.note(progress, { clause: "stack", why: "a word of its caller's stack has changed", differences });
  }

  /** What an instruction of the trampoline's has written, on the stack. */
  private judgeWrites(progress: Progress): void {
    const { vcpu, task } = this.bench;
    const { slot } = progress;
    for (const { kind, address, size } of this.accesses) {
      if (kind !== "write" || address < task.stack.low || address >= task.stack.high) continue;
      const above = address + size > slot + WORD;
      const below = address < vcpu.rsp && vcpu.rsp <= slot;
      if (!above && !below) continue;
      const why = above
        ? "it writes to its caller's part of the stack"
        : "it writes below rsp, where whatever interrupts it writes, too";
      const bound = above ? slot : vcpu.rsp;
      const what = above ? "address, at most" : "address, at least";
      const differences = [{ what, found: toWord(address), expected: toWord(bound) }];
      this.note(progress, { clause: "stack", why, differences });
    }
  }

  private stopped(progress: Progress, exit: Exit): Crossed {
    const { bench } = this;
    const taken = bench.kernel.exception(bench.vcpu, exit);
    if (taken === undefined) {
      const what = describeExit(exit, (at) => bench.describe(at));
      return this.lost(progress, `it does not return: ${what}`);
    }
    const sp = taken.regs.getNumber("sp") as Addr;
    // A return by another word leads to no code, or faults where it is.
    const wild = !bench.isText(taken.ip);
    const expected = wild ? progress.entry.rsp : progress.slot;
    if ((wild || this.isReturn(taken.ip)) && sp !== expected) {
      const differences = [{ what: "rsp", found: toWord(sp), expected: toWord(expected) }];
      this.note(progress, { clause: "stack", why: "it returns by another word", differences });
    }
    return this.lost(progress, `it raises ${describeFault(taken.fault)}`);
  }

  private lost(progress: Progress, why: string): Crossed {
    this.note(progress, { clause: "ends", why, differences: [] });
    return progress;
  }

  private note(progress: Progress, discrepancy: Discrepancy, at = progress.at): void {
    progress.failures.push({ ...discrepancy, at, seed: progress.state.seed });
  }

  /** The instruction that gave the first wrong register its value; none did if the handler's rubbish is in it. */
  private culprit({ at, changedBy }: Progress, { differences: [first] }: Discrepancy): Addr {
    return (first && changedBy.get(first.what)) ?? at;
  }

  private blame({ at, changedBy }: Progress, before: Values & { readonly flags: bigint }): void {
    const now = this.registers();
    for (const [name, value] of Object.entries(now))
      if (value !== before[name as keyof typeof before]) changedBy.set(name, at);
  }

  private registers(): Values & { readonly flags: bigint } {
    const { vcpu } = this.bench;
    return { ...vcpu.registers(), flags: vcpu.rflags };
  }

  private changed({ changed }: State): Partial<Values> {
    return Object.fromEntries(this.contract.saved.map((name) => [name, changed[name]]));
  }

  private goesOn(series: Series): Addr {
    return series === "regs->ip" ? this.bench.replacement : this.bench.body;
  }

  private isOwn(at: Addr): boolean {
    return at >= this.trampoline.low && at < this.trampoline.high;
  }

  private isReturn(at: Addr): boolean {
    const { memory } = this.bench.machine;
    return memory.isMapped(at, 1) && RETURNS.includes(memory.read(at, 1)[0]);
  }
}

function words(bytes: Uint8Array): BigUint64Array {
  return new BigUint64Array(bytes.slice().buffer);
}
