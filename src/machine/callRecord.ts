// The true call chain: every call, return, delivery and switch of stacks as it was executed, kept per stack. What an
// unwinder finds is judged against this record, which never reads the stack's memory.
//
// A stack is the 16 KiB-aligned area around an address, or a range that was registered (`addStack`). A call's
// frame is live until rsp is above its slot: by a return, whatever address that goes to, or otherwise. An
// interrupt's ends the same way, or when iretq goes through it back to where it came from.
//
// Chains go on from stack to stack. An interrupt's frame goes on with what was interrupted, on any stack. When
// rsp is set from one stack to another, the first of these that applies says what it was:
//   - what runs has left user mode on that stack: back to what it had there, whoever else has used it since;
//   - frames are live there: back to them (another task, what an interrupt stack was entered from);
//   - what runs came from frames of that stack, all of which it leaves behind: back to the stack's beginning;
//   - execution began on that stack, or is to (`forget`), and does not come from user mode: that task;
//   - else a move of what runs: its chain goes on with where it was (to an interrupt stack, from an entry stack).
// A return to a return trampoline (`returnTrampolines`) does not end the frame: that one's return to where the call
// came from does.
//
// It follows that the stack of a new task must be announced by `forget`, or its creator seems to call it.

import { type Addr, hex, PAGE_SIZE, pageOf, pagesOf } from "../base/addr.ts";
import { refuse } from "../base/refuse.ts";
import { EVENT } from "../x86/state.ts";
import {
  begun,
  type Chain,
  called,
  crossed,
  find,
  framesOf,
  framesOnStack,
  type InterruptFrame,
  isEntry,
  live,
  moved,
  returned,
  type TrueFrame,
} from "./callChain.ts";
import type { Host, HostAddress } from "./host.ts";
import type { Journal } from "./journal.ts";

/** Kernel stacks are 16 KiB and aligned to that, so that an address in one says which it is. */
export const STACK_SIZE = 16384;
/** Stacks that have a chain: far more than there are tasks. Those that were there first are forgotten. */
const MAX_STACKS = 1 << 16;
const BREAKPOINT = 3;
/** Of the call that a breakpoint stands in for, less the breakpoint's own. */
const REST_OF_CALL = 4;

export class CallRecord {
  /** What the stacks that change had before; absent until the first snapshot. */
  journal: Journal<number, Chain> | undefined;
  /** Where return addresses lead that were replaced: the frame is live until execution gets to the one it had. */
  readonly returnTrampolines = new Set<Addr>();
  private readonly stacks = new Map<number, Chain>();
  /** Numbers of registered stacks, by their pages. */
  private readonly registered = new Map<Addr, number>();

  // ---- What was executed.

  /** Takes the events in `[from, to)` of host memory. */
  drain(host: Host, from: HostAddress, to: HostAddress): void {
    // Most events are on the stack of the one before: its chain is only put back when another has its turn.
    let stack = Number.NaN;
    let chain: Chain | undefined;
    for (let event = from; event < to; event += EVENT.size) {
      const kind = host.i32[(event + EVENT.kind) >> 2]!;
      const slot = host.getNumber(event + EVENT.slot) as Addr;
      const here = kind === EVENT.stackPointer ? this.stackAt(slot) : this.stackOf(slot);
      if (here !== stack) {
        this.set(stack, chain);
        stack = here;
        chain = this.stacks.get(here);
      }
      if (kind === EVENT.return) {
        const to = host.getNumber(event + EVENT.address) as Addr;
        chain = returned(chain, stack, slot, to, this.returnTrampolines.has(to));
        continue;
      }
      const address = host.getNumber(event + EVENT.address) as Addr;
      if (kind === EVENT.call) {
        const call = host.getNumber(event + EVENT.ip) as Addr;
        chain = called(live(chain, stack, slot + 8), stack, call, slot, address);
      } else if (this.stackAt(address) === stack) chain = live(chain, stack, slot);
      else {
        this.set(stack, chain);
        this.move(address, slot);
        chain = this.stacks.get(stack);
      }
    }
    this.set(stack, chain);
  }

  /** rsp was set from `from` to `to`. */
  move(from: Addr, to: Addr): void {
    const [source, target] = [this.stackAt(from), this.stackAt(to)];
    let chain = live(this.stacks.get(target), target, to);
    if (source !== target) {
      const left = live(this.stacks.get(source), source, from) ?? begun(source);
      this.set(source, left);
      if (find(left, isEntry)?.stack === target)
        chain = live(
          find(left, (link) => link.stack === target),
          target,
          to,
        );
      if (isMove(left, target, chain)) chain = moved(target, left);
    }
    this.set(target, chain);
  }

  /** The delivery of an exception or interrupt has pushed its frame. */
  interrupt(frame: InterruptFrame): void {
    const [source, stack] = [this.stackAt(frame.rsp), this.stackOf(frame.slot)];
    const interrupted = live(this.stacks.get(source), source, frame.rsp);
    this.set(source, interrupted);
    this.set(stack, crossed(stack, frame, frame.user ? undefined : interrupted));
  }

  /** The kernel was entered from user mode with `rsp`, by an instruction that pushes nothing. */
  enter(rsp: Addr): void {
    const stack = this.stackAt(rsp);
    const outer = live(this.stacks.get(stack), stack, rsp);
    this.set(stack, crossed(stack, { kind: "entry", slot: rsp }, outer));
  }

