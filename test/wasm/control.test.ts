// Blocks, branches, calls, tail calls, tables, globals, imports, locals: each run.

import { describe, expect, test } from "vitest";
import { FunctionBuilder } from "../../src/wasm/function.ts";
import { ModuleBuilder } from "../../src/wasm/module.ts";
import type { ValueType } from "../../src/wasm/opcode.ts";
import { compile, instantiate, makeFunction } from "./compiled.ts";
import { STRUCTURAL } from "./numericModel.ts";

const I32 = ["i32"] as const;

describe("instructions without operands", () => {
  const tests: Record<(typeof STRUCTURAL)[number], () => void> = {
    unreachable: () => {
      const f = compile(I32, I32, (b) => {
        b.get(b.param(0)).if();
        b.op("unreachable").end().i32(7);
      });
      expect(f(0)).toBe(7);
      expect(() => f(1)).toThrow(/unreachable/);
    },
    nop: () => expect(compile([], I32, (b) => b.op("nop").i32(7).op("nop"))()).toBe(7),
    return: () => {
      const f = compile(I32, I32, (b) => {
        b.block();
        b.get(b.param(0)).if();
        b.i32(1).op("return").end().end().i32(2);
      });
      expect([f(1), f(0)]).toEqual([1, 2]);
    },
    drop: () => expect(compile([], I32, (b) => b.i32(7).i64(8).op("drop"))()).toBe(7),
    select: () => {
      const f = compile(I32, ["i64"], (b) => b.i64(10).i64(20).get(b.param(0)).op("select"));
      expect([f(1), f(-5), f(0)]).toEqual([10n, 10n, 20n]);
    },
  };

  test.each(STRUCTURAL)("%s", (name) => tests[name]());
});

describe("branches", () => {
  test("out of nested blocks go past the end of the one they name", () => {
    const f = compile(I32, I32, (b) => {
      const trace = b.local("i32");
      const mark = (bit: number) => b.get(trace).i32(bit).op("i32.or").set(trace);
      const outer = b.block();
      const middle = b.block();
      const inner = b.block();
      b.get(b.param(0)).i32(0).op("i32.eq").brIf(inner);
      b.get(b.param(0)).i32(1).op("i32.eq").brIf(middle);
      b.get(b.param(0)).i32(2).op("i32.eq").brIf(outer);
      mark(1).end();
      mark(2).end();
      mark(4).end();
      mark(8).get(trace);
    });
    expect([0, 1, 2, 3].map((n) => f(n))).toEqual([14, 12, 8, 15]);
  });

  test("to a loop go to its start, and a loop left alone ends", () => {
    const f = compile(["i64"], ["i64"], (b) => {
      const sum = b.local("i64");
      const top = b.loop();
      b.get(sum).get(b.param(0)).op("i64.add").set(sum);
      b.get(b.param(0)).i64(1).op("i64.sub").tee(b.param(0)).op("i64.eqz").op("i32.eqz").brIf(top);
      b.end().get(sum);
    });
    expect(f(1000n)).toBe(500_500n);
    expect(f(1n)).toBe(1n);
  });

  test("carry a value out of a block, a loop and an if", () => {
    const f = compile(I32, ["i64"], (b) => {
      const out = b.block("i64");
      b.get(b.param(0)).if("i64");
      b.i64(-1).br(out);
      b.else();
      b.loop("i64");
      b.i64(5).end().end().i64(2).op("i64.mul").end();
    });
    expect([f(1), f(0)]).toEqual([-1n, 10n]);
  });

  test("by a table; an index beyond it, or a negative one, goes to the last", () => {
    const f = compile(I32, I32, (b) => {
      const labels = [b.block(), b.block(), b.block()].reverse();
      b.get(b.param(0)).brTable([labels[0]!, labels[1]!, labels[0]!], labels[2]!);
      b.end().i32(10).op("return").end().i32(20).op("return").end().i32(30);
    });
    expect([0, 1, 2, 3, 1000, -1].map((n) => f(n))).toEqual([10, 20, 10, 30, 30, 30]);
  });

  test("by a table of 1,000 labels", () => {
    const count = 1000;
    const f = compile(I32, I32, (b) => {
      const otherwise = b.block();
      const labels = Array.from({ length: count }, () => b.block()).reverse();
      b.get(b.param(0)).brTable(labels, otherwise);
      for (let n = 0; n < count; n++)
        b.end()
          .i32(3 * n)
          .op("return");
      b.end().i32(-1);
    });
    expect([0, 1, 63, 64, 128, 999, 1000].map((n) => f(n))).toEqual([0, 3, 189, 192, 384, 2997, -1]);
  });

  test("to a block that is closed, or encoding with one open, is our bug and says so", () => {
    const f = new FunctionBuilder({ params: [], results: [] });
    const label = f.block();
    const module = new ModuleBuilder();
    module.function(f);
    expect(() => module.encode()).toThrow("1 blocks are still open");
    f.end();
    expect(() => f.br(label)).toThrow("branch to a block that is closed");
    expect(() => f.param(0)).toThrow("no parameter 0");
  });
});

