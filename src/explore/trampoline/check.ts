// A trampoline against its contract, each clause by execution: over register states, at every boundary of a call, and in
// a copy. The site calls the trampoline while this is done.

import type { Addr } from "../../base/addr.ts";
import type { Bench, Trampoline } from "./bench.ts";
import { CLAUSE_NAMES, type Clause, CONTRACTS } from "./contract.ts";
import { withCopy } from "./copy.ts";
import { type Cost, measure } from "./cost.ts";
import { type Crossed, Crossings, type Failure, SERIES, type Series } from "./crossing.ts";
import { Finder } from "./freeing.ts";
import { Interruptions } from "./interruptions.ts";
import { attempt, INTERRUPTION_LIMIT, Passage, strayed, type Trouble } from "./passage.ts";
import { Phases, pokeWithin } from "./poking.ts";
import { makeState } from "./states.ts";
import { Walks } from "./walks.ts";
import { Watch } from "./watch.ts";

export interface CheckOptions {
  /** Register states in each series. */
  readonly cases: number;
  readonly seed: number;
  readonly onProgress?: (what: string, done: number) => void;
}

/** What shows that a clause does not hold. */
export interface Evidence extends Trouble {
  /** The instruction to look at; or the boundary at which something came between. */
  readonly at: Addr;
  /** Of the register state. */
  readonly seed: number;
}

export interface Verdict {
  readonly clause: Clause;
  /** Null: nothing can be said, as calls do not even end by themselves. */
  readonly holds: boolean | null;
  /** What was executed. */
  readonly executed: string;
  /** The first, of a clause that does not hold. */
  readonly evidence: Evidence | undefined;
}

export interface Checked {
  readonly verdicts: readonly Verdict[];
  /** Undefined if a call does not end. */
  readonly cost: Cost | undefined;
  /** Instructions of the trampoline that were executed. */
  readonly reached: ReadonlySet<Addr>;
}

/** States of these are tried in the copy; in the original, the rest. */
const COPY_CASES = 64;
const PROGRESS_EVERY = 256;
const count = (n: number, what: string) => `${n.toLocaleString("en-US")} ${what}${n === 1 ? "" : "s"}`;

export class TrampolineCheck {
  private readonly bench: Bench;
  private readonly trampoline: Trampoline;
  private readonly options: CheckOptions;
  private readonly evidence = new Map<Clause, Evidence>();
  private readonly executed = new Map<Clause, string>();
  private readonly reached = new Set<Addr>();

  constructor(bench: Bench, trampoline: Trampoline, options: CheckOptions) {
    this.bench = bench;
    this.trampoline = trampoline;
    this.options = options;
  }

  /** Nothing of what calls do is left. */
  run(): Checked {
    const { machine } = this.bench;
    const before = machine.snapshot();
    try {
      this.states();
      machine.restore(before);
      return this.judge();
    } finally {
      machine.restore(before);
      before.dispose();
    }
  }

  private judge(): Checked {
    let passage: Passage | undefined;
    const trouble = attempt(() => {
      passage = this.begin();
      return passage.trouble;
    });
    let cost: Cost | undefined;
    if (passage !== undefined && trouble === undefined) {
      cost = measure(this.bench, this.trampoline);
      this.boundaries(passage);
      this.recursion(passage);
      this.position();
    } else if (trouble !== undefined && this.evidence.size === 0)
      this.fail("ends", trouble, this.bench.site.ip);
    const unknown = trouble?.why;
    const verdicts = CLAUSE_NAMES.map((clause): Verdict => {
      const evidence = this.evidence.get(clause);
      const executed = this.executed.get(clause);
      if (executed !== undefined || evidence !== undefined)
        return { clause, holds: evidence === undefined, executed: executed ?? "", evidence };
      return { clause, holds: null, executed: `nothing: ${unknown ?? "no call comes so far"}`, evidence };
    });
    return { verdicts, cost, reached: this.reached };
  }

  // ---- Over register states.

  private states(): void {
    const { bench, trampoline, options } = this;
    const crossings = new Crossings(bench, trampoline);
    const ended = new Map<Series, number>();
    let [handled, begun] = [0, 0];
    bench.kernel.begin(bench.vcpu, bench.task, bench.caller, []);
    crossings.traced(() => {
      for (const series of crossings.series) {
        let count = 0;
        for (let n = 0; n < options.cases && !this.evidence.has("ends"); n++) {
          if (n % PROGRESS_EVERY === 0) this.progress(`states, ${series}`, n);
          const crossed = this.cross(crossings, series, n);
          begun++;
          if (crossed.ended) count++;
          if (series === "nothing" && crossed.handled) handled++;
        }
        ended.set(series, count);
      }
    });
    const [kept = 0, sent, changed = 0] = SERIES.map((series) => ended.get(series));
    const all = kept + (sent ?? 0) + changed;
    const say = (clause: Clause, calls: number, what: string) => {
      if (calls > 0) this.executed.set(clause, what);
    };
    const states = count(kept, "register state");
    say("registers", kept, states);
    say("flags", kept, states);
    for (const clause of ["arguments", "pt_regs", "alignment"] as const)
      say(clause, handled, count(handled, "register state"));
    const stay = count(kept, "call");
    const redirected = sent?.toLocaleString("en-US");
    say(
      "ip",
      sent ?? kept,
      sent === undefined ? stay : `${stay} that stay, ${redirected} that are redirected`,
    );
    say("changes", changed, `${count(changed, "register state")}, every register that may be changed`);
    say("stack", all, `${count(all, "call")}, every store of ${count(this.reached.size, "instruction")}`);
    say("ends", begun, count(begun, "call"));
  }

