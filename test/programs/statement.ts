// Random statements in C that end soon: loops are bounded, and what a function may cost is counted while
// it is written, so that no call inside loops multiplies out of hand.

import type { Random } from "../fuzz/random.ts";
import { type Expressions, type IndexedName, type Readable, type Scope, weighted } from "./expression.ts";
import { anyInt, constant, INTS, type Int, U32, U64 } from "./types.ts";

/** A function that statements may call; all arguments are integers. */
export interface Callee {
  readonly name: string;
  readonly type: Int;
  readonly parameters: readonly Int[];
  /** About how many operations a call takes. */
  readonly cost: number;
}

/** A global structure's type, an array of it, and functions that take it. */
export interface Structure {
  readonly tag: string;
  /** An array of such structures, of `mask` + 1 elements. */
  readonly array: string;
  readonly mask: number;
  readonly fields: readonly Readable[];
  /** Takes and returns the structure by value, and a u64. */
  readonly byValue: string;
  /** Takes a pointer to it and a u64, returns u64. */
  readonly byPointer: string;
}

/** What the statements of a function see. */
export interface Surroundings {
  readonly globals: readonly Readable[];
  readonly arrays: readonly IndexedName[];
  readonly structures: readonly Structure[];
  readonly callees: readonly Callee[];
  /** A table of four functions that take two u64 and return one, each of no more than this cost. */
  readonly table: { readonly name: string; readonly cost: number } | undefined;
}

const LOOP_LIMIT = 100;
const CALL_LIMIT = 800;

export class Statements {
  private readonly random: Random;
  private readonly expressions: Expressions;
  private readonly around: Surroundings;
  private values: Readable[];
  private arrays: IndexedName[];
  private assignable: Readable[];
  private names = 0;
  /** How often what is written now runs in one call. */
  private times = 1;
  private inLoop = false;
  private spent = 0;
  /** Statements still to be written, about: what is nested does not multiply. */
  private room = 9;
  private readonly returns: Int;

  constructor(
    random: Random,
    expressions: Expressions,
    around: Surroundings,
    own: { readonly parameters: readonly Readable[]; readonly returns: Int },
  ) {
    this.random = random;
    this.expressions = expressions;
    this.around = around;
    this.returns = own.returns;
    this.values = [...around.globals, ...own.parameters];
    this.arrays = [...around.arrays];
    this.assignable = [...around.globals, ...own.parameters];
  }

  /** What a call costs, by what was written so far. */
  get cost(): number {
    return this.spent;
  }

  /** `count` statements, indented by `depth`, one line or more each. */
  block(count: number, depth: number): string[] {
    const before = { values: [...this.values], arrays: [...this.arrays], assignable: [...this.assignable] };
    const lines = Array.from({ length: count }, () => this.statement(depth)).flat();
    ({ values: this.values, arrays: this.arrays, assignable: this.assignable } = before);
    return lines.map((line) => `  ${line}`);
  }

  /** The locals that a function begins with. */
  locals(statements: number): string[] {
    const { random } = this;
    const lines = Array.from({ length: Math.min(statements - 1, 1 + random.below(2)) }, () => this.declare());
    if (statements > 1 && random.chance(40)) lines.push(...this.declareArray());
    return lines.map((line) => `  ${line}`);
  }

  /** `count` statements of the function itself, whose locals its result is made of. */
  body(count: number, depth: number): string[] {
    return Array.from({ length: count }, () => this.statement(depth))
      .flat()
      .map((line) => `  ${line}`);
  }

  /** Returns something of every local and parameter, so that hardly any mistake is lost on the way. */
  result(): string {
    const own = this.values.filter((value) => !this.around.globals.includes(value));
    const terms = own.map(({ text }, n) => `(u64)${text} * ${2 * n + 3}`);
    return `  return (${this.returns.name})(${["0", ...terms].join(" + ")} + (u64)${this.value(this.returns, 2)});`;
  }

  value(type: Int, depth = this.random.chance(20) ? 2 : 1): string {
    const before = this.expressions.made;
    const text = this.expressions.value(this.scope, type, depth);
    this.spend(this.expressions.made - before);
    return text;
  }

