// The trunk: the one WebAssembly instance that owns the function table.
//
// Step functions and regions live in modules of their own that import nothing but the memory; only the
// trunk calls them. (A table imported by many instances is copied for each: quadratic in V8.)
//
//   run(cpu)  -> answer   regions from the jump cache, or the interpreter, until something stops
//   one(cpu)  -> answer   one instruction
//   step(cpu) -> f64      one instruction; the new rip, or NaN with the answer kept aside

import { refuse } from "../base/refuse.ts";
import { FunctionBuilder, type Local } from "../wasm/function.ts";
import { ModuleBuilder } from "../wasm/module.ts";
import { ANSWER, BANK_SHIFT, CACHE_ENTRIES, RECORD, STATE } from "../x86/state.ts";
import type { Host } from "./host.ts";

export interface Trunk {
  run(cpu: number): number;
  one(cpu: number): number;
  step(cpu: number): number;
  readonly table: WebAssembly.Table;
}

/** Slots that are always there. Slot 0 in the jump cache means the interpreter, so it holds nothing. */
export const SLOT = { interpreter: 0, unimplemented: 1, invalid: 2, first: 3 } as const;

const INITIAL_SLOTS = 1024;

let compiled: WebAssembly.Module | undefined;

/** In place of the trunk of a machine that was disposed of. */
export const DISPOSED_TRUNK: Trunk = {
  run: () => refuse("machine-disposed", {}),
  one: () => refuse("machine-disposed", {}),
  step: () => refuse("machine-disposed", {}),
  get table() {
    return refuse("machine-disposed", {});
  },
};

export function makeTrunk(host: Host): Trunk {
  compiled ??= new WebAssembly.Module(trunkModule());
  const { exports } = new WebAssembly.Instance(compiled, { host: { memory: host.memory } });
  const trunk = exports as unknown as Trunk & { unimplemented: () => number; invalid: () => number };
  trunk.table.set(SLOT.unimplemented, trunk.unimplemented);
  trunk.table.set(SLOT.invalid, trunk.invalid);
  return trunk;
}

function trunkModule(): Uint8Array<ArrayBuffer> {
  const module = new ModuleBuilder();
  module.importMemory("host", "memory", { minimum: 1 });
  module.table({ minimum: INITIAL_SLOTS }, "table");
  const code = module.type({ params: ["i32", "i32"], results: ["i32"] });

  const one = new FunctionBuilder({ params: ["i32"], results: ["i32"] });
  emitOne(one, code);
  const oneIndex = module.function(one, "one");

  const interpret = new FunctionBuilder({ params: ["i32"], results: ["i32"] });
  emitInterpret(interpret, oneIndex);
  const interpretIndex = module.function(interpret);

  const run = new FunctionBuilder({ params: ["i32"], results: ["i32"] });
  emitRun(run, code, interpretIndex);
  module.function(run, "run");

  const step = new FunctionBuilder({ params: ["i32"], results: ["f64"] });
  emitStep(step, oneIndex);
  module.function(step, "step");

  for (const [name, answer] of [
    ["unimplemented", ANSWER.unimplemented],
    ["invalid", ANSWER.invalidOpcode],
  ] as const) {
    const f = new FunctionBuilder({ params: ["i32", "i32"], results: ["i32"] });
    module.function(f.i32(answer), name);
  }
  return module.encode();
}

/** Leaves the host address of rip's entry in one of the caches of its bank, less the cache's offset, in `entry`. */
function emitEntry(f: FunctionBuilder, cpu: Local, entry: Local): void {
  f.get(cpu)
    .load("i32.load", STATE.rip)
    .get(cpu)
    .load("i32.load", STATE.rip)
    .i32(12)
    .op("i32.shr_u")
    .op("i32.xor");
  f.i32(CACHE_ENTRIES - 1)
    .op("i32.and")
    .i32(4)
    .op("i32.shl")
    .get(cpu)
    .op("i32.add")
    .get(cpu)
    .load("i32.load", STATE.cpl)
    .i32(BANK_SHIFT)
    .op("i32.shl")
    .op("i32.add")
    .set(entry);
}

