// What every numeric instruction of src/wasm/opcode.ts computes, in BigInt and Math, by the core
// specification's chapter 4.3. Values are as JavaScript passes them: i32 and f64 numbers, i64 bigints.

import type { OpName, ValueType } from "../../src/wasm/opcode.ts";

export type WasmValue = number | bigint;
/** A trap is an outcome like any other. */
export type Outcome = WasmValue | "trap";

export interface Model {
  readonly params: readonly ValueType[];
  readonly result: ValueType;
  compute(...values: WasmValue[]): Outcome;
}

/** Instructions without a value of their own to compare; control.test.ts has a test for each. */
export const STRUCTURAL = ["unreachable", "nop", "return", "drop", "select"] as const;
export type NumericName = Exclude<OpName, (typeof STRUCTURAL)[number]>;

type IntegerName = "i32" | "i64";
/** Operands and answer are bigints, the operands unsigned; the answer is cut to the width. */
type Compute = (a: bigint, b: bigint, width: bigint) => bigint | boolean | "trap";

const signed = (value: bigint, width: bigint) => BigInt.asIntN(Number(width), value);

const TESTS: Record<string, Compute> = {
  eq: (a, b) => a === b,
  ne: (a, b) => a !== b,
  lt_s: (a, b, w) => signed(a, w) < signed(b, w),
  lt_u: (a, b) => a < b,
  gt_s: (a, b, w) => signed(a, w) > signed(b, w),
  gt_u: (a, b) => a > b,
  le_s: (a, b, w) => signed(a, w) <= signed(b, w),
  le_u: (a, b) => a <= b,
  ge_s: (a, b, w) => signed(a, w) >= signed(b, w),
  ge_u: (a, b) => a >= b,
};

const BINARY: Record<string, Compute> = {
  add: (a, b) => a + b,
  sub: (a, b) => a - b,
  mul: (a, b) => a * b,
  div_s: (a, b, w) => {
    if (b === 0n) return "trap";
    const quotient = signed(a, w) / signed(b, w);
    return quotient === 1n << (w - 1n) ? "trap" : quotient;
  },
  div_u: (a, b) => (b === 0n ? "trap" : a / b),
  rem_s: (a, b, w) => (b === 0n ? "trap" : signed(a, w) % signed(b, w)),
  rem_u: (a, b) => (b === 0n ? "trap" : a % b),
  and: (a, b) => a & b,
  or: (a, b) => a | b,
  xor: (a, b) => a ^ b,
  shl: (a, b, w) => a << (b % w),
  shr_s: (a, b, w) => signed(a, w) >> (b % w),
  shr_u: (a, b, w) => a >> (b % w),
  rotl: (a, b, w) => (a << (b % w)) | (a >> (w - (b % w))),
  rotr: (a, b, w) => (a >> (b % w)) | (a << (w - (b % w))),
};

const bits = (a: bigint, width: bigint) => a.toString(2).padStart(Number(width), "0");

const UNARY: Record<string, Compute> = {
  clz: (a, _, w) => BigInt(`${bits(a, w)}1`.indexOf("1")),
  ctz: (a, _, w) => BigInt(`${[...bits(a, w)].reverse().join("")}1`.indexOf("1")),
  popcnt: (a, _, w) => BigInt(bits(a, w).replaceAll("0", "").length),
  extend8_s: (a) => BigInt.asIntN(8, a),
  extend16_s: (a) => BigInt.asIntN(16, a),
};

/** `value` as an instruction of `type` leaves it, from any bigint. */
function integer(type: IntegerName, value: bigint): WasmValue {
  return type === "i32" ? Number(BigInt.asIntN(32, value)) : BigInt.asIntN(64, value);
}

function model(type: IntegerName, arity: 1 | 2, result: IntegerName, compute: Compute): Model {
  const width = type === "i32" ? 32 : 64;
  return {
    params: arity === 1 ? [type] : [type, type],
    result,
    compute: (...values) => {
      const [a = 0n, b = 0n] = values.map((value) => BigInt.asUintN(width, BigInt(value)));
      const answer = compute(a, b, BigInt(width));
      return answer === "trap" ? answer : integer(result, BigInt(answer));
    },
  };
}