  private condition(): string {
    const before = this.expressions.made;
    const text = this.expressions.condition(this.scope, 1 + this.random.below(2));
    this.spend(this.expressions.made - before);
    return text;
  }

  private get scope(): Scope {
    return { values: this.values, arrays: this.arrays };
  }

  private spend(operations: number): void {
    this.spent += this.times * operations;
  }

  private fresh(): string {
    return `v${this.names++}`;
  }

  private index(array: IndexedName): string {
    this.spend(2);
    return this.expressions.index(this.scope, array);
  }

  private get writable(): IndexedName {
    return this.random.pick(this.arrays.filter(({ constant: fixed }) => !fixed));
  }

  private statement(depth: number): string[] {
    this.spend(1);
    const { random, around } = this;
    const calls = around.callees.filter(({ cost }) => cost * this.times < CALL_LIMIT);
    const nests = depth > 0 && this.room-- > 0;
    const loops = nests && this.times < LOOP_LIMIT / 4;
    const structured = around.structures.length > 0;
    const makers: readonly (readonly [number, () => string[]])[] = [
      [6, () => [this.declare()]],
      [14, () => [this.assign()]],
      [12, () => [this.store()]],
      [structured ? 10 : 0, () => [this.storeField()]],
      [structured && this.times < 40 ? 5 : 0, () => this.useStructure()],
      [calls.length > 0 ? 10 : 0, () => [this.call(random.pick(calls))]],
      [around.table && around.table.cost * this.times < CALL_LIMIT ? 4 : 0, () => [this.callIndirect()]],
      [nests ? 9 : 0, () => this.branch(depth)],
      [nests ? 8 : 0, () => this.choice(depth)],
      [loops ? 12 : 0, () => this.loop(depth)],
      [loops ? 7 : 0, () => this.walk()],
      [loops ? 5 : 0, () => this.copy()],
      [this.inLoop ? 4 : 0, () => [`if (${this.condition()}) ${random.pick(["break", "continue"])};`]],
      [nests ? 1 : 0, () => [`if (${this.condition()}) return ${this.value(this.returns, 1)};`]],
    ];
    return weighted(random, makers)();
  }

  private declare(): string {
    const type = anyInt(this.random);
    const text = `${type.name} ${this.fresh()} = ${this.value(type)};`;
    const value = { text: `v${this.names - 1}`, type };
    this.values.push(value);
    this.assignable.push(value);
    return text;
  }

  private declareArray(): string[] {
    const { random } = this;
    const type = anyInt(random);
    const mask = random.pick([3, 7, 15]);
    const name = this.fresh();
    const given = Array.from({ length: 1 + random.below(mask + 1) }, () => constant(random, type));
    this.arrays.push({ name, type, mask, constant: false });
    this.spend(mask);
    return [`${type.name} ${name}[${mask + 1}] = {${given.join(", ")}};`];
  }

  /** `target` changed in one of C's ways, all of them defined. */
  private change({ text, type }: Readable): string {
    const { random } = this;
    const wraps = !type.signed || type.bits < 32;
    // u16 times u16 overflows the int that both become.
    const operators = ["=", "=", "=", "^=", "|=", "&=", ...(wraps ? ["+=", "-="] : [])];
    if (wraps && random.chance(20)) return `${text}${random.pick(["++", "--"])};`;
    return `${text} ${random.pick(operators)} ${this.value(type)};`;
  }

  private assign(): string {
    return this.change(this.random.pick(this.assignable));
  }

  private store(): string {
    const array = this.writable;
    return this.change({ text: `${array.name}[${this.index(array)}]`, type: array.type });
  }

  private storeField(): string {
    const { array, mask, fields } = this.random.pick(this.around.structures);
    const { text, type } = this.random.pick(fields);
    return this.change({ text: `${array}[${this.value(U32, 1)} & ${mask}].${text}`, type });
  }

