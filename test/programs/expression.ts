// Random integer expressions in C, each with one defined value whatever the compiler does.
//
// No expression has side effects: C leaves open which operand is evaluated first. Arithmetic that could
// overflow is done in unsigned types, shift counts and indices are masked, divisors are never zero.

import type { Random } from "../fuzz/random.ts";
import { anyInt, constant, INTS, type Int, U32, U64, wide } from "./types.ts";

/** Something with a value: `text` is an expression without side effects. */
export interface Readable {
  readonly text: string;
  readonly type: Int;
}

/** `name[0]` to `name[mask]`; a power of two of elements. */
export interface IndexedName {
  readonly name: string;
  readonly type: Int;
  readonly mask: number;
  /** In `.rodata`. */
  readonly constant: boolean;
}

/** What an expression may read. */
export interface Scope {
  readonly values: readonly Readable[];
  readonly arrays: readonly IndexedName[];
}

const u64 = (bits: number) => (bits === 64 ? "ll" : "");

export class Expressions {
  private readonly random: Random;
  private readonly extensions: boolean;
  /** How many operators and operands were made: what the program may cost. */
  made = 0;

  /** `extensions`: use what the compiler has for BMI, LZCNT, POPCNT, ADX. */
  constructor(random: Random, extensions: boolean) {
    this.random = random;
    this.extensions = extensions;
  }

  /** An expression of `type`, `depth` operators deep. */
  value(scope: Scope, type: Int, depth: number): string {
    this.made++;
    const { random } = this;
    if (depth <= 0 || random.chance(12)) return this.leaf(scope, type);
    const of = (want: Int, less = 1) => this.value(scope, want, depth - less);
    const [T, W] = [type.name, wide(type).name];
    const makers: readonly [number, () => string][] = [
      [10, () => `(${T})((${W})${of(type)} ${random.pick(["+", "-", "*"])} (${W})${of(type)})`],
      [8, () => `(${T})(${of(type)} ${random.pick(["&", "|", "^", "& ~", "| ~"])}${of(type)})`],
      [3, () => `(${T})(${random.pick([`-(${W})`, "~"])}${of(type)})`],
      [4, () => `(${T})((${W})${of(type)} << ${this.count(scope, type, depth)})`],
      [5, () => `(${T})(${of(type)} >> ${this.count(scope, type, depth)})`],
      [3, () => `rol${type.bits}(${of(type)}, ${this.count(scope, type, depth)})`],
      [5, () => `(${T})(${of(type)} ${random.pick(["/", "%"])} ${this.divisor(type)})`],
      [4, () => `${random.pick(["div", "mod"])}_${T}(${of(type)}, ${of(type)})`],
      [5, () => `(${T})${this.condition(scope, depth - 1)}`],
      [5, () => `(${this.condition(scope, depth - 1)} ? ${of(type)} : ${of(type)})`],
      [6, () => `(${T})${of(anyInt(random))}`],
      [3, () => `${random.pick(["min", "max"])}_${T}(${of(type)}, ${of(type)})`],
      [4, () => `${random.pick(["add", "sub", "mul"])}_checked_${T}(${of(type)}, ${of(type)})`],
      [6, () => `(${T})${this.bits(scope, depth)}`],
      [3, () => `(${T})${this.double(of)}`],
      ...(this.extensions ? [[6, () => `(${T})${this.extension(of)}`] as [number, () => string]] : []),
    ];
    return `(${weighted(random, makers)()})`;
  }

  /** 0 or 1, an `int`. */
  condition(scope: Scope, depth: number): string {
    this.made++;
    const { random } = this;
    const type = anyInt(random);
    const of = () => this.value(scope, type, depth - 1);
    if (depth > 1 && random.chance(20))
      return `(${this.condition(scope, depth - 1)} ${random.pick(["&&", "||"])} ${this.condition(scope, depth - 1)})`;
    if (random.chance(15)) return `((${of()} >> ${random.below(type.bits)}) & 1)`;
    if (random.chance(15)) return `((${of()} & ${of()}) ${random.pick(["==", "!="])} 0)`;
    const right = random.chance(40) ? constant(random, type) : of();
    return `(${of()} ${random.pick(["<", "<=", ">", ">=", "==", "!="])} ${right})`;
  }

  /** An index for `array`. */
  index(scope: Scope, { mask }: IndexedName): string {
    if (this.random.chance(25)) return `${this.random.below(mask + 1)}`;
    return `${this.value(scope, this.random.pick([U32, U64]), 1)} & ${mask}`;
  }