describe("calls", () => {
  const DEEP = 1_000_000;
  const counting = { params: ["i32", "i64"], results: ["i64"] } as const;

  /** f(n, sum) = n == 0 ? sum : next(n - 1, sum + n) */
  function descend(next: (f: FunctionBuilder) => void): FunctionBuilder {
    return makeFunction(counting.params, counting.results, (f) => {
      const [n, sum] = [f.param(0), f.param(1)];
      f.get(n).op("i32.eqz").if();
      f.get(sum).op("return").end();
      f.get(n).i32(1).op("i32.sub").get(sum).get(n).op("i64.extend_i32_u").op("i64.add");
      next(f);
    });
  }

  test("by index count imported functions first", () => {
    const module = new ModuleBuilder();
    const seen: unknown[] = [];
    const note = module.importFunction("host", "note", { params: ["i32", "i64"], results: [] });
    const twice = module.importFunction("host", "twice", { params: ["i32"], results: ["i32"] });
    const six = module.function(makeFunction([], I32, (f) => f.i32(6)));
    module.function(
      makeFunction([], I32, (f) => f.i32(1).i64(-2).call(note).call(six).call(twice)),
      "run",
    );
    const { run } = instantiate(module, {
      host: { note: (...values: unknown[]) => seen.push(...values), twice: (n: number) => 2 * n },
    });
    expect(run!()).toBe(12);
    expect(seen).toEqual([1, -2n]);
    expect([note, twice, six]).toEqual([0, 1, 2]);
  });

  test("an import after the first function is refused", () => {
    const module = new ModuleBuilder();
    module.function(makeFunction([], [], () => {}));
    expect(() => module.importFunction("a", "b", { params: [], results: [] })).toThrow(
      "after the first function",
    );
  });

  test("return_call a million deep does not overflow, and call does", () => {
    const module = new ModuleBuilder();
    module.function(
      descend((f) => f.returnCall(0)),
      "tail",
    );
    module.function(
      descend((f) => f.call(1)),
      "plain",
    );
    const { tail, plain } = instantiate(module);
    expect(tail!(DEEP, 0n)).toBe((BigInt(DEEP) * BigInt(DEEP + 1)) / 2n);
    expect(plain!(100, 0n)).toBe(5050n);
    expect(() => plain!(DEEP, 0n)).toThrow(RangeError);
  });

  test("return_call_indirect a million deep, between two functions", () => {
    const module = new ModuleBuilder();
    module.table({ minimum: 2 }, "table");
    const type = module.type(counting);
    module.function(
      descend((f) => f.i32(1).returnCallIndirect(type)),
      "even",
    );
    module.function(
      descend((f) => f.i32(0).returnCallIndirect(type)),
      "odd",
    );
    const { even, odd, table } = instantiate(module);
    const slots = table as unknown as WebAssembly.Table;
    slots.set(0, even as unknown as WebAssembly.ExportValue);
    slots.set(1, odd as unknown as WebAssembly.ExportValue);
    expect(even!(DEEP, 0n)).toBe((BigInt(DEEP) * BigInt(DEEP + 1)) / 2n);
  });

  test("call_indirect checks slot and type; table.get and table.set move functions", () => {
    const module = new ModuleBuilder();
    const imported = new WebAssembly.Table({ initial: 4, element: "anyfunc" });
    module.importTable("host", "table", { minimum: 4 });
    const nullary = module.type({ params: [], results: I32 });
    module.function(
      makeFunction([], I32, (f) => f.i32(11)),
      "eleven",
    );
    module.function(
      makeFunction([], ["i64"], (f) => f.i64(12)),
      "long",
    );
    module.function(
      makeFunction(I32, I32, (f) => f.get(f.param(0)).callIndirect(nullary)),
      "call",
    );
    module.function(
      makeFunction(["i32", "i32"], [], (f) => f.get(f.param(0)).get(f.param(1)).tableGet().tableSet()),
      "move",
    );
    const exports = instantiate(module, { host: { table: imported } });
    imported.set(0, exports.eleven as unknown as WebAssembly.ExportValue);
    imported.set(1, exports.long as unknown as WebAssembly.ExportValue);
    const call = exports.call!;
    expect(call(0)).toBe(11);
    expect(() => call(1)).toThrow(/signature mismatch/);
    expect(() => call(2)).toThrow();
    expect(() => call(4)).toThrow(/out of bounds/);
    exports.move!(2, 0);
    expect(call(2)).toBe(11);
    exports.move!(0, 3);
    expect(() => call(0)).toThrow();
  });

  test("of equal signatures share a type; results may be several", () => {
    const module = new ModuleBuilder();
    const first = module.type({ params: ["i32"], results: ["i64", "f64"] });
    expect(module.type({ params: ["i32"], results: ["i64", "f64"] })).toBe(first);
    expect(module.type({ params: ["i32", "i64"], results: ["f64"] })).not.toBe(first);
    module.function(
      makeFunction(I32, ["i64", "f64"], (f) => f.i64(-3).f64(0.125)),
      "pair",
    );
    expect(instantiate(module).pair!(0)).toEqual([-3n, 0.125]);
  });
});