  private useStructure(): string[] {
    const { random } = this;
    const { tag, array, mask, byValue, byPointer, fields } = random.pick(this.around.structures);
    const at = () => `${array}[${this.value(U32, 1)} & ${mask}]`;
    this.spend(30);
    const local = this.fresh();
    return random.pick([
      () => [`${at()} = ${at()};`],
      () => [`${at()} = ${byValue}(${at()}, ${this.value(U64)});`],
      () => [this.accept(U64, (name) => `${name} = ${byPointer}(&${at()}, ${this.value(U64)});`)],
      () => [
        "{",
        `  struct ${tag} ${local} = ${at()}, *q = &${at()};`,
        `  ${this.change({ text: `${local}.${fields[0]!.text}`, type: fields[0]!.type })}`,
        `  q->${fields.at(-1)!.text} ^= ${local}.${fields[0]!.text};`,
        `  *q = ${local};`,
        "}",
      ],
    ])();
  }

  private accept(type: Int, assignment: (name: string) => string): string {
    const name = this.fresh();
    const text = `${type.name} ${assignment(name)}`;
    const value = { text: name, type };
    this.values.push(value);
    this.assignable.push(value);
    return text;
  }

  private call({ name, type, parameters, cost }: Callee): string {
    this.spend(cost);
    const given = parameters.map((parameter) => this.value(parameter, this.random.below(3)));
    return this.accept(type, (result) => `${result} = ${name}(${given.join(", ")});`);
  }

  private callIndirect(): string {
    const { name, cost } = this.around.table!;
    this.spend(cost);
    const [which, a, b] = [this.value(U32, 1), this.value(U64), this.value(U64)];
    return this.accept(U64, (result) => `${result} = ${name}[${which} & 3](${a}, ${b});`);
  }

  private branch(depth: number): string[] {
    const { random } = this;
    const lines = [`if (${this.condition()}) {`, ...this.block(1 + random.below(2), depth - 1)];
    if (random.chance(50)) lines.push("} else {", ...this.block(1 + random.below(2), depth - 1));
    return [...lines, "}"];
  }

  /** A switch: dense ones become jump tables, or tables of values; sparse ones trees of comparisons. */
  private choice(depth: number): string[] {
    const { random } = this;
    const dense = random.chance(75);
    const type = random.pick(INTS.slice(2));
    const count = dense ? 5 + random.below(8) : 3 + random.below(4);
    const base = random.below(4) * random.below(30);
    const labels = new Set(
      Array.from({ length: count }, (_, n) => base + (dense ? n : n * (1 + random.below(900)))),
    );
    const reach = dense ? 15 : 1023;
    const lines = [`switch ((${type.name})(${base} + (${this.value(U32)} & ${reach}))) {`];
    const plain = random.chance(25) ? random.pick(this.assignable) : undefined;
    for (const label of labels) {
      lines.push(`  case ${label}: {`);
      if (plain === undefined) lines.push(...this.case(depth));
      else lines.push(`    ${plain.text} = ${constant(random, plain.type)};`);
      // `continue` may stand inside; falling through is C's, and wanted now and then.
      lines.push(random.chance(15) ? "  }" : "  } break;");
    }
    lines.push("  default: {", ...this.block(1, depth - 2).map((line) => `  ${line}`), "  }", "}");
    return lines;
  }

  /** Mostly short: a switch has many. */
  private case(depth: number): string[] {
    if (this.random.chance(20)) return this.block(1, depth - 1).map((line) => `  ${line}`);
    return [`    ${this.assign()}`];
  }

  /** Runs `body` as the inside of a loop of at most `count` turns. */
  private repeated<T>(count: number, body: () => T): T {
    const before = { times: this.times, inLoop: this.inLoop };
    this.times *= count;
    this.inLoop = true;
    const made = body();
    ({ times: this.times, inLoop: this.inLoop } = before);
    return made;
  }

