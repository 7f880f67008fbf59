// One real call through a trampoline, from a caller to the traced function's body, with the guest's own handler; and what
// the traced function finds then. Whatever comes between two instructions of it must not change that.

import { type Addr, toWord } from "../../base/addr.ts";
import { Refusal } from "../../base/refuse.ts";
import { isBroken, unlessBroken } from "../../kernel/broken.ts";
import type { TakenException } from "../../kernel/exception.ts";
import type { Panic } from "../../kernel/hypercall.ts";
import { describeExit, describeFault, type Exit } from "../../machine/exit.ts";
import { RFLAGS_AT_REST, STATUS_FLAGS } from "../../x86/register.ts";
import type { Bench, Trampoline } from "./bench.ts";
import { CONTRACTS, SAVED_REGISTERS } from "./contract.ts";
import { CALL_LIMIT } from "./crossing.ts";
import { type Difference, type Entry, readEntry } from "./judge.ts";
import type { State } from "./states.ts";

/** What went wrong, in words, with what shows it. */
export interface Trouble {
  readonly why: string;
  readonly differences: readonly Difference[];
  /** Of a walk: what it found, and what is true, innermost first. */
  readonly walked?: readonly string[];
  readonly true?: readonly string[];
}

/** What the traced function finds. */
interface Outcome {
  readonly registers: ReadonlyMap<string, bigint>;
  /** From rsp up to the stack's top. */
  readonly stack: BigUint64Array;
}

/** Instructions of an interrupt, or of a poke with what it waits for, or from there to the end. */
export const INTERRUPTION_LIMIT = 100_000;
const WORD = 8;

export class Passage {
  readonly bench: Bench;
  readonly trampoline: Trampoline;
  readonly state: State;
  /** The state at the site. */
  readonly entry: Entry;
  private readonly undisturbed: Outcome | Trouble;

  /** Begins a call, whose registers at the site are those of `state`, but for rbp and rsp, which are a real call's. */
  constructor(bench: Bench, trampoline: Trampoline, state: State) {
    this.bench = bench;
    this.trampoline = trampoline;
    this.state = state;
    const { vcpu, machine } = bench;
    bench.kernel.begin(vcpu, bench.task, bench.caller, []);
    vcpu.run({ until: bench.site.ip, budget: CALL_LIMIT });
    for (const name of SAVED_REGISTERS) if (name !== "rbp") vcpu.set(name, state.registers[name]);
    vcpu.rflags = RFLAGS_AT_REST | (state.rflags & STATUS_FLAGS);
    this.entry = readEntry(bench);
    const here = machine.snapshot();
    this.undisturbed = this.toBody();
    machine.restore(here);
    here.dispose();
  }

  /** Why nothing can be said of what comes between: the call does not even end when nothing does. */
  get trouble(): Trouble | undefined {
    return "why" in this.undisturbed ? this.undisturbed : undefined;
  }

  /** Calls `visit` at every boundary of the call: how many there are. It may leave the machine as it likes. */
  each(visit: (at: Addr) => void): number {
    const { machine, vcpu, kernel } = this.bench;
    const site = machine.snapshot();
    for (let count = 1; ; count++) {
      const here = machine.snapshot();
      visit(vcpu.rip);
      machine.restore(here);
      here.dispose();
      if (this.isOver) {
        machine.restore(site);
        site.dispose();
        return count;
      }
      const exit = vcpu.step();
      if (exit !== undefined) kernel.answer(vcpu, exit);
    }
  }

  /** From wherever the call is to its end: what differs from the undisturbed call's. */
  finish(): Trouble | undefined {
    const { undisturbed } = this;
    const outcome = this.toBody();
    if ("why" in outcome || "why" in undisturbed) return "why" in outcome ? outcome : undefined;
    const differences: Difference[] = [];
    for (const [what, expected] of undisturbed.registers) {
      const found = outcome.registers.get(what) ?? 0n;
      if (found !== expected) differences.push({ what, found, expected });
    }
    undisturbed.stack.forEach((expected, n) => {
      const found = outcome.stack[n] ?? 0n;
      if (found !== expected) differences.push({ what: `${WORD * n}(rsp)`, found, expected });
    });
    return differences.length === 0
      ? undefined
      : { why: "the traced function finds something else than without it", differences };
  }

  /** Whether the traced function's body is about to begin. */
  get isOver(): boolean {
    const { vcpu, body } = this.bench;
    return vcpu.rip === body && vcpu.rsp === this.entry.rsp;
  }

  private toBody(): Outcome | Trouble {
    const { bench } = this;
    const { kernel, vcpu, body } = bench;
    const end = vcpu.instructions + INTERRUPTION_LIMIT;
    while (!this.isOver) {
      const exit = kernel.run(vcpu, { until: body, budget: end - vcpu.instructions });
      if (exit.kind !== "reached") return strayed(bench, exit);
    }
    const { keptFlags, kept } = CONTRACTS[this.trampoline.kind];
    const { high } = bench.task.stack;
    const stack = bench.machine.memory.read(vcpu.rsp, high - vcpu.rsp);
    return {
      registers: new Map<string, bigint>([
        ...kept.map((name) => [name, vcpu.get(name)] as const),
        ["flags", vcpu.rflags & keptFlags],
        ["gs base", vcpu.gsBase],
      ]),
      stack: new BigUint64Array(stack.slice().buffer),
    };
  }
}

/** What `act` finds; or that it cannot go on, as the trampoline has written to what is the kernel's. */
export function attempt(act: () => Trouble | undefined): Trouble | undefined {
  try {
    const found = unlessBroken(act);
    return isBroken(found)
      ? { why: `the kernel's structures are broken: ${found.broken}`, differences: [] }
      : found;
  } catch (error) {
    if (!(error instanceof Refusal) || error.code !== "audit-astray") throw error;
    return { why: error.message, differences: [] };
  }
}

/** Why a call went no further than to `exit`. */
export function strayed(bench: Bench, exit: Exit | Panic): Trouble {
  const taken = exit.kind === "panic" ? undefined : bench.kernel.exception(bench.vcpu, exit);
  // Where there is no code, the call was sent.
  const differences =
    taken === undefined || bench.isText(taken.ip) ? [] : [addressFact("rip", taken.ip, bench.body)];
  return { why: wordsFor(bench, exit, taken), differences };
}

function wordsFor(bench: Bench, exit: Exit | Panic, taken: TakenException | undefined): string {
  if (exit.kind === "panic") return `the kernel panics: ${exit.text}`;
  if (exit.kind === "budget")
    return `the call has not come to its end after ${INTERRUPTION_LIMIT} instructions`;
  if (bench.kernel.returned(exit))
    return "the call returns without having come to the traced function's body";
  if (taken === undefined) return `the call goes astray: ${describeExit(exit, (at) => bench.describe(at))}`;
  return `${describeFault(taken.fault)} is raised at ${bench.describe(taken.ip)}`;
}

/** `at` for a list of what differs. */
function addressFact(what: string, found: Addr, expected: Addr): Difference {
  return { what, found: toWord(found), expected: toWord(expected) };
}
