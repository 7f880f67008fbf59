// `.if` and its kin: which statements count.
//
// A condition inside one that does not hold is not looked at, only counted. Refuses a second `.else`.

import type { DirectiveContext } from "./directive.ts";
import { fail, type Statement } from "./fault.ts";

type Test = (text: string, context: DirectiveContext) => boolean;

const defined: Test = (text, { symbols }) => {
  const symbol = symbols.find(text.trim());
  return symbol !== undefined && (symbol.label !== null || symbol.value !== null);
};
const same: Test = (text) => {
  const [a = "", b = ""] = text.split(",").map((side) => side.trim().replace(/^(["'])(.*)\1$/s, "$2"));
  return a === b;
};
const compare =
  (holds: (value: number) => boolean): Test =>
  (text, context) =>
    holds(context.number(text));

const TESTS: Readonly<Record<string, Test>> = {
  ".if": compare((value) => value !== 0),
  ".ifne": compare((value) => value !== 0),
  ".ifeq": compare((value) => value === 0),
  ".ifgt": compare((value) => value > 0),
  ".ifge": compare((value) => value >= 0),
  ".iflt": compare((value) => value < 0),
  ".ifle": compare((value) => value <= 0),
  ".ifdef": defined,
  ".ifndef": (text, context) => !defined(text, context),
  ".ifnotdef": (text, context) => !defined(text, context),
  ".ifb": (text) => text.trim() === "",
  ".ifnb": (text) => text.trim() !== "",
  ".ifc": same,
  ".ifnc": (text, context) => !same(text, context),
};

/** One `.if` … `.endif`. */
export class Condition {
  /** The statements here count, as far as this condition goes. */
  active: boolean;
  /** Where it opened. */
  readonly statement: Statement;
  private taken: boolean;
  private ended = false;

  private constructor(active: boolean, taken: boolean, statement: Statement) {
    this.active = active;
    this.taken = taken;
    this.statement = statement;
  }

  static handles(word: string): boolean {
    return word in TESTS || word === ".else" || word === ".elseif" || word === ".endif";
  }

  /** `outside` tells whether the statements around it count; if not, no branch of it will. */
  static open(word: string, text: string, outside: boolean, context: DirectiveContext): Condition {
    const holds = outside && TESTS[word]!(text, context);
    return new Condition(holds, holds || !outside, context.statement);
  }

  /** `.else` and `.elseif`; `test` is asked only if no branch was taken yet. */
  otherwise(word: string, test: () => boolean): void {
    if (this.ended) fail(`${word} after .else`);
    this.active = !this.taken && (word === ".else" || test());
    this.taken ||= this.active;
    this.ended = word === ".else";
  }
}
