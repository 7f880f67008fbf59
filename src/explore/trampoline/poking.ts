// The site is rewritten while a call is somewhere in the trampoline, and called in every phase of being rewritten.

import type { Bench, Trampoline } from "./bench.ts";
import type { Clause } from "./contract.ts";
import { INTERRUPTION_LIMIT, type Passage, strayed, type Trouble } from "./passage.ts";
import { Watch } from "./watch.ts";

/** Steps and instructions until the site is what it is to be. */
const POKE_LIMIT = 50_000;

/** Rewrites the site to a NOP and back to a call from where the CPU is, then sees the call through. */
export function pokeWithin(passage: Passage): Trouble | undefined {
  const { bench, trampoline } = passage;
  return lively(bench, () => {
    bench.ftrace.unregister(trampoline.ops);
    const off = drive(bench, "nop");
    if (off === undefined) bench.ftrace.register(trampoline.ops);
    const trouble = off ?? drive(bench, "call") ?? passage.finish();
    return trouble && { ...trouble, why: `the site was rewritten before this instruction: ${trouble.why}` };
  });
}

/** Does what is pending, and lets the CPU execute where that waits for it, until the site is a `kind`. */
function drive(bench: Bench, kind: "nop" | "call"): Trouble | undefined {
  const { agenda } = bench.kernel;
  for (let n = 0; n < POKE_LIMIT; n++) {
    const [next] = agenda.ready();
    if (next !== undefined) agenda.step(next);
    else if (bench.site.target.kind === kind) return undefined;
    else {
      const trouble = step(bench);
      if (trouble !== undefined) return trouble;
    }
  }
  return { why: "the site cannot be rewritten: a CPU does not serialise", differences: [] };
}

/** Calls the traced function after each step of the site being switched off, and of it being switched on. */
export class Phases {
  /** Calls that were made. */
  count = 0;
  private readonly bench: Bench;
  private readonly trampoline: Trampoline;
  private readonly known: ReadonlySet<Clause>;

  constructor(bench: Bench, trampoline: Trampoline, known: ReadonlySet<Clause>) {
    this.bench = bench;
    this.trampoline = trampoline;
    this.known = known;
  }

  /** The site is a call, and is one again afterwards. */
  run(): Trouble | undefined {
    const { bench, trampoline } = this;
    const { ftrace, kernel } = bench;
    return lively(bench, () => {
      kernel.begin(bench.vcpu, bench.task, bench.caller, []);
      ftrace.unregister(trampoline.ops);
      const off = this.phases("nop");
      if (off !== undefined) return off;
      ftrace.register(trampoline.ops);
      return this.phases("call");
    });
  }

  private phases(kind: "nop" | "call"): Trouble | undefined {
    const { bench } = this;
    const { agenda } = bench.kernel;
    for (let n = 0; n < POKE_LIMIT; n++) {
      const [next] = agenda.ready();
      if (next === undefined && bench.site.target.kind === kind) return undefined;
      const what = agenda.pending.find(({ strand }) => strand === next)?.what;
      if (next === undefined) {
        const trouble = step(bench);
        if (trouble !== undefined) return trouble;
        continue;
      }
      agenda.step(next);
      const trouble = this.call();
      if (trouble !== undefined)
        return { ...trouble, why: `${trouble.why}, when this had just been done: ${what}` };
    }
    return { why: "the site cannot be rewritten: a CPU does not serialise", differences: [] };
  }

  /** One call from here, and back. */
  private call(): Trouble | undefined {
    const { bench, trampoline, known } = this;
    const { machine, vcpu, kernel } = bench;
    const here = machine.snapshot();
    const watch = new Watch(bench, trampoline, known);
    this.count++;
    try {
      for (let steps = 0; steps < INTERRUPTION_LIMIT; steps++) {
        const trouble = watch.look();
        if (trouble !== undefined) return trouble;
        const exit = vcpu.step();
        if (exit === undefined) continue;
        if (kernel.returned(exit))
          return watch.ended === 1
            ? undefined
            : { why: "the traced function was not called", differences: [] };
        const left = kernel.answer(vcpu, exit);
        if (left !== "answered") return strayed(bench, left);
      }
      return { why: "the call does not end", differences: [] };
    } finally {
      machine.restore(here);
      here.dispose();
    }
  }
}

function step(bench: Bench): Trouble | undefined {
  const exit = bench.vcpu.step();
  const left = exit === undefined ? "answered" : bench.kernel.answer(bench.vcpu, exit);
  return left === "answered" ? undefined : strayed(bench, left);
}

/** While `act` runs, what is on the agenda is done a step at a time. Afterwards everything is as it was. */
function lively(bench: Bench, act: () => Trouble | undefined): Trouble | undefined {
  const { machine, kernel } = bench;
  const before = machine.snapshot();
  kernel.agenda.live = true;
  try {
    return act();
  } finally {
    kernel.agenda.live = false;
    machine.restore(before);
    before.dispose();
  }
}