function integers(type: IntegerName): [string, Model][] {
  const named = (table: Record<string, Compute>, arity: 1 | 2, result: IntegerName) =>
    Object.entries(table).map(([name, compute]): [string, Model] => [
      `${type}.${name}`,
      model(type, arity, result, compute),
    ]);
  return [
    [`${type}.eqz`, model(type, 1, "i32", (a) => a === 0n)],
    ...named(TESTS, 2, "i32"),
    ...named(BINARY, 2, type),
    ...named(UNARY, 1, type),
  ];
}

function convert(from: ValueType, result: ValueType, compute: (value: WasmValue) => Outcome): Model {
  return { params: [from], result, compute: (value) => compute(value!) };
}

function truncate(value: WasmValue): Outcome {
  const whole = Math.trunc(Number(value));
  return whole >= -(2 ** 63) && whole < 2 ** 63 ? BigInt(whole) : "trap"; // NaN is neither
}

export const MODELS: ReadonlyMap<string, Model> = new Map<string, Model>([
  ...integers("i32"),
  ...integers("i64"),
  ["i64.extend32_s", model("i64", 1, "i64", (a) => BigInt.asIntN(32, a))],
  ["i32.wrap_i64", convert("i64", "i32", (a) => integer("i32", BigInt(a)))],
  ["i64.extend_i32_s", convert("i32", "i64", (a) => BigInt(a))],
  ["i64.extend_i32_u", convert("i32", "i64", (a) => BigInt.asUintN(32, BigInt(a)))],
  ["f64.convert_i32_s", convert("i32", "f64", (a) => Number(a))],
  ["f64.convert_i32_u", convert("i32", "f64", (a) => Number(a) >>> 0)],
  ["f64.convert_i64_s", convert("i64", "f64", (a) => Number(a))],
  ["f64.convert_i64_u", convert("i64", "f64", (a) => Number(BigInt.asUintN(64, BigInt(a))))],
  ["i64.trunc_f64_s", convert("f64", "i64", truncate)],
  ["i64.reinterpret_f64", convert("f64", "i64", (a) => new BigInt64Array(doubles(Number(a)).buffer)[0]!)],
  ["f64.reinterpret_i64", convert("i64", "f64", (a) => new Float64Array(words(BigInt(a)).buffer)[0]!)],
]);

const doubles = (value: number) => Float64Array.of(value);
const words = (value: bigint) => BigInt64Array.of(value);

const I64_EDGES = [
  0n, 1n, 2n, 3n, 7n, 31n, 32n, 33n, 63n, 64n, 65n, 127n, 128n, 255n, 256n, 0x7fffn, 0x8000n, 0xffffn,
  0x7fff_ffffn, 0x8000_0000n, 0xffff_ffffn, 0x1_0000_0000n, 0x0123_4567_89ab_cdefn, 2n ** 53n + 1n,
  2n ** 63n - 1n, 2n ** 63n, 2n ** 64n - 1n, 2n ** 64n - 2n, 2n ** 64n - 128n, 2n ** 63n + 2n ** 10n + 1n,
]; // biome-ignore format: by size

/** Values at which instructions differ from one another. */
export const EDGES: Record<"i32" | "i64" | "f64", readonly WasmValue[]> = {
  i64: I64_EDGES.map((value) => BigInt.asIntN(64, value)),
  i32: [...new Set(I64_EDGES.map((value) => Number(BigInt.asIntN(32, value))))],
  f64: [0, -0, 0.5, -0.5, 1, -1.9, 2 ** 53, -(2 ** 63), 2 ** 63, 2 ** 63 - 1024, 1e300, -1e300].concat([
    Number.MIN_VALUE,
    Number.MAX_VALUE,
    Number.POSITIVE_INFINITY,
    Number.NEGATIVE_INFINITY,
  ]),
};