  private cross(crossings: Crossings, series: Series, n: number): Crossed {
    const state = makeState(this.options.seed + n, CONTRACTS[this.trampoline.kind]);
    const crossed = crossings.cross(state, series);
    for (const at of crossed.reached) this.reached.add(at);
    for (const failure of crossed.failures)
      if (!this.evidence.has(failure.clause)) this.evidence.set(failure.clause, failure);
    return crossed;
  }

  // ---- At every boundary.

  private begin(): Passage {
    const { bench, trampoline, options } = this;
    return new Passage(bench, trampoline, makeState(options.seed, CONTRACTS[trampoline.kind]));
  }

  private boundaries(passage: Passage): void {
    const { bench } = this;
    const walks = new Walks(bench);
    const interruptions = new Interruptions(passage);
    const finder = new Finder(bench, this.trampoline);
    const known = new Set(this.evidence.keys());
    let done = 0;
    const boundaries = passage.each((at) => {
      this.progress("boundaries", done++);
      this.try(
        "unwind",
        at,
        () => walks.live() ?? (at === bench.framed ? walks.byFramePointer() : undefined),
      );
      this.try("poked", at, () => finder.look());
      this.try("interrupted", at, () => interruptions.interrupted());
      this.aside("reentered", at, () => interruptions.reentered(known));
      this.try("poked", at, () => pokeWithin(passage));
    });
    const phases = new Phases(bench, this.trampoline, known);
    this.try("poked", bench.site.ip, () => phases.run());
    const at = count(boundaries, "boundary").replace("boundarys", "boundaries");
    const { interrupts, preemptions, walks: inside, calls } = interruptions.done;
    this.executed.set("unwind", `${at}, ${count(walks.count, "walk")}`);
    this.executed.set(
      "interrupted",
      `${at}, ${count(interrupts, "interrupt")}, ${count(preemptions, "preemption")}, ${count(inside, "walk")}`,
    );
    this.executed.set("reentered", `${at}, ${count(calls, "call")} from interrupts`);
    this.executed.set(
      "poked",
      `${at}, rewritten to a NOP and back at each, and ${count(phases.count, "phase")} of that`,
    );
  }

  /** The handler calls the traced function. */
  private recursion(passage: Passage): void {
    const { bench } = this;
    const { machine, vcpu, kernel } = bench;
    const before = machine.snapshot();
    const watch = new Watch(bench, this.trampoline, new Set(this.evidence.keys()));
    machine.memory.writeWord(bench.deeper, 1n);
    const follow = (): Trouble | undefined => {
      for (let steps = 0; steps < INTERRUPTION_LIMIT; steps++) {
        const trouble = watch.look();
        if (trouble !== undefined) return trouble;
        if (passage.isOver && watch.begun === 1)
          return {
            why: "the handler was not called, which was to call the traced function",
            differences: [],
          };
        if (passage.isOver) return passage.finish();
        const exit = vcpu.step();
        const left = exit === undefined ? "answered" : kernel.answer(vcpu, exit);
        if (left !== "answered") return strayed(bench, left);
      }
      return { why: "the call does not end", differences: [] };
    };
    const trouble = attempt(follow);
    if (trouble !== undefined) this.fail("recursion", trouble, vcpu.rip);
    const { begun, handled } = watch;
    this.executed.set(
      "recursion",
      `${count(begun, "call")} inside one another, the handler called ${count(handled, "time")}`,
    );
    machine.restore(before);
    before.dispose();
  }

  // ---- Elsewhere.

  private position(): void {
    const { bench, options } = this;
    const known = new Set(this.evidence.keys());
    const cases = Math.min(options.cases, COPY_CASES);
    let calls = 0;
    withCopy(bench, this.trampoline, (copy) => {
      const crossings = new Crossings(bench, copy);
      crossings.traced(() => {
        for (const series of crossings.series)
          for (let n = 0; n < cases && !this.evidence.has("position"); n++) {
            const { failures } = crossings.cross(makeState(options.seed + n, CONTRACTS[copy.kind]), series);
            calls++;
            if (failures.some(({ clause }) => clause === "ends") && known.has("ends")) return;
            const failure = failures.find(({ clause }) => !known.has(clause));
            if (failure !== undefined) this.evidence.set("position", this.inOriginal(copy, failure));
          }
      });
    });
    this.executed.set("position", `${count(calls, "call")} through a copy, without the original`);
  }

  /** What failed in the copy, at the instruction of the original. */
  private inOriginal(copy: Trampoline, failure: Failure): Evidence {
    const at = (failure.at - copy.entry + this.trampoline.entry) as Addr;
    return { ...failure, why: `in the copy, ${failure.why}`, at };
  }

  /** Tries a clause that has not failed yet. */
  private try(clause: Clause, at: Addr, act: () => Trouble | undefined): void {
    if (this.evidence.has(clause)) return;
    const trouble = attempt(act);
    if (trouble !== undefined) this.fail(clause, trouble, at);
  }

  /** The same for what does not put the machine back itself. */
  private aside(clause: Clause, at: Addr, act: () => Trouble | undefined): void {
    const { machine } = this.bench;
    const here = machine.snapshot();
    this.try(clause, at, act);
    machine.restore(here);
    here.dispose();
  }

  private fail(clause: Clause, trouble: Trouble, at: Addr): void {
    this.evidence.set(clause, { ...trouble, at, seed: this.options.seed });
  }

  private progress(what: string, done: number): void {
    this.options.onProgress?.(what, done);
  }
}
