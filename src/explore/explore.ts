// Every way that a small system can go: from each of its states, every answer to every question that its next step asks.
//
// States are told apart by the system's key, of which the machine's hash is most: two in 2^64 that are different and
// have the same would be taken for one, so that of a million states some are missed with a chance of 3 in 10^8. A system
// whose step is not a function of its state and of the answers is not explored by this: it is a bug of the system's.

import type { ChoiceKind, Chooser } from "../base/chooser.ts";
import type { Machine } from "../machine/machine.ts";
import type { Snapshot } from "../machine/snapshot.ts";
import { type Choices, Recorder } from "./chooser.ts";

/** What came of a step. */
export type Advance =
  | { readonly kind: "on" }
  /** There was none to be made: everybody is done, and nothing is wrong with that. */
  | { readonly kind: "over" }
  | { readonly kind: "wrong"; readonly what: string };

export interface Explorable {
  readonly machine: Machine;
  /** Of the present state. */
  key(): string;
  /** Goes a step on, or finds that there is none. What could go otherwise is asked of `chooser`. */
  advance(chooser: Chooser): Advance;
}

export interface ExploreOptions {
  /** `breadth` finds one of the shortest ways to what is wrong; `depth` needs less memory, and less time for each state. */
  readonly order?: "depth" | "breadth";
  readonly onProgress?: (states: number) => void;
}

export interface Exploration {
  /** Different ones that were reached, the first included; up to the finding, if there is one. */
  readonly states: number;
  readonly transitions: number;
  /** Steps of the longest way that was gone. */
  readonly deepest: number;
  /** Of the states, those that are over. */
  readonly ends: number;
  readonly finding: Finding | undefined;
  /** To a state that is over; of all ways if there is none. */
  readonly longest: Way;
}

/** From the state in which the exploration began. */
export interface Way {
  readonly steps: number;
  readonly choices: Choices;
}

export interface Finding extends Way {
  readonly what: string;
}

/** A state that was reached, and how. */
interface Reached {
  readonly number: number;
  readonly depth: number;
  readonly from: Reached | undefined;
  /** In this step. */
  readonly answers: Choices | undefined;
}

interface Waiting {
  readonly reached: Reached;
  readonly snapshot: Snapshot;
}

const PROGRESS_EVERY = 500;

/**
 * Goes every way from the present state on, until something is wrong. Wrong is as well what never ends: a state from which
 * no way leads to one that is over.
 */
export function explore(
  system: Explorable,
  { order = "depth", onProgress }: ExploreOptions = {},
): Exploration {
  const { machine } = system;
  const states: Reached[] = [{ number: 0, depth: 0, from: undefined, answers: undefined }];
  const numbers = new Map<string, number>([[system.key(), 0]]);
  const graph = new Graph();
  const waiting: Waiting[] = [{ reached: states[0]!, snapshot: machine.snapshot() }];
  let [transitions, ends, taken] = [0, 0, 0];
  let [deepest, longest] = [states[0]!, states[0]!];
  const result = (finding?: Finding): Exploration => {
    for (const { snapshot } of waiting.slice(taken)) snapshot.dispose();
    const way = wayTo(ends > 0 ? longest : deepest);
    return { states: states.length, transitions, deepest: deepest.depth, ends, finding, longest: way };
  };
  while (waiting.length > taken) {
    const { reached, snapshot } = order === "depth" ? waiting.pop()! : waiting[taken++]!;
    const branches = new Branches();
    do {
      machine.restore(snapshot);
      const recorder = new Recorder(branches);
      const advance = system.advance(recorder);
      const answers = recorder.choices;
      if (advance.kind === "over") {
        ends++;
        if (reached.depth > longest.depth) longest = reached;
        graph.end(reached.number);
        break;
      }
      transitions++;
      const key = system.key();
      const known = numbers.get(key);
      const number = known ?? states.length;
      const next = { number, depth: reached.depth + 1, from: reached, answers };
      if (next.depth > deepest.depth) deepest = next;
      if (advance.kind === "wrong") {
        snapshot.dispose();
        return result({ what: advance.what, ...wayTo(next) });
      }
      graph.add(reached.number, number);
      if (known !== undefined) continue;
      numbers.set(key, number);
      states.push(next);
      waiting.push({ reached: next, snapshot: machine.snapshot() });
      if (states.length % PROGRESS_EVERY === 0) onProgress?.(states.length);
    } while (branches.next());
    snapshot.dispose();
  }
  const endless = graph.endless(states.length);
  return result(
    endless === undefined
      ? undefined
      : { what: "from here on no way leads to an end", ...wayTo(states[endless]!) },
  );
}

function wayTo(last: Reached): Way {
  const steps: Choices[] = [];
  for (let at: Reached | undefined = last; at?.answers !== undefined; at = at.from) steps.push(at.answers);
  const kinds = steps[0]?.kinds ?? [];
  const answers = steps.reverse().flatMap((step) => step.answers);
  return { steps: last.depth, choices: { kinds, answers } };
}

/** Gives all combinations of answers one after the other, whatever questions the answers before lead to. */
class Branches implements Chooser {
  private readonly given: { readonly answer: number; readonly count: number }[] = [];
  private asked = 0;

  choose(_: ChoiceKind, count: number): number {
    const answer = this.given[this.asked]?.answer ?? 0;
    this.given[this.asked++] = { answer, count };
    return answer;
  }

  /** Turns to the next combination; false if there is none. */
  next(): boolean {
    this.asked = 0;
    for (let last = this.given.pop(); last !== undefined; last = this.given.pop()) {
      const answer = last.answer + 1;
      if (answer === last.count) continue;
      this.given.push({ answer, count: last.count });
      return true;
    }
    return false;
  }
}

/** Which states lead to which, by their numbers. */
class Graph {
  private readonly before: number[][] = [];
  private readonly ends: number[] = [];

  add(from: number, to: number): void {
    this.before[to] ??= [];
    this.before[to].push(from);
  }

  end(number: number): void {
    this.ends.push(number);
  }

  /** The first of `count` states from which no end is reached. */
  endless(count: number): number | undefined {
    const ending = new Uint8Array(count);
    const look = [...this.ends];
    for (let at = look.pop(); at !== undefined; at = look.pop()) {
      if (ending[at] === 1) continue;
      ending[at] = 1;
      look.push(...(this.before[at] ?? []));
    }
    const first = ending.indexOf(0);
    return first < 0 ? undefined : first;
  }
}
