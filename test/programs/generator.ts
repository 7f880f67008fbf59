// A C program from a seed: always the same text for the same seed.
//
// Freestanding integer C in which every expression has one value: a compiler may do with it what it likes,
// and the results stay. One program in eight is long; the others have less of everything. `calls` names functions that take and return a u64, to be called in
// this order; lower functions come first, so that the first wrong result is nearest to its cause.

import { Random } from "../fuzz/random.ts";
import { Expressions, type IndexedName, type Readable } from "./expression.ts";
import { type Callee, Statements, type Structure, type Surroundings } from "./statement.ts";
import { anyInt, constant, INTS, type Int, U64 } from "./types.ts";

export interface Program {
  readonly seed: number;
  readonly source: string;
  /** Functions to call, `u64 name(u64)`, in order, each with these inputs. */
  readonly calls: readonly { readonly function: string; readonly input: string }[];
}

/** The program of `seed`; with `extensions`, it uses the instructions of BMI1, BMI2, LZCNT, POPCNT and ADX. */
export function generate(seed: number, extensions: boolean): Program {
  return new ProgramWriter(seed, extensions).write();
}

const LONG = 8;

class ProgramWriter {
  private readonly random: Random;
  private readonly expressions: Expressions;
  private readonly seed: number;
  private readonly long: boolean;
  private readonly lines: string[] = [];
  private readonly scalars: Readable[] = [];
  private readonly arrays: IndexedName[] = [];
  private readonly structures: Structure[] = [];
  private readonly callees: Callee[] = [];
  private table: Surroundings["table"];

  constructor(seed: number, extensions: boolean) {
    this.seed = seed;
    this.long = seed % LONG === 0;
    this.random = new Random().restart(seed, extensions ? 1 : 0);
    this.expressions = new Expressions(this.random, extensions);
  }

  write(): Program {
    const { random, long } = this;
    this.lines.push(`/* program ${this.seed} */`);
    this.globals();
    for (let n = 0; n < (long ? 2 : 1); n++) this.function(this.name(`g${n}`), U64, [U64, U64], 1);
    const cost = Math.max(...this.callees.map((callee) => callee.cost));
    const entries = Array.from({ length: 4 }, (_, n) => this.callees[n % this.callees.length]!.name).join(
      ", ",
    );
    this.table = { name: this.name("table"), cost };
    this.lines.push(`static u64 (*const ${this.table.name}[4])(u64, u64) = {${entries}};`);
    const special = random.below(4);
    if (special === 0 || (long && special === 2)) this.structure();
    if (special === 1 || (long && special === 3)) this.bitField();
    if (special === 2 || long) this.recursive();
    for (let n = 0; n < (long ? 2 : 1); n++) {
      const many = long ? n === 1 : random.chance(50);
      const parameters = Array.from({ length: 1 + random.below(many ? 9 : 5) }, () => anyInt(random));
      this.function(this.name(`f${n}`), anyInt(random), parameters, (long ? 3 : 1) + random.below(3));
    }
    return this.program();
  }

  private name(short: string): string {
    return `p${this.seed}_${short}`;
  }

  private get around(): Surroundings {
    const { scalars: globals, arrays, structures, callees, table } = this;
    return { globals, arrays, structures, callees, table };
  }

  private globals(): void {
    const { random, lines, seed } = this;
    for (let n = 0; n < 4; n++) {
      const [type, name] = [n === 0 ? U64 : anyInt(random), this.name(`n${n}`)];
      const volatile = n === 3 ? "volatile " : "";
      lines.push(`GLOBAL(${seed}) ${volatile}${type.name} ${name} = ${constant(random, type)};`);
      this.scalars.push({ text: name, type });
    }
    for (let n = 0; n < 5; n++) {
      const [type, name, mask] = [anyInt(random), this.name(`a${n}`), random.pick([3, 7, 15, 31])];
      const given = Array.from({ length: mask + 1 }, () => constant(random, type)).join(", ");
      const declared = `${type.name} ${name}[${mask + 1}]`;
      if (n === 0) lines.push(`static const ${declared} = {${given}};`);
      else if (n === 1) lines.push(`static ${declared};`);
      else lines.push(`GLOBAL(${seed}) ${declared} = {${given}};`);
      this.arrays.push({ name, type, mask, constant: n === 0 });
    }
  }

  /** Fields from wide to narrow and a filler: padding would hold what happened to be there. */
  private structure(): void {
    const { random } = this;
    const types = Array.from({ length: 2 + random.below(4) }, () => anyInt(random));
    types.sort((a, b) => b.bits - a.bits);
    const bytes = types.reduce((sum, { bits }) => sum + bits / 8, 0);
    const largest = types[0]!.bits / 8;
    const filler = Math.ceil(bytes / largest) * largest - bytes;
    const members = types.map(({ name }, n) => `${name} m${n};`);
    if (filler > 0) members.push(`u8 filler[${filler}];`);
    this.addStructure("s", members, types);
  }

