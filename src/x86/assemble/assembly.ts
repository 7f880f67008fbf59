// One assembly run: statements in, sections and symbols out.
//
// Reads statements through macros, repetitions and conditions, gives each to a directive or to the encoder.
// Every refusal carries the place of its statement, and the way there through macros.

import type { ObjectFile } from "../object.ts";
import { Condition } from "./condition.ts";
import { assignSymbol, DIRECTIVES, type DirectiveContext, flagsByName, isIgnored } from "./directive.ts";
import type { InstructionEncoder } from "./encode.ts";
import { absolute, type Expression, evaluate, parseExpression } from "./expression.ts";
import { fail, type Statement, within } from "./fault.ts";
import { emitInstruction } from "./instruction.ts";
import { layOut } from "./layout.ts";
import { defineMacro, expandMacro, type Macro, parseIteration, repeatBody } from "./macro.ts";
import { distanceNow, SectionBuilder, type SectionFlags } from "./section.ts";
import { parseString, readStatements } from "./source.ts";
import { SymbolTable } from "./symbol.ts";

export interface AssembleOptions {
  /** The text of an `.include`d path, or undefined if there is none. */
  readonly include?: (path: string) => string | undefined;
}

/** Statements being read; macros and includes stack new ones on top. */
interface Reading {
  readonly statements: readonly Statement[];
  next: number;
  /** Conditions open where this reading began: it must leave as many. */
  readonly depth: number;
}

const DEEPEST = 200;

export class Assembly implements DirectiveContext {
  readonly symbols = new SymbolTable();
  section: SectionBuilder;
  statement: Statement;
  private readonly name: string;
  private readonly encoder: InstructionEncoder;
  private readonly options: AssembleOptions;
  private readonly sections: SectionBuilder[] = [];
  private readonly stack: { section: SectionBuilder; previous: SectionBuilder }[] = [];
  private previous: SectionBuilder;
  private readonly macros = new Map<string, Macro>();
  private readonly conditions: Condition[] = [];
  private readonly readings: Reading[] = [];
  private expansions = 0;

  constructor(name: string, encoder: InstructionEncoder, options: AssembleOptions) {
    this.name = name;
    this.encoder = encoder;
    this.options = options;
    this.statement = { text: "", place: { file: name, line: 1 } };
    this.section = new SectionBuilder(".text", flagsByName(".text"));
    this.previous = this.section;
    this.sections.push(this.section);
  }

  run(text: string): ObjectFile {
    this.read(readStatements(this.name, text));
    for (let statement = this.take(); statement; statement = this.take()) {
      this.statement = statement;
      within(statement, () => this.handle(statement.text));
    }
    return layOut(this.name, this.sections, this.symbols.all);
  }

  expression(text: string): Expression {
    return parseExpression(text, (name) => {
      if (name === ".")
        return { kind: "symbol", symbol: SymbolTable.anonymous(this.section.here, this.statement) };
      if (name.includes("@")) fail(`'${name}': only branches take a suffix, @PLT`);
      const symbol = this.symbols.mention(name, this.statement);
      symbol.referenced = true;
      // `.set` may change it later: this use keeps the value of now.
      return symbol.value && symbol.binding !== "weak" ? symbol.value : { kind: "symbol", symbol };
    });
  }

  number(text: string): number {
    return Number(absolute(evaluate(this.expression(text), distanceNow)));
  }

  enter(name: string, flags: SectionFlags | null): void {
    let section = this.sections.find((known) => known.name === name);
    if (!section) {
      section = new SectionBuilder(name, flags ?? flagsByName(name));
      this.sections.push(section);
    }
    this.previous = this.section;
    this.section = section;
  }

  push(): void {
    this.stack.push({ section: this.section, previous: this.previous });
  }

  pop(): void {
    const { section, previous } = this.stack.pop() ?? fail(".popsection without .pushsection");
    this.section = section;
    this.previous = previous;
  }

  swap(): void {
    [this.section, this.previous] = [this.previous, this.section];
  }

  private read(statements: readonly Statement[]): void {
    if (this.readings.length > DEEPEST) fail(`macros or includes are nested deeper than ${DEEPEST}`);
    this.readings.push({ statements, next: 0, depth: this.conditions.length });
  }

  private take(): Statement | null {
    for (;;) {
      const reading = this.readings.at(-1);
      if (!reading) return null;
      const statement = reading.statements[reading.next++];
      if (statement) return statement;
      this.readings.pop();
      const open = this.conditions.at(-1);
      if (open && this.conditions.length > reading.depth)
        within(open.statement, () => fail("condition without .endif"));
    }
  }