  private loop(depth: number): string[] {
    const { random } = this;
    const limit = 2 + random.below(Math.min(20, Math.floor(LOOP_LIMIT / this.times) - 2));
    const wanted = random.pick(INTS);
    const down = random.chance(25);
    const type = down && !wanted.signed ? INTS.find(({ name }) => name === `s${wanted.bits}`)! : wanted;
    const [T, name, step] = [type.name, this.fresh(), 1 + random.below(3)];
    const up = [
      () => `for (${T} ${name} = 0; ${name} < ${limit}; ${name} += ${step}) {`,
      () =>
        `for (${T} ${name} = ${this.value(U32, 1)} & ${limit > 8 ? 7 : 1}; ${name} != ${limit}; ${name}++) {`,
      () => `for (${T} ${name} = ${limit}; ${name}-- > 0 && ${this.condition()};) {`,
    ];
    const head = down
      ? `for (${T} ${name} = ${limit}; ${name} >= 0; ${name} -= ${step}) {`
      : random.pick(up)();
    const until = random.chance(20) ? this.fresh() : undefined;
    const counter = { text: name, type };
    return this.repeated(limit + 1, () => {
      if (until !== undefined) {
        const body = this.block(2, depth - 1);
        return [`u32 ${until} = ${limit};`, "do {", ...body, `} while (--${until} != 0);`];
      }
      this.values.push(counter);
      const body = this.block(1 + random.below(3), depth - 1);
      this.values.splice(this.values.indexOf(counter), 1);
      return [head, ...body, "}"];
    });
  }

  /** A pointer through an array, there or back. */
  private walk(): string[] {
    const { random } = this;
    const { name, type, mask, constant: fixed } = random.pick(this.arrays);
    const sum = this.fresh();
    const element = { text: "*at", type };
    this.spend(4 * mask * this.times);
    const qualifier = fixed ? "const " : "";
    const change = !fixed && random.chance(60) ? `    *at ^= (${type.name})${sum};` : "";
    const lines = random.pick([
      () => [
        `  for (${qualifier}${type.name} *at = ${name}; at < ${name} + ${mask + 1}; at++) {`,
        `    ${sum} = ${sum} * ${3 + 2 * random.below(20)} + (u64)*at;`,
      ],
      () => [
        `  ${qualifier}${type.name} *at = &${name}[${mask}];`,
        `  while (at-- > ${name} + ${1 + random.below(mask)}) {`,
        `    ${sum} += (u64)(at[0] ^ at[1]);`,
      ],
      () => [
        `  ${qualifier}${type.name} *at = ${name} + (${this.value(U32, 1)} & ${mask >> 1});`,
        `  for (${qualifier}${type.name} *end = at + ${1 + (mask >> 1)}; at != end; ++at) {`,
        `    ${sum} = rol64(${sum}, ${1 + random.below(63)}) + (u64)(at - ${name});`,
        `    if (${element.text} ${random.pick(["<", ">", "=="])} ${constant(random, type)}) ${sum} -= (u64)*at;`,
      ],
    ])();
    const text = [`u64 ${sum} = ${this.value(U64)};`, "{", ...lines, ...(change ? [change] : []), "  }", "}"];
    const value = { text: sum, type: U64 };
    this.values.push(value);
    this.assignable.push(value);
    return text;
  }

  /** Loops that compilers know as memcpy, memmove, memset, or a reversal. */
  private copy(): string[] {
    const { random } = this;
    const to = this.writable;
    const same = this.arrays.filter(({ name, type }) => type === to.type && name !== to.name);
    const from = same.length > 0 ? random.pick(same) : to;
    const count = Math.min(to.mask, from.mask) + 1;
    this.spend(3 * count);
    const i = this.fresh();
    const head = `for (u32 ${i} = 0; ${i} < ${count}; ${i}++)`;
    return random.pick([
      () => [`${head} ${to.name}[${i}] = ${from.name}[${i}];`],
      () => [`${head} ${to.name}[${i}] = ${this.random.chance(50) ? 0 : constant(random, to.type)};`],
      () => [`for (u32 ${i} = 1; ${i} < ${count}; ${i}++) ${to.name}[${i} - 1] = ${to.name}[${i}];`],
      () => [`for (u32 ${i} = ${count - 1}; ${i} > 0; ${i}--) ${to.name}[${i}] = ${to.name}[${i} - 1];`],
      () => [`${head} ${to.name}[${count - 1} - ${i}] = (${to.type.name})((u64)${from.name}[${i}] * ${i});`],
      () => [`__builtin_memset(${to.name}, ${random.below(256)}, sizeof ${to.name});`],
      () => [`__builtin_memmove(${to.name} + 1, ${from.name}, ${count - 1} * sizeof *${to.name});`],
    ])();
  }
}
