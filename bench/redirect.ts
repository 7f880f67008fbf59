// What a call of a traced or redirected function costs, exactly: `fentrylab bench redirect`.
//
// leaf (asm/shapes.S), whose body is two instructions behind its call site, is called once in each state of the site. Counted
// is what a trace has from its first instruction to the return to its caller, both counted. Guest code is deterministic:
// a call costs the same every time, so nothing is repeated, and no figure has a spread. What TypeScript does for a
// handler of its own is no instruction. Beside it, where there is one, the figure of a real kernel.

import type { Addr } from "../src/base/addr.ts";
import { bug } from "../src/base/refuse.ts";
import { Lab } from "../src/lab.ts";
import type { TraceEvent } from "../src/machine/trace.ts";
import { CASES, type Kind, LINUX, Scene } from "./redirectCases.ts";
import type { Progress } from "./spread.ts";

export type Body = "old" | "new";

/** By what they return for 1. */
const BODIES: ReadonlyMap<bigint, Body> = new Map([
  [2n, "old"],
  [101n, "new"],
]);

/** What a call came to. */
export interface CallCost {
  /** Which one was executed. */
  readonly body: Body;
  readonly instructions: number;
  /** Accesses to memory, in pieces of at most 8 bytes: those of calls and returns to the stack, too. */
  readonly reads: number;
  readonly writes: number;
  /** Jumps, taken or not, calls and returns. */
  readonly branches: number;
  /** Of code: how long all instructions are together, each counted once, that were executed. */
  readonly bytes: number;
  /** The instructions, by the code that they are part of, in the order of execution. */
  readonly parts: readonly { readonly where: string; readonly instructions: number }[];
}

export interface RedirectRow extends CallCost {
  readonly kind: Kind;
  readonly state: string;
  /** Instructions more than with a NOP at the site. */
  readonly over: number;
  /** The same in the real kernel; null where nobody has measured it. */
  readonly linux: number | null;
}

export interface RedirectReport {
  readonly function: string;
  /** The one that the column `linux` is of. */
  readonly linuxKernel: string;
  readonly rows: readonly RedirectRow[];
}

/** Counts for less than a second. */
export async function benchRedirect({
  progress = () => {},
}: {
  readonly progress?: Progress;
} = {}): Promise<RedirectReport> {
  const lab = await Lab.open();
  const { machine } = lab;
  const untouched = machine.snapshot();
  const costs = CASES.map(({ state, target = "leaf", arrange }, n) => {
    arrange(new Scene(lab));
    const cost = countCall(lab, lab.symbol(target).address);
    machine.restore(untouched);
    progress(n + 1, CASES.length, state);
    return cost;
  });
  lab.dispose();
  const nop = costs[CASES.findIndex(({ state }) => state === "NOP")] ?? bug("nothing is counted with a NOP");
  return {
    function: "leaf",
    linuxKernel: LINUX.kernel,
    rows: CASES.map(({ kind, state, linux }, n) => {
      const cost = costs[n]!;
      const over = cost.instructions - nop.instructions;
      return { kind, state, ...cost, over, linux: linux === undefined ? null : linux - LINUX.nop };
    }),
  };
}

function countCall(lab: Lab, target: Addr): CallCost {
  const count = new Count(lab);
  const trace = lab.machine.trace(
    { instructions: true, accesses: true, branches: true, calls: true },
    (event) => count.add(event),
  );
  const { result, instructions } = lab.call(target, [1n]);
  trace.stop();
  const body = BODIES.get(result) ?? bug(`leaf(1) returned ${result}`);
  const cost = { body, ...count.cost };
  if (cost.instructions !== instructions)
    bug(`the trace has ${cost.instructions} instructions, and ${instructions} were executed`);
  return cost;
}

/** Of a trace, what is not of the code that the laboratory calls with. */
class Count {
  private readonly lab: Lab;
  private readonly caller: { readonly address: Addr; readonly size: number };
  private readonly lengths = new Map<Addr, number>();
  private readonly parts = new Map<string, number>();
  private readonly counts = { reads: 0, writes: 0, branches: 0 };

  constructor(lab: Lab) {
    this.lab = lab;
    this.caller = lab.symbol("lab_call");
  }

  add(event: TraceEvent): void {
    const { address, size } = this.caller;
    if (event.ip >= address && event.ip < address + size) return;
    switch (event.kind) {
      case "instruction": {
        const where = placeOf(this.lab, event.ip);
        this.lengths.set(event.ip, event.length);
        this.parts.set(where, (this.parts.get(where) ?? 0) + 1);
        break;
      }
      case "read":
        this.counts.reads++;
        break;
      case "write":
        this.counts.writes++;
        break;
      case "branch":
      case "call":
      case "return":
        this.counts.branches++;
        break;
      case "delivery":
        bug("a call is interrupted while it is counted");
    }
  }

  get cost(): Omit<CallCost, "body"> {
    const parts = [...this.parts].map(([where, instructions]) => ({ where, instructions }));
    const sum = (numbers: Iterable<number>) => [...numbers].reduce((total, each) => total + each, 0);
    return {
      instructions: sum(this.parts.values()),
      ...this.counts,
      bytes: sum(this.lengths.values()),
      parts,
    };
  }
}

/** The function, or what a trampoline is a copy of. */
function placeOf({ code }: Lab, at: Addr): string {
  const range = code.rangeAt(at)?.range;
  const template = range?.template && code.symbolAt(range.template);
  if (range !== undefined) return template === undefined ? range.name : `copy of ${template.symbol.name}`;
  return code.symbolAt(at)?.symbol.name ?? code.describe(at);
}

const FIGURES = ["instructions", "over", "reads", "writes", "branches", "bytes", "linux"] as const;

export function renderRedirectReport({ function: name, linuxKernel, rows }: RedirectReport): string {
  const line = (kind: string, state: string, figures: readonly (string | number)[]) => {
    const cells = figures.map((figure, n) => String(figure).padStart(FIGURES[n]!.length + 2));
    return `${kind.padEnd(KIND_WIDTH)}  ${state.padEnd(stateWidth)}${cells.join("")}`.trimEnd();
  };
  const stateWidth = Math.max(...rows.map(({ state }) => state.length));
  const signed = (figure: number | null) => (figure === null ? "" : figure > 0 ? `+${figure}` : `${figure}`);
  const lines = rows.map((row, n) => {
    const { kind, state, instructions, over, reads, writes, branches, bytes, linux } = row;
    const figures = [instructions, signed(over), reads, writes, branches, bytes, signed(linux)];
    return line(kind === rows[n - 1]?.kind ? "" : kind, state, figures);
  });
  return [
    `One call of ${name}(), from its first instruction to its return, both counted. Executed code is counted: no noise.`,
    `over: instructions more than with a NOP. bytes: of the code that was executed. linux: what over is in`,
    `${linuxKernel}, where a patched function's calls go through its handler for ever.`,
    "",
    line("", "", FIGURES),
    ...lines,
    "",
  ].join("\n");
}

const KIND_WIDTH = "redirect".length;
