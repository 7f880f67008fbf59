// Directives that make contents, symbols and sections; those that choose and repeat statements are in assembly.ts.
//
// One table: name, and what it does with the text after it. What is absent there is refused.

import type { RelocationType } from "../object.ts";
import { type Expression, numberExpression, tryAbsolute } from "./expression.ts";
import { fail, type Statement } from "./fault.ts";
import { store } from "./field.ts";
import { distanceNow, type SectionBuilder, type SectionFlags } from "./section.ts";
import { parseString, splitCommas } from "./source.ts";
import type { SymbolTable } from "./symbol.ts";

/** The assembly in progress, as directives see it. */
export interface DirectiveContext {
  readonly symbols: SymbolTable;
  readonly section: SectionBuilder;
  readonly statement: Statement;
  /** Reads an expression; names in it become symbols, `.` the current place. */
  expression(text: string): Expression;
  /** Reads an expression that must be a number by now. */
  number(text: string): number;
  /** Makes `name` the current section, with `flags` if it is new. */
  enter(name: string, flags: SectionFlags | null): void;
  push(): void;
  pop(): void;
  swap(): void;
}

type Directive = (context: DirectiveContext, text: string) => void;

const FIELD_TYPES: Readonly<Record<number, RelocationType | undefined>> = {
  4: "R_X86_64_32",
  8: "R_X86_64_64",
};

function data(size: 1 | 2 | 4 | 8): Directive {
  return (context, text) => {
    for (const piece of splitCommas(text)) {
      const expression = context.expression(piece);
      const bytes = new Array<number>(size).fill(0);
      const number = tryAbsolute(expression, distanceNow);
      if (number !== null) store(bytes, 0, size, number);
      const { section, statement } = context;
      const fixup = { offset: 0, size, type: FIELD_TYPES[size] ?? null, toEnd: null, expression, statement };
      section.emit(bytes, number === null ? [fixup] : []);
    }
  };
}

function ascii(end: readonly number[]): Directive {
  return ({ section }, text) => {
    for (const piece of splitCommas(text)) section.emit([...parseString(piece), ...end]);
  };
}

/** A run of `count` times `fill`; its length may wait for layout. */
function emitRun({ section, statement }: DirectiveContext, count: Expression, fill: readonly number[]): void {
  const number = tryAbsolute(count, distanceNow);
  if (number === null) {
    section.append({ kind: "run", count, fill, statement });
    return;
  }
  if (number > 1n << 28n) fail(`${number} is too large a repetition`);
  const bytes: number[] = [];
  for (let i = 0; i < Number(number); i++) bytes.push(...fill);
  section.emit(bytes);
}

const skip: Directive = (context, text) => {
  const [count = "", fill = "0"] = splitCommas(text);
  emitRun(context, context.expression(count), [context.number(fill === "" ? "0" : fill) & 0xff]);
};

/** `toBytes` turns the directive's number into an alignment. */
function align(toBytes: (number: number) => number): Directive {
  return (context, text) => {
    const [number = "", fill = "", most = ""] = splitCommas(text);
    const to = toBytes(number === "" ? 0 : context.number(number));
    if (to === 0) return;
    if (to < 1 || !Number.isInteger(Math.log2(to)) || to > 1 << 30)
      fail(`alignment ${to} is not a power of two`);
    const { section } = context;
    const byte = fill === "" ? null : context.number(fill) & 0xff;
    const asNops = section.flags.execute && (byte === null || byte === 0x90);
    section.append({
      kind: "align",
      to,
      most: most === "" || context.number(most) === 0 ? to : context.number(most),
      fill: asNops ? "nops" : [byte ?? 0],
    });
  };
}

const KINDS: Readonly<Record<string, "func" | "object" | "none">> = {
  function: "func",
  func: "func",
  STT_FUNC: "func",
  object: "object",
  STT_OBJECT: "object",
  notype: "none",
  STT_NOTYPE: "none",
};