  /** The kernel was left: user mode goes on, with `rsp`. */
  leave(rsp: Addr): void {
    const stack = this.stackAt(rsp);
    const chain = this.stacks.get(stack);
    const entry = find(chain, isEntry);
    this.set(stack, live(entry === undefined ? chain : entry.outer, stack, rsp));
  }

  /** A far return or iretq has popped its words from `slot` on, and goes on with `rsp`, in user mode or the kernel. */
  farReturn(slot: Addr, rsp: Addr, user: boolean): void {
    const [source, target] = [this.stackOf(slot), this.stackAt(rsp)];
    const before = live(this.stacks.get(source), source, slot);
    if (user) {
      const finished = find(before, isEntry) !== undefined;
      this.set(source, finished ? undefined : live(before, source, slot + 8));
      this.leave(rsp);
      return;
    }
    const through = find(before, ({ stack, frame }) => {
      if (stack !== source || frame.kind !== "interrupt") return false;
      if (frame.slot === slot || frame.rsp === rsp || emulatesCall(frame, rsp)) return true;
      return source !== target && this.stackAt(frame.rsp) === target; // by a copy of its frame
    });
    if (through?.frame.kind !== "interrupt") {
      this.set(source, live(before, source, slot + 8));
      this.set(target, live(this.stacks.get(target), target, rsp));
      return;
    }
    const { frame, outer } = through;
    this.set(source, outer?.stack === source ? outer : undefined);
    const interrupted = this.stackAt(frame.rsp) === target ? outer : this.stacks.get(target);
    this.set(target, live(interrupted, target, rsp));
    if (emulatesCall(frame, rsp)) this.push((frame.ip - 1) as Addr, rsp, (frame.ip + REST_OF_CALL) as Addr);
  }

  // ---- What it is told.

  /**
   * Says that `[low, high)`, whole pages, is one stack. Only needed of stacks that are not 16 KiB and aligned
   * to that, and before anything runs on them.
   */
  addStack(low: Addr, high: Addr): void {
    const pages = pagesOf(low, high - low);
    const known = pages.find((page) => this.registered.has(page));
    if (low % PAGE_SIZE !== 0 || high % PAGE_SIZE !== 0 || pages.length === 0 || known !== undefined)
      refuse("stack-range", { low: hex(low), high: hex(high) });
    for (const page of pages) this.registered.set(page, low);
  }

  /** Forgets the stack that holds `address`: a task is going to begin there. */
  forget(address: Addr): void {
    const stack = this.stackOf(address);
    this.set(stack, begun(stack));
  }

  /** Says that `returnAddress` was put at `slot` to be returned to, without a call: as new tasks find theirs. */
  plant(slot: Addr, returnAddress: Addr): void {
    this.push(undefined, slot, returnAddress);
  }

  // ---- What is live.

  /** The frames of the stack that `rsp` points into, innermost first. */
  onStack(rsp: Addr): TrueFrame[] {
    return framesOnStack(this.at(rsp));
  }

  /** The same with those of the stacks that execution came from. */
  across(rsp: Addr): TrueFrame[] {
    return framesOf(this.at(rsp));
  }

  /** Stacks of which anything is known. */
  get stackCount(): number {
    return this.stacks.size;
  }

  /** The chain of a stack, for the journal. */
  get(stack: number): Chain | undefined {
    return this.stacks.get(stack);
  }

  set(stack: number, chain: Chain | undefined): void {
    const before = this.stacks.get(stack);
    if (chain === before) return;
    this.journal?.note(stack, before);
    if (chain === undefined) this.stacks.delete(stack);
    else this.stacks.set(stack, chain);
    if (this.stacks.size <= MAX_STACKS) return;
    const [oldest] = this.stacks.keys();
    this.set(oldest!, undefined);
    this.journal?.settle(oldest!, undefined);
  }

  private push(call: Addr | undefined, slot: Addr, returnAddress: Addr): void {
    const stack = this.stackOf(slot);
    const outer = live(this.stacks.get(stack), stack, slot + 8);
    this.set(stack, called(outer, stack, call, slot, returnAddress));
  }

  private at(rsp: Addr): Chain | undefined {
    const stack = this.stackAt(rsp);
    return live(this.stacks.get(stack), stack, rsp);
  }

  /** The stack that `rsp` points into, where it may be one past the highest address. */
  private stackAt(rsp: Addr): number {
    return this.stackOf((rsp - 1) as Addr);
  }

  /** The number of the stack that holds `address`. */
  private stackOf(address: Addr): number {
    const known = this.registered.size === 0 ? undefined : this.registered.get(pageOf(address));
    // Odd, which no registered stack's is.
    return known ?? Math.floor(address / STACK_SIZE) * STACK_SIZE + 1;
  }
}

/** Whether setting rsp from a stack with chain `left` to `target`, where `chain` is live, moves what runs. */
function isMove(left: Chain, target: number, chain: Chain | undefined): boolean {
  const mark = chain?.frame.kind;
  if (mark !== undefined && mark !== "moved" && mark !== "begun") return false;
  if (find(left, (link) => link.stack === target && !isEntry(link)) !== undefined) return false;
  return mark !== "begun" || isEntry(left);
}

/** Whether a breakpoint's handler returns as if a call had been there: with one word more on the stack. */
function emulatesCall({ vector, rsp: interrupted, user }: InterruptFrame, rsp: Addr): boolean {
  return vector === BREAKPOINT && !user && rsp === interrupted - 8;
}
