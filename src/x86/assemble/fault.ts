// Where a statement stands, and how a complaint about it leaves the assembler.
//
// Inside, every part throws `Fault` with what is wrong and nothing else; the statement in hand adds file,
// line and text. So no part needs to know where it is, and no message goes out without a place.

import { refuse } from "../../base/refuse.ts";

/** A line of a source; `from` is the statement that expanded into it, for macros and repetitions. */
export interface Place {
  readonly file: string;
  readonly line: number;
  readonly from?: { readonly what: string; readonly place: Place };
}

export interface Statement {
  readonly text: string;
  readonly place: Place;
}

/** What is wrong with the statement in hand. Never leaves the assembler: `within` makes a refusal of it. */
export class Fault extends Error {}

export function fail(problem: string): never {
  throw new Fault(problem);
}

/** `sched.S:12`, and for a line that a macro made `sched.S:3 (in macro save, sched.S:12)`. */
export function showPlace(place: Place): string {
  const here = `${place.file}:${place.line}`;
  return place.from ? `${here} (in ${place.from.what}, ${showPlace(place.from.place)})` : here;
}

/** Runs `act`; a Fault in it is refused with the statement's place and text. */
export function within<T>(statement: Statement, act: () => T): T {
  try {
    return act();
  } catch (error) {
    if (!(error instanceof Fault)) throw error;
    return refuse("assembly", {
      at: showPlace(statement.place),
      problem: error.message,
      text: statement.text,
    });
  }
}