describe("globals and locals", () => {
  test("globals start at what was given, and are written", () => {
    const module = new ModuleBuilder();
    const [a, b] = [module.global("i32", -129), module.global("i64", 2n ** 64n - 2n)];
    module.function(
      makeFunction([], I32, (f) => f.globalGet(a)),
      "a",
    );
    module.function(
      makeFunction([], ["i64"], (f) => f.globalGet(b)),
      "b",
    );
    module.function(
      makeFunction(["i64"], [], (f) => f.get(f.param(0)).globalSet(b)),
      "set",
    );
    const exports = instantiate(module);
    expect([exports.a!(), exports.b!()]).toEqual([-129, -2n]);
    exports.set!(2n ** 40n);
    expect([exports.a!(), exports.b!()]).toEqual([-129, 2n ** 40n]);
  });

  test("imported memory with limits is the one that is written", () => {
    const memory = new WebAssembly.Memory({ initial: 1, maximum: 3 });
    const module = new ModuleBuilder();
    module.importMemory("hôte", "mémoire", { minimum: 1, maximum: 3 });
    module.function(
      makeFunction([], [], (f) => f.i32(8).i64(-1).store("i64.store")),
      "run",
    );
    instantiate(module, { hôte: { mémoire: memory } }).run!();
    expect([...new Uint8Array(memory.buffer, 7, 10)]).toEqual([0, ...new Array(8).fill(255), 0]);
  });

  test("400 locals of mixed types are zero at entry, and apart from one another", () => {
    const types: ValueType[] = Array.from(
      { length: 400 },
      (_, n) => (["i32", "i64", "i64", "f64"] as const)[(n * 7) % 4]!,
    );
    const f = compile(["i64"], ["i64", "i64"], (b) => {
      const locals = types.map((type) => b.local(type));
      // Each weighted by its place, so that two exchanged locals change the sum.
      const total = () => {
        b.i64(0);
        locals.forEach((local, n) => {
          b.get(local);
          if (types[n] === "i32") b.op("i64.extend_i32_s");
          if (types[n] === "f64") b.op("i64.trunc_f64_s");
          b.i64(n + 1)
            .op("i64.mul")
            .op("i64.add");
        });
      };
      total();
      locals.forEach((local, n) => {
        if (types[n] === "i32") b.i32(n);
        else if (types[n] === "i64") b.i64(n);
        else b.f64(n);
        b.set(local);
      });
      total();
    });
    const wanted = types.reduce((sum, _, n) => sum + n * (n + 1), 0);
    expect(f(99n)).toEqual([0n, BigInt(wanted)]);
  });
});

test("a captured body can follow a prologue that was decided after it", () => {
  const f = compile(I32, I32, (b) => {
    const used = b.local("i32");
    const body = b.capture(() => {
      const label = b.block();
      b.get(b.param(0)).brIf(label);
      b.i32(100).set(used);
      const nested = b.capture(() => b.get(used).i32(1).op("i32.add").set(used));
      b.end().append(nested).append(nested);
    });
    expect(b.size).toBe(0);
    b.i32(40).set(used).append(body).get(used);
  });
  expect([f(1), f(0)]).toEqual([42, 102]);
});

test("a module of 3,000 functions keeps each one's code", () => {
  const module = new ModuleBuilder();
  for (let n = 0; n < 3000; n++)
    module.function(
      makeFunction([], I32, (f) => f.i32(n * n)),
      `f${n}`,
    );
  const exports = instantiate(module);
  for (const n of [0, 1, 127, 128, 2047, 2999]) expect(exports[`f${n}`]!()).toBe(n * n);
});