  private handle(text: string): void {
    const skipping = this.conditions.some((condition) => !condition.active);
    const label = skipping ? null : /^(?:([A-Za-z_.$][\w.$]*)|(\d+))\s*:/.exec(text);
    if (label) {
      this.symbols.define(label[1] ?? label[2]!, this.section.here, this.statement);
      const rest = text.slice(label[0].length).trim();
      if (rest !== "") this.handle(rest);
      return;
    }
    const [, word = "", rest = ""] = /^([\w.$]+)\s*(.*)$/s.exec(text) ?? [];
    if (Condition.handles(word)) this.condition(word, rest);
    else if (!skipping) this.execute(text, word, rest);
  }

  private execute(text: string, word: string, rest: string): void {
    const assignment = /^([A-Za-z_.$][\w.$]*)\s*(==?)\s*([^=].*)$/s.exec(text);
    const macro = this.macros.get(word);
    const directive = DIRECTIVES[word];
    if (assignment) assignSymbol(this, assignment[1]!, assignment[3]!, assignment[2] === "==");
    else if (macro) this.read(expandMacro(macro, rest, this.expansions++, this.statement));
    else if (directive) directive(this, rest);
    else if (word.startsWith(".")) this.control(word, rest);
    else
      emitInstruction(
        this.section,
        { ...this.statement, text },
        (piece) => this.expression(piece),
        this.encoder,
      );
  }

  private condition(word: string, rest: string): void {
    const innermost = this.conditions.at(-1);
    if (word === ".endif" || word.startsWith(".else")) {
      if (!innermost || this.conditions.length <= this.readings.at(-1)!.depth) fail(`${word} without .if`);
      else if (word === ".endif") this.conditions.pop();
      else innermost.otherwise(word, () => this.number(rest) !== 0);
      return;
    }
    const outside = this.conditions.every((condition) => condition.active);
    this.conditions.push(Condition.open(word, rest, outside, this));
  }

  /** Directives that decide what is read next. */
  private control(word: string, rest: string): void {
    const expanded = (name: string | null, values: readonly string[], body: readonly Statement[]) =>
      this.read(repeatBody(name, values, body, this.expansions, this.statement));
    if (word === ".macro") {
      const macro = defineMacro(rest, this.collect(word, [word], ".endm"));
      if (this.macros.has(macro.name)) fail(`macro '${macro.name}' is already defined`);
      this.macros.set(macro.name, macro);
    } else if (word === ".purgem") {
      if (!this.macros.delete(rest)) fail(`there is no macro '${rest}'`);
    } else if (word === ".exitm") {
      const inner = this.readings.at(-1)!;
      inner.next = inner.statements.length;
      this.conditions.length = inner.depth;
    } else if (word === ".rept") {
      const body = this.collect(word, REPETITIONS, ".endr");
      const count = this.number(rest);
      if (count < 0 || count * body.length > 1_000_000) fail(`${count} is not a sensible repetition`);
      expanded(null, new Array<string>(count).fill(""), body);
    } else if (word === ".irp" || word === ".irpc") {
      const { name, values } = parseIteration(rest, word === ".irpc");
      expanded(name, values, this.collect(word, REPETITIONS, ".endr"));
    } else if (word === ".include") {
      const path = new TextDecoder().decode(parseString(rest));
      const text = this.options.include?.(path) ?? fail(`cannot find '${path}' to include`);
      this.read(readStatements(path, text));
    } else if (word === ".endm" || word === ".endr") fail(`${word} without its beginning`);
    else if (!isIgnored(word)) fail(`unknown directive '${word}'`);
  }

  /** The statements up to the `end` that closes this block; blocks of the same kind nest. */
  private collect(opening: string, openings: readonly string[], end: string): Statement[] {
    const reading = this.readings.at(-1)!;
    const body: Statement[] = [];
    for (let depth = 1; ; ) {
      const statement = reading.statements[reading.next++] ?? fail(`${opening} without ${end}`);
      const word = /^(?:[\w.$]+\s*:\s*)*(\.\w+)/.exec(statement.text)?.[1] ?? "";
      if (openings.includes(word)) depth++;
      if (word === end && --depth === 0) return body;
      body.push(statement);
    }
  }
}

const REPETITIONS = [".rept", ".irp", ".irpc"];
