// Building, compiling and instantiating a module in one go.

import { FunctionBuilder } from "../../src/wasm/function.ts";
import { ModuleBuilder } from "../../src/wasm/module.ts";
import type { ValueType } from "../../src/wasm/opcode.ts";
import type { WasmValue } from "./numericModel.ts";

export type WasmFunction = (...values: WasmValue[]) => WasmValue | WasmValue[] | undefined;
export type Imports = ConstructorParameters<typeof WebAssembly.Instance>[1];

/** The exports of `module`, compiled by the host's WebAssembly. */
export function instantiate(module: ModuleBuilder, imports?: Imports): Record<string, WasmFunction> {
  const instance = new WebAssembly.Instance(new WebAssembly.Module(module.encode()), imports);
  return instance.exports as unknown as Record<string, WasmFunction>;
}

export function makeFunction(
  params: readonly ValueType[],
  results: readonly ValueType[],
  emit: (f: FunctionBuilder) => void,
): FunctionBuilder {
  const f = new FunctionBuilder({ params, results });
  emit(f);
  return f;
}

/** One function alone, in a module with a page of memory. */
export function compile(
  params: readonly ValueType[],
  results: readonly ValueType[],
  emit: (f: FunctionBuilder) => void,
): WasmFunction {
  const module = new ModuleBuilder();
  module.memory({ minimum: 1 });
  module.function(makeFunction(params, results, emit), "f");
  return instantiate(module).f!;
}
