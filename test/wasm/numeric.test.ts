// Every numeric instruction, run, against its model: edge values in all combinations, then random ones.
// And whether that comparison would notice an opcode that stands in another's place: for every such pair.

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { ModuleBuilder } from "../../src/wasm/module.ts";
import { OP, type OpName } from "../../src/wasm/opcode.ts";
import { compile, instantiate, makeFunction, type WasmFunction } from "./compiled.ts";
import {
  EDGES,
  MODELS,
  type Model,
  type NumericName,
  type Outcome,
  STRUCTURAL,
  type WasmValue,
} from "./numericModel.ts";

const NAMES = (Object.keys(OP) as OpName[]).filter(
  (name): name is NumericName => !(STRUCTURAL as readonly string[]).includes(name),
);

const modelOf = (name: OpName): Model => MODELS.get(name) ?? expect.fail(`${name} has no model`);
const functions = compileAll();

function compileAll(): ReadonlyMap<OpName, WasmFunction> {
  const module = new ModuleBuilder();
  const modelled = NAMES.filter((name) => MODELS.has(name));
  for (const name of modelled) {
    const { params, result } = modelOf(name);
    module.function(
      makeFunction(params, [result], (f) => {
        params.forEach((_, n) => {
          f.get(f.param(n));
        });
        f.op(name);
      }),
      name,
    );
  }
  const exports = instantiate(module);
  return new Map(modelled.map((name) => [name, exports[name]!]));
}

function outcome(name: OpName, values: readonly WasmValue[]): Outcome {
  try {
    return functions.get(name)!(...values) as WasmValue;
  } catch {
    return "trap";
  }
}

/** All combinations of edge values for the parameters of `model`. */
function edgeCases({ params }: Model): WasmValue[][] {
  let cases: WasmValue[][] = [[]];
  for (const type of params)
    cases = cases.flatMap((start) => EDGES[type as "i32"].map((value) => [...start, value]));
  return cases;
}

/** The first edge case at which `emitted` does not do what `name` should. */
function firstDifference(name: OpName, emitted: OpName): string | undefined {
  const model = modelOf(name);
  for (const values of edgeCases(model)) {
    const [expected, got] = [model.compute(...values), outcome(emitted, values)];
    if (!Object.is(expected, got)) return `${name}(${values.join()}): expected ${expected}, got ${got}`;
  }
  return undefined;
}

const arbitrary = {
  i32: fc.integer(),
  i64: fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }),
  f64: fc.double({ noNaN: true }),
} as const;

test("every instruction of the table has a model or is structural, and there is no model beside", () => {
  expect([...MODELS.keys(), ...STRUCTURAL].sort()).toEqual(Object.keys(OP).sort());
});

describe.each(NAMES)("%s", (name) => {
  test("on edge values", () => expect(firstDifference(name, name)).toBeUndefined());

  test("on random values", () => {
    const model = modelOf(name);
    const values = fc.tuple(...model.params.map((type): fc.Arbitrary<WasmValue> => arbitrary[type as "i32"]));
    fc.assert(
      fc.property(values, (operands) => {
        expect(outcome(name, operands)).toBe(model.compute(...operands));
      }),
      { seed: 1, numRuns: 200 },
    );
  });
});

describe("a wrong opcode is noticed", () => {
  const signature = (name: OpName) => `${modelOf(name).params}:${modelOf(name).result}`;

  test("gt_u in place of gt_s", () => {
    expect(firstDifference("i32.gt_s", "i32.gt_u")).toBe("i32.gt_s(0,-2147483648): expected 1, got 0");
    expect(firstDifference("i64.gt_s", "i64.gt_u")).toMatch(/expected 1, got 0$/);
  });

  test.each(NAMES)("%s, with any other of its signature in its place", (name) => {
    const others = NAMES.filter((other) => other !== name && signature(other) === signature(name));
    expect(others.filter((other) => firstDifference(name, other) === undefined)).toEqual([]);
  });
});

test("reinterpretation keeps the payload of a NaN", () => {
  const there = compile(["i64"], ["i64"], (f) => {
    f.get(f.param(0)).op("f64.reinterpret_i64").op("i64.reinterpret_f64");
  });
  for (const bits of [0x7ff8_0000_0000_0001n, 0x7ffc_dead_beef_0001n, -1n]) expect(there(bits)).toBe(bits);
});

test("truncating NaN traps", () => expect(outcome("i64.trunc_f64_s", [Number.NaN])).toBe("trap"));