const type: Directive = ({ symbols, statement }, text) => {
  const [, name, kind] =
    /^(\S+?)\s*(?:,\s*|\s+)[@%"#]?(\w+)"?$/.exec(text) ??
    fail("expected a name and a type such as @function");
  const symbol = symbols.mention(name!, statement);
  symbol.kind = KINDS[kind!] ?? fail(`'${kind}' is not a symbol type; use @function, @object or @notype`);
};

const size: Directive = (context, text) => {
  const [name = "", expression = ""] = splitCommas(text);
  const { symbols, statement } = context;
  symbols.mention(name, statement).size = { expression: context.expression(expression), statement };
};

function bind(binding: "local" | "global" | "weak"): Directive {
  return ({ symbols, statement }, text) => {
    for (const name of splitCommas(text)) {
      if (!/^[A-Za-z_.$][\w.$]*$/.test(name)) fail(`'${name}' is not a symbol's name`);
      symbols.mention(name, statement).binding = binding;
    }
  };
}

function assign(once: boolean): Directive {
  return (context, text) => {
    const [name = "", value = ""] = splitCommas(text);
    assignSymbol(context, name, value, once);
  };
}

/** `name = value`; `.` as a name moves the current place forward. */
export function assignSymbol(context: DirectiveContext, name: string, value: string, once: boolean): void {
  if (name === ".") {
    org(context, value);
    return;
  }
  if (!/^[A-Za-z_.$][\w.$]*$/.test(name)) fail(`'${name}' is not a symbol's name`);
  if (once && context.symbols.find(name)?.definedAt) fail(`'${name}' already has a value`);
  const expression = context.expression(value);
  const number = tryAbsolute(expression, distanceNow);
  context.symbols.assign(name, number === null ? expression : numberExpression(number), context.statement);
}

const org: Directive = (context, text) => {
  const [to = "", fill = "0"] = splitCommas(text);
  const { statement } = context;
  context.section.append({
    kind: "org",
    to: context.expression(to),
    fill: context.number(fill) & 0xff,
    statement,
  });
};

const fill: Directive = (context, text) => {
  const [count = "", size = "1", value = "0"] = splitCommas(text);
  const width = Math.min(context.number(size === "" ? "1" : size), 8);
  const unit: number[] = new Array<number>(Math.max(width, 0)).fill(0);
  // GNU as keeps the low four bytes of the value, whatever the size.
  for (let i = 0; i < Math.min(width, 4); i++)
    unit[i] = (context.number(value === "" ? "0" : value) >> (8 * i)) & 0xff;
  emitRun(context, context.expression(count), unit);
};

const DATA: SectionFlags = { write: true, execute: false, alloc: true, nobits: false };
const CODE: SectionFlags = { write: false, execute: true, alloc: true, nobits: false };
const CONSTANTS: SectionFlags = { write: false, execute: false, alloc: true, nobits: false };

/** What GNU as takes a section to be from its name alone. */
function flagsByName(name: string): SectionFlags {
  const is = (stem: string) => name === stem || name.startsWith(`${stem}.`);
  if (is(".text") || name === ".init" || name === ".fini") return CODE;
  if (is(".data") || name === ".data1" || is(".init_array") || is(".fini_array")) return DATA;
  if (is(".bss")) return { ...DATA, nobits: true };
  if (is(".rodata") || name === ".rodata1") return CONSTANTS;
  return { ...CONSTANTS, alloc: false };
}

const section: Directive = (context, text) => {
  const [name = "", flags = "", kind = ""] = splitCommas(text);
  const plain = name.startsWith('"') ? new TextDecoder().decode(parseString(name)) : name;
  if (!/^[\w.$-]+$/.test(plain)) fail(`'${plain}' is not a section's name`);
  if (flags === "") return context.enter(plain, null);
  const letters = new TextDecoder().decode(parseString(flags));
  const odd = /[^awxMSGoT?e]/.exec(letters);
  if (odd) fail(`unknown section flag '${odd[0]}'`);
  const nobits = /^[@%"]nobits/.test(kind) || (kind === "" && flagsByName(plain).nobits);
  const has = (letter: string) => letters.includes(letter);
  context.enter(plain, { write: has("w"), execute: has("x"), alloc: has("a"), nobits });
};

function named(name: string): Directive {
  return (context, text) =>
    text === "" || text === "0" ? context.enter(name, null) : fail("subsections are not supported");
}

export { flagsByName };

export const DIRECTIVES: Readonly<Record<string, Directive>> = {
  ".byte": data(1),
  ".word": data(2),
  ".short": data(2),
  ".value": data(2),
  ".hword": data(2),
  ".2byte": data(2),
  ".long": data(4),
  ".int": data(4),
  ".4byte": data(4),
  ".quad": data(8),
  ".8byte": data(8),
  ".ascii": ascii([]),
  ".asciz": ascii([0]),
  ".string": ascii([0]),
  ".skip": skip,
  ".space": skip,
  ".zero": skip,
  ".fill": fill,
  ".org": org,
  ".align": align((bytes) => bytes),
  ".balign": align((bytes) => bytes),
  ".p2align": align((power) => 2 ** power),
  ".type": type,
  ".size": size,
  ".globl": bind("global"),
  ".global": bind("global"),
  ".weak": bind("weak"),
  ".local": bind("local"),
  ".set": assign(false),
  ".equ": assign(false),
  ".equiv": assign(true),
  ".text": named(".text"),
  ".data": named(".data"),
  ".bss": named(".bss"),
  ".section": section,
  ".pushsection": (context, text) => {
    context.push();
    section(context, text);
  },
  ".popsection": (context) => context.pop(),
  ".previous": (context) => context.swap(),
  ".error": (_, text) => fail(`the source says: ${new TextDecoder().decode(parseString(text))}`),
  ".err": () => fail("the source says .err"),
};

/** Directives about visibility, debugging and syntax that change nothing here. */
export function isIgnored(directive: string): boolean {
  return /^\.(cfi_\w+|file|loc|ident|code64|att_syntax|hidden|protected|internal|version|warning|print|arch|loc_mark_labels)$/.test(
    directive,
  );
}