  /** Bit fields that fill their word. */
  private bitField(): void {
    const { random } = this;
    const word = random.pick([32, 64]);
    const widths: number[] = [];
    for (let left = word; left > 0; ) {
      const width = Math.min(left, 2 + random.below(word / 2));
      widths.push(width);
      left -= width;
    }
    const choices = INTS.filter(({ bits }) => bits === word);
    const types = widths.map(() => random.pick(choices));
    const members = widths.map((width, n) => `${types[n]!.name} m${n} : ${width};`);
    this.addStructure("b", members, types);
  }

  private addStructure(short: string, members: readonly string[], types: readonly Int[]): void {
    const { random, lines, seed } = this;
    const [tag, array] = [this.name(`${short}_t`), this.name(short)];
    const mask = 3;
    const fields = types.map((type, n) => ({ text: `m${n}`, type }));
    const [byValue, byPointer] = [this.name(`${short}_by_value`), this.name(`${short}_by_pointer`)];
    const element = () => `{${types.map((type) => constant(random, type)).join(", ")}}`;
    const elements = Array.from({ length: mask + 1 }, element).join(", ");
    const around = { ...this.around, callees: [], table: undefined };
    const own = (base: string) => [
      ...fields.map(({ text, type }) => ({ text: `${base}${text}`, type })),
      { text: "x", type: U64 },
    ];
    lines.push(`struct ${tag} { ${members.join(" ")} };`);
    lines.push(`GLOBAL(${seed}) struct ${tag} ${array}[${mask + 1}] = {${elements}};`);
    const value = new Statements(random, this.expressions, around, { parameters: own("s."), returns: U64 });
    const changes = fields.map(({ text, type }) => `  s.${text} = ${value.value(type, 1)};`);
    lines.push(`struct ${tag} ${byValue}(struct ${tag} s, u64 x) {`, ...changes, "  return s;", "}");
    const pointer = new Statements(random, this.expressions, around, {
      parameters: own("s->"),
      returns: U64,
    });
    lines.push(`u64 ${byPointer}(struct ${tag} *s, u64 x) {`, ...pointer.body(2, 0), pointer.result(), "}");
    this.structures.push({ tag, array, mask, fields, byValue, byPointer });
  }

  private function(name: string, returns: Int, types: readonly Int[], statements: number): void {
    const parameters = types.map((type, n) => ({ text: `x${n}`, type }));
    const body = new Statements(this.random, this.expressions, this.around, { parameters, returns });
    const declared = parameters.map(({ text, type }) => `${type.name} ${text}`).join(", ");
    const attribute = statements > 1 ? "__attribute__((noinline)) " : "";
    this.lines.push(
      `${attribute}${returns.name} ${name}(${declared}) {`,
      ...body.locals(statements),
      ...body.body(statements, 2),
    );
    this.lines.push(body.result(), "}");
    this.callees.push({ name, type: returns, parameters: types, cost: body.cost });
  }

  /** Calls itself once or twice, `depth` deep; what others call limits the depth. */
  private recursive(): void {
    const { random } = this;
    const [name, inner] = [this.name("r"), this.name("inner")];
    const type = random.pick(INTS.slice(4));
    const parameters = [
      { text: "a", type },
      { text: "b", type: U64 },
    ];
    const body = new Statements(random, this.expressions, this.around, { parameters, returns: type });
    const twice = random.chance(50);
    const depth = twice ? 4 : 10;
    const T = type.name;
    const again = () => `${inner}(depth - 1, ${body.value(type, 1)}, ${body.value(U64, 1)})`;
    this.lines.push(
      `static ${T} ${inner}(u32 depth, ${T} a, u64 b) {`,
      `  if (depth == 0) return ${body.value(type, 2)};`,
      ...body.block(1, 1),
      `  ${T} first = ${again()};`,
      `  return ${twice ? `first ^ ${again()}` : random.pick(["first", "first ^ a", `${again()}`])};`,
      "}",
      `__attribute__((noinline)) ${T} ${name}(${T} a, u64 b) { return ${inner}(${depth}, a, b); }`,
    );
    const cost = body.cost * (twice ? 2 ** (depth + 1) : 2 * depth);
    this.callees.push({ name, type, parameters: [type, U64], cost });
  }

  /** What is called from outside: every function, and one that folds the array that is not among the compared globals. */
  private program(): Program {
    const { random, lines, seed } = this;
    const word = () =>
      `0x${(random.word() >>> 0).toString(16)}${(random.word() >>> 0).toString(16).padStart(8, "0")}ull`;
    const calls: { function: string; input: string }[] = [];
    for (const callee of this.callees) {
      const name = `${callee.name}_call`;
      const given = callee.parameters.map(({ name: T }) => `(${T})(x * ${word()} >> ${random.below(56)})`);
      lines.push(`u64 ${name}(u64 x) { return (u64)${callee.name}(${given.join(", ")}); }`);
      for (let n = 0; n < 2; n++) calls.push({ function: name, input: n === 0 ? "1ull" : word() });
    }
    const fold = this.name("fold");
    const { name: hidden, mask } = this.arrays[1]!;
    lines.push(
      `u64 ${fold}(u64 x) {`,
      `  for (u32 i = 0; i <= ${mask}; i++) x = x * 31 + (u64)${hidden}[i];`,
    );
    lines.push("  return x;", "}");
    calls.push({ function: fold, input: "1ull" });
    return { seed, source: `${lines.join("\n")}\n`, calls };
  }
}
