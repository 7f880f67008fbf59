// Every path through code, from functions' starts and hints on, with the state of the stack before each instruction.
//
// Where paths meet, only what holds on all of them is kept, until nothing changes any more. So the order in which
// paths are followed does not matter.

import type { Addr } from "../../../base/addr.ts";
import { hex } from "../../../base/addr.ts";
import { refuse } from "../../../base/refuse.ts";
import type { OrcRule } from "../entry.ts";
import type { Code } from "./code.ts";
import { isCold, isPrefix } from "./code.ts";
import { after, type Step, tableOf } from "./effect.ts";
import type { Hint } from "./hint.ts";
import { JumpTables, type Target } from "./jumpTable.ts";
import { Noreturns } from "./noreturn.ts";
import { anchored, atCall, StackState } from "./state.ts";
import { place } from "./value.ts";

/** Execution may go on at `to`, with the stack as in `state`. */
export interface Edge {
  readonly to: Addr;
  readonly state: StackState;
}

/** A state that came to some place, by its rule, and the instruction that it came from. */
export interface Arrival {
  readonly from: Addr;
  readonly rule: OrcRule;
}

export class Flow {
  /** Before each instruction that is reached. */
  readonly states = new Map<Addr, StackState>();
  /** Where states met that have no rule in common: the first two that did. */
  readonly conflicts = new Map<Addr, readonly [Arrival, Arrival]>();
  private readonly code: Code;
  private readonly noreturns: Noreturns;
  private readonly tables: JumpTables;
  private readonly pending: Addr[] = [];
  /** Where the first state came from that reached a place. */
  private readonly origins = new Map<Addr, Addr>();
  /** By the address of a SAVE: the RESTOREs that refer to it. */
  private readonly restores = new Map<Addr, Addr[]>();

  constructor(code: Code) {
    this.code = code;
    this.noreturns = new Noreturns(code);
    this.tables = new JumpTables(code);
    this.pairSaves();
    for (const { address, whole } of code.functions)
      if (address === whole) this.meet({ to: address, state: atCall() }, address);
    for (const [at, hint] of code.parts.hints) {
      const state = hintedState(hint);
      if (state !== undefined) this.meet({ to: at, state }, at);
    }
    for (let at = this.pending.pop(); at !== undefined; at = this.pending.pop()) {
      for (const edge of this.edges(at)) this.meet(edge, at);
    }
  }

  /** Where execution may go from the instruction at `at`, which is reached. */
  edges(at: Addr): Edge[] {
    const state = this.states.get(at)!;
    const step = this.code.step(at);
    if (step === undefined) return [];
    const left = after(state, step);
    return this.successors(step, state)
      .filter((to) => !this.isMissing(at, to))
      .map((to) => ({ to, state: left }));
  }

  /** Where the instruction leads, be there code or not; not out of the function by a call, a jump or a return. */
  successors(step: Step, state: StackState): Addr[] {
    const { next, operands, ip } = step.instruction;
    const target = operands[0]?.kind === "target" ? operands[0].at : undefined;
    switch (step.effects.flow) {
      case "next":
      case "indirect-call":
        return [next];
      case "call":
        return target !== undefined && this.noreturns.returns(target) ? [next] : [];
      case "jump":
        return target === undefined || this.isTailCall(ip, target) ? [] : [target];
      case "conditional-jump":
        return target === undefined || this.isTailCall(ip, target) ? [next] : [next, target];
      case "indirect-jump":
        return this.tableTargets(step, state);
      case "return":
      case "undefined":
        return [];
    }
  }

  /** Whether a jump from `at` to `target` leaves the function, for another's start or for other code. */
  isTailCall(at: Addr, target: Addr): boolean {
    const to = this.code.functionStartingAt(target);
    if (to === undefined) return this.code.step(target) === undefined;
    return !isCold(to) && to.whole !== this.code.functionAt(at)?.whole;
  }

  /** Whether execution at `at` must not go on at `to`: another function begins there, or there is no code. */
  isMissing(at: Addr, to: Addr): boolean {
    return this.code.step(to) === undefined || this.fallsThrough(at, to);
  }

  fallsThrough(at: Addr, to: Addr): boolean {
    const from = this.code.functionAt(at);
    const next = this.code.functionStartingAt(to);
    const isNext = to === this.code.step(at)?.instruction.next;
    return isNext && next !== undefined && next.whole !== from?.whole && !(from && isPrefix(from));
  }

  private tableTargets({ instruction }: Step, state: StackState): Addr[] {
    const whole = this.code.functionAt(instruction.ip)?.whole;
    const [operand] = instruction.operands;
    const table = tableOf(state, instruction);
    const held = operand?.kind === "register" ? state.get(operand.reg) : undefined;
    const target: Target | undefined =
      table !== undefined
        ? { kind: "target", table, relative: false }
        : held?.kind === "target"
          ? held
          : undefined;
    return whole === undefined || target === undefined ? [] : this.tables.targets(target, whole);
  }

  private meet({ to, state }: Edge, from: Addr): void {
    const hint = this.code.parts.hints.get(to);
    const hinted = hint === undefined || hint.kind === "SAVE" ? state : hintedState(hint);
    if (hinted !== undefined && (hinted === state || !this.states.has(to))) this.arrive(to, hinted, from);
  }

  private arrive(to: Addr, state: StackState, from: Addr): void {
    const before = this.states.get(to);
    const joined = before?.join(state) ?? state;
    if (joined === before) return;
    if (before === undefined) this.origins.set(to, from);
    else if (joined.rule() === undefined) this.noteConflict(to, before, state, from);
    this.states.set(to, joined);
    this.pending.push(to);
    for (const restore of this.restores.get(to) ?? []) this.arrive(restore, joined, to);
  }

  private noteConflict(to: Addr, before: StackState, state: StackState, from: Addr): void {
    const [first, second] = [before.rule(), state.rule()];
    if (first === undefined || second === undefined || this.conflicts.has(to)) return;
    const met: [Arrival, Arrival] = [
      { from: this.origins.get(to)!, rule: first },
      { from, rule: second },
    ];
    met.sort((a, b) => a.from - b.from);
    this.conflicts.set(to, met);
  }

  private pairSaves(): void {
    let save: Addr | undefined;
    for (const [at, { kind }] of [...this.code.parts.hints].sort(([a], [b]) => a - b)) {
      if (kind === "SAVE") save = at;
      if (kind !== "RESTORE") continue;
      if (save === undefined || this.code.functionAt(save) !== this.code.functionAt(at)) {
        const what = "restores what none before it in its function saves";
        refuse("unwind-hint", { name: this.code.parts.name, at: hex(at), what });
      }
      const others = this.restores.get(save);
      if (others === undefined) this.restores.set(save, [at]);
      else others.push(at);
    }
  }
}

/** Undefined for hints that say no state of their own. */
function hintedState({ kind, offset, indirect }: Hint): StackState | undefined {
  switch (kind) {
    case "SAVE":
    case "RESTORE":
      return undefined;
    case "UNDEFINED":
    case "END_OF_STACK":
      return new StackState(kind);
    default: {
      if (!indirect) return anchored(kind, place("cfa", -offset));
      const link = place("link", 0);
      const state = anchored(kind, link);
      state.store(link, 8, place("cfa", -offset), true);
      return state;
    }
  }
}
