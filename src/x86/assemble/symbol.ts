// Symbols while a file is being assembled: labels, values given by `.set`, and numeric local labels.
//
// Refuses defining a name twice (`.set` may repeat). Offsets are known only after layout: a label is a
// fragment of a section and an offset in it.

import type { ObjectSymbol } from "../object.ts";
import type { Expression } from "./expression.ts";
import { fail, type Place, type Statement, showPlace } from "./fault.ts";
import type { SectionBuilder } from "./section.ts";

export interface Label {
  readonly section: SectionBuilder;
  /** Index into `section.fragments`. */
  readonly fragment: number;
  readonly offset: number;
}

/** A name in the making; `label` and `value` exclude each other, both null while undefined. */
export interface SourceSymbol {
  readonly name: string;
  /** `.L` names and numeric labels: never in the object's symbol table. */
  readonly local: boolean;
  kind: ObjectSymbol["kind"];
  binding: ObjectSymbol["binding"];
  label: Label | null;
  value: Expression | null;
  size: { readonly expression: Expression; readonly statement: Statement } | null;
  definedAt: Place | null;
  /** Some expression uses it; without that an undefined name is not the linker's business. */
  referenced: boolean;
  /** The first statement that named it, for "undefined" messages. */
  usedBy: Statement;
}

export class SymbolTable {
  /** In the order of first mention. */
  readonly all: SourceSymbol[] = [];
  private readonly named = new Map<string, SourceSymbol>();
  /** How often each numeric label has been defined. */
  private readonly counts = new Map<string, number>();

  find(name: string): SourceSymbol | undefined {
    return this.named.get(name);
  }

  /** The symbol of that name, made undefined if it is new. `1b` and `1f` name numeric labels. */
  mention(name: string, statement: Statement): SourceSymbol {
    const numeric = /^(\d+)([bf])$/.exec(name);
    const key = numeric ? this.numericKey(numeric[1]!, numeric[2] === "f" ? 1 : 0, name) : name;
    const known = this.named.get(key);
    if (known) return known;
    const symbol: SourceSymbol = {
      name: numeric ? name : key,
      local: numeric !== null || name.startsWith(".L"),
      kind: "none",
      binding: "local",
      label: null,
      value: null,
      size: null,
      definedAt: null,
      referenced: false,
      usedBy: statement,
    };
    this.named.set(key, symbol);
    this.all.push(symbol);
    return symbol;
  }

  /** Puts the label `name` (or the next numeric one) at `label`. */
  define(name: string, label: Label, statement: Statement): void {
    let symbol: SourceSymbol;
    if (/^\d+$/.test(name)) {
      symbol = this.mention(`${name}f`, statement);
      this.counts.set(name, (this.counts.get(name) ?? 0) + 1);
    } else symbol = this.mention(name, statement);
    if (symbol.definedAt) fail(`'${name}' is already defined at ${showPlace(symbol.definedAt)}`);
    symbol.label = label;
    symbol.definedAt = statement.place;
  }

  /** Gives `name` the value of an expression; a later `.set` may change it. */
  assign(name: string, value: Expression, statement: Statement): void {
    const symbol = this.mention(name, statement);
    if (symbol.label) fail(`'${name}' is already a label, defined at ${showPlace(symbol.definedAt!)}`);
    symbol.value = value;
    symbol.definedAt = statement.place;
  }

  /** A symbol without a name, for `.`. */
  static anonymous(label: Label, statement: Statement): SourceSymbol {
    const [size, value] = [null, null];
    const definedAt = statement.place;
    return {
      name: ".",
      local: true,
      kind: "none",
      binding: "local",
      label,
      value,
      size,
      definedAt,
      referenced: true,
      usedBy: statement,
    };
  }

  private numericKey(digits: string, ahead: 0 | 1, asWritten: string): string {
    const instance = (this.counts.get(digits) ?? 0) + ahead;
    if (instance === 0) fail(`no label '${digits}:' before this '${asWritten}'`);
    return `${digits}#${instance}`;
  }
}
