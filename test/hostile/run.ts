// Cases one after another: each ends with a value, whatever happened on its machine before, and costs no memory in the end.
//
// A machine serves EPOCH cases and is then dropped. Of some cases it is asked whether a new machine, and one that only
// steps, come to the same: a stale translation or a wrong count shows there, long before it crashes anything.

import type { MachineUsage } from "../../src/machine/machine.ts";
import { type Mode, type Outcome, Subject, type Visibility } from "./subject.ts";

/** Cases that a machine serves. Case N can be had again by executing those from the epoch's start to N. */
export const EPOCH = 40;
/** Of so many cases, one is executed by stepping as well, and one on a new machine. */
const COMPARE_EVERY = 4;
const FRESH_EVERY = 37;

export interface HostileOptions {
  readonly seed: number;
  readonly first: number;
  /** Asked before each epoch, with the case's number: whether to go on. */
  readonly more: (number: number) => boolean;
  /** After each epoch. */
  readonly onEpoch?: (progress: Progress) => void;
}

export interface Progress {
  readonly cases: number;
  readonly instructions: number;
  /** Of the budgets: instructions, and deliveries of exceptions and interrupts. */
  readonly spent: number;
  /** The most that a machine had of each at its end. */
  readonly usage: MachineUsage;
}

/** What went wrong, with the case that did it. */
export class HostileError extends Error {
  readonly number: number;

  constructor(number: number, message: string) {
    super(`case ${number}: ${message}`);
    this.number = number;
  }
}

/** One machine of four has vCPUs that may see stores to code late. */
function visibilityOf(number: number): Visibility {
  return Math.floor(number / EPOCH) % 4 === 3 ? "stale" : "coherent";
}

/** Executes cases for as long as `more` says. Throws HostileError for the first that does harm. */
export function runHostile({ seed, first, more, onEpoch }: HostileOptions): Progress {
  const total = { instructions: 0, spent: 0 };
  let number = first;
  let usage: MachineUsage | undefined;
  const add = ({ instructions, spent }: Outcome) => {
    total.instructions += instructions;
    total.spent += spent;
  };
  const stepped = new SteppedSubjects();
  while (more(number)) {
    const visibility = visibilityOf(number);
    const subject = new Subject("run", visibility);
    for (const end = number - (number % EPOCH) + EPOCH; number < end; number++) {
      const outcome = attempt(number, () => subject.execute(seed, number));
      add(outcome);
      const compareTo = (how: string, other: Subject) => {
        const again = attempt(number, () => other.execute(seed, number));
        add(again);
        compare(number, how, outcome, again);
      };
      if (number % COMPARE_EVERY === 0) compareTo("stepped", stepped.get(visibility));
      if (number % FRESH_EVERY === 0) {
        const fresh = new Subject("run", visibility);
        compareTo("on a new machine", fresh);
        fresh.machine.dispose();
      }
    }
    usage = most(usage, subject.machine.usage);
    subject.machine.dispose();
    onEpoch?.({ cases: number - first, ...total, usage });
  }
  stepped.dispose();
  if (usage === undefined) throw new RangeError("no cases");
  return { cases: number - first, ...total, usage };
}

/** Machines that only step, each for a while. */
class SteppedSubjects {
  private readonly subjects = new Map<Visibility, { readonly subject: Subject; uses: number }>();

  get(visibility: Visibility): Subject {
    let found = this.subjects.get(visibility);
    if (found === undefined || found.uses === EPOCH) {
      found?.subject.machine.dispose();
      found = { subject: new Subject("stepped", visibility), uses: 0 };
      this.subjects.set(visibility, found);
    }
    found.uses++;
    return found.subject;
  }

  dispose(): void {
    for (const { subject } of this.subjects.values()) subject.machine.dispose();
  }
}

function attempt(number: number, act: () => Outcome): Outcome {
  try {
    return act();
  } catch (error) {
    throw new HostileError(number, error instanceof Error ? (error.stack ?? error.message) : String(error));
  }
}

function compare(number: number, how: string, outcome: Outcome, again: Outcome): void {
  if (again.digest === outcome.digest) return;
  const at = outcome.lines.findIndex((line, n) => line !== again.lines[n]);
  throw new HostileError(
    number,
    `another outcome ${how}, from act ${at} on:\n  ${outcome.lines[at]}\n  ${again.lines[at]} (${how})`,
  );
}

function most(a: MachineUsage | undefined, b: MachineUsage): MachineUsage {
  if (a === undefined) return b;
  const entries = Object.entries(b).map(([key, value]) => [
    key,
    Math.max(value, a[key as keyof MachineUsage]),
  ]);
  return Object.fromEntries(entries) as unknown as MachineUsage;
}

/** Case `number` alone, after those that its machine had before it. */
export function replay(seed: number, number: number, mode: Mode): Outcome {
  const subject = new Subject(mode, visibilityOf(number));
  for (let n = number - (number % EPOCH); n < number; n++) subject.execute(seed, n);
  return subject.execute(seed, number);
}