  private leaf(scope: Scope, type: Int): string {
    const { random } = this;
    const near = random.chance(50) ? scope.values.slice(-6) : scope.values;
    const own = near.filter((value) => value.type === type);
    if (random.chance(20)) return `(${constant(random, type)})`;
    if (scope.arrays.length > 0 && random.chance(25)) {
      const array = random.pick(scope.arrays);
      return `((${type.name})${array.name}[${this.index({ ...scope, arrays: [] }, array)}])`;
    }
    const values = own.length > 0 && random.chance(60) ? own : near;
    return values.length === 0
      ? `(${constant(random, type)})`
      : `((${type.name})${random.pick(values).text})`;
  }

  /** A shift count for `type`. */
  private count(scope: Scope, type: Int, depth: number): string {
    const { random } = this;
    if (random.chance(50)) return `${random.below(type.bits)}`;
    return `(${this.value(scope, random.pick(INTS), Math.min(depth - 1, 1))} & ${type.bits - 1})`;
  }

  /** A constant that anything of `type` can be divided by; compilers have many ways with these. */
  private divisor(type: Int): string {
    const { random } = this;
    const few = [2, 3, 5, 6, 7, 10, 11, 13, 16, 25, 60, 64, 100, 125].map(BigInt);
    const any = BigInt(random.word() >>> 0) * BigInt(random.word() >>> 0);
    const most = (1n << BigInt(type.bits - (type.signed ? 1 : 0))) - 1n;
    const size = random.chance(70) ? random.pick(few) : 2n + (any % (most - 1n));
    return `(${type.name})${type.signed && random.chance(30) ? -size : size}${type.signed ? "" : "u"}${u64(type.bits)}`;
  }

  /** Single bits and their positions, bytes swapped. */
  private bits(scope: Scope, depth: number): string {
    const { random } = this;
    const type = random.pick([U32, U64]);
    const [of, ll, top] = [() => this.value(scope, type, depth - 1), u64(type.bits), type.bits - 1];
    const one = `((${type.name})1 << (${of()} & ${top}))`;
    return random.pick([
      () => `__builtin_bswap${type.bits}(${of()})`,
      () => `__builtin_bswap16(${this.value(scope, U32, depth - 1)})`,
      () => `__builtin_clz${ll}(${of()} | 1)`,
      () => `__builtin_ctz${ll}(${of()} | ${type.bits === 64 ? "1ull << 63" : "1u << 31"})`,
      () => `__builtin_ffs${ll}(${of()})`,
      () => `__builtin_parity(${of()})`,
      () => `popcount${type.bits}(${of()})`,
      () => `(${of()} ${random.pick(["|", "^", "& ~"])} ${one})`,
      () => `((${of()} >> (${of()} & ${top})) & 1)`,
      () => `lowest${type.bits}(${of()})`,
      () => `without_lowest${type.bits}(${of()})`,
      () => `((${of()} >> ${random.below(type.bits)}) & ${2 ** (1 + random.below(20)) - 1}u)`,
    ])();
  }

  /** Two words wide: products, sums with carry, shifts across words. */
  private double(of: (type: Int) => string): string {
    const { random } = this;
    const two = () => `${of(U64)}, ${of(U64)}`;
    return random.pick([
      () => `high_u64(${two()})`,
      () => `high_s64(${two()})`,
      () => `sum128(${two()}, ${two()})`,
      () => `difference128(${two()}, ${two()})`,
      () => `left128(${two()}, ${of(U32)})`,
      () => `right128(${two()}, ${of(U32)})`,
    ])();
  }

  private extension(of: (type: Int) => string): string {
    const { random } = this;
    const two = (type: Int) => `${of(type)}, ${of(type)}`;
    const direct = ["pdep", "pext", "bzhi"].flatMap((name) => [
      () => `__builtin_ia32_${name}_di(${two(U64)})`,
      () => `__builtin_ia32_${name}_si(${two(U32)})`,
    ]);
    return random.pick([
      ...direct,
      () => `__builtin_ia32_bextr_u64(${two(U64)})`,
      () => `__builtin_ia32_bextr_u32(${two(U32)})`,
      () => `__builtin_ia32_lzcnt_u64(${of(U64)})`,
      () => `__builtin_ia32_lzcnt_u32(${of(U32)})`,
      () => `__builtin_ia32_tzcnt_u64(${of(U64)})`,
      () => `__builtin_ia32_tzcnt_u32(${of(U32)})`,
      () => `__builtin_popcountll(${of(U64)})`,
      () => `__builtin_popcount(${of(U32)})`,
      () => `carried(${two(U64)}, ${two(U64)})`,
    ])();
  }
}

/** One of `choices`, each as often as its number says. */
export function weighted<T>(random: Random, choices: readonly (readonly [number, T])[]): T {
  let at = random.below(choices.reduce((sum, [weight]) => sum + weight, 0));
  for (const [weight, value] of choices) {
    at -= weight;
    if (at < 0) return value;
  }
  return choices.at(-1)![1];
}