function emitOne(f: FunctionBuilder, codeType: number): void {
  const cpu = f.param(0);
  const entry = f.local("i32");
  const record = f.local("i32");
  const answer = f.local("i32");
  emitEntry(f, cpu, entry);
  f.get(entry).load("i64.load", STATE.stepCache).get(cpu).load("i64.load", STATE.rip).op("i64.ne").if();
  f.i32(ANSWER.decode).op("return").end();
  f.get(cpu)
    .get(entry)
    .load("i32.load", STATE.stepCache + 8)
    .tee(record);
  f.get(record).load("i32.load", RECORD.slot).callIndirect(codeType).set(answer);
  // Retired: next and jumped, and the answers that come after the instruction.
  f.get(answer)
    .i32(ANSWER.jumped)
    .op("i32.le_u")
    .get(answer)
    .i32(ANSWER.firstRetired)
    .op("i32.ge_u")
    .op("i32.or")
    .if();
  f.get(cpu).get(cpu).load("i64.load", STATE.budget).i64(1).op("i64.sub").store("i64.store", STATE.budget);
  f.end();
  f.get(answer);
}

/** Interprets from rip to the next jump. */
function emitInterpret(f: FunctionBuilder, one: number): void {
  const cpu = f.param(0);
  const answer = f.local("i32");
  const top = f.loop();
  f.get(cpu).load("i64.load", STATE.budget).i64(0).op("i64.le_s").if();
  f.i32(ANSWER.budget).op("return").end();
  f.get(cpu).call(one).tee(answer).op("i32.eqz").brIf(top);
  f.end();
  f.get(answer).i32(ANSWER.jumped).op("i32.eq").if();
  f.i32(ANSWER.next).op("return").end();
  f.get(answer);
}

function emitRun(f: FunctionBuilder, codeType: number, interpret: number): void {
  const cpu = f.param(0);
  const entry = f.local("i32");
  const slot = f.local("i32");
  const answer = f.local("i32");
  const top = f.loop();
  emitEntry(f, cpu, entry);
  f.get(entry).load("i64.load", STATE.jumpCache).get(cpu).load("i64.load", STATE.rip).op("i64.ne").if();
  f.i32(ANSWER.lookup).op("return").end();
  f.get(entry)
    .load("i32.load", STATE.jumpCache + 8)
    .tee(slot)
    .op("i32.eqz")
    .if();
  // Interpreted code counts down to being hot in its own cache entry.
  f.get(entry)
    .get(entry)
    .load("i32.load", STATE.jumpCache + 12)
    .i32(1)
    .op("i32.sub")
    .store("i32.store", STATE.jumpCache + 12);
  f.get(entry)
    .load("i32.load", STATE.jumpCache + 12)
    .i32(0)
    .op("i32.lt_s")
    .if();
  f.i32(ANSWER.hot).op("return").end();
  f.get(cpu).call(interpret).set(answer);
  f.else();
  f.get(cpu)
    .get(entry)
    .load("i32.load", STATE.jumpCache + 12)
    .get(slot)
    .callIndirect(codeType)
    .set(answer);
  f.end();
  f.get(answer).op("i32.eqz").brIf(top);
  f.end();
  f.get(answer);
}

function emitStep(f: FunctionBuilder, one: number): void {
  const cpu = f.param(0);
  const answer = f.local("i32");
  f.get(cpu).call(one).tee(answer).i32(ANSWER.jumped).op("i32.gt_u").if();
  f.get(cpu).get(answer).store("i32.store", STATE.answer);
  f.f64(Number.NaN).op("return").end();
  f.get(cpu).load("i64.load", STATE.rip).op("f64.convert_i64_s");
}
