// Loads and stores of every width at every kind of address and offset, against a DataView; bulk operations
// against Uint8Array.

import { describe, expect, test } from "vitest";
import { ModuleBuilder } from "../../src/wasm/module.ts";
import { LOAD, type LoadName, STORE, type StoreName } from "../../src/wasm/opcode.ts";
import { instantiate, makeFunction, type WasmFunction } from "./compiled.ts";
import type { WasmValue } from "./numericModel.ts";

const PAGE = 65536;
const OFFSETS = [0, 1, 127, 128, 8192, PAGE - 9];

interface Width {
  readonly bytes: number;
  readonly signed: boolean;
  readonly type: "i32" | "i64";
}

/** `i64.load16_s` reads 2 bytes, sign-extended, into an i64. */
function widthOf(name: LoadName | StoreName): Width {
  const [, type, bits, sign] = /^(i32|i64)\.(?:load|store)(\d*)(_[su])?$/.exec(name)!;
  const full = type === "i32" ? 4 : 8;
  return { type: type as Width["type"], bytes: bits === "" ? full : Number(bits) / 8, signed: sign !== "_u" };
}

/** A memory whose bytes all differ from their neighbours, many with the top bit set. */
function makeMemory(): { memory: WebAssembly.Memory; bytes: Uint8Array } {
  const memory = new WebAssembly.Memory({ initial: 1 });
  const bytes = new Uint8Array(memory.buffer);
  bytes.forEach((_, at) => {
    bytes[at] = (at * 0x95 + (at >> 8) * 0x3b + 0x81) & 0xff;
  });
  return { memory, bytes };
}

function word(bytes: Uint8Array, at: number, { bytes: size, signed, type }: Width): WasmValue {
  let value = 0n;
  for (let n = size - 1; n >= 0; n--) value = (value << 8n) | BigInt(bytes[at + n]!);
  const cut = signed ? BigInt.asIntN(8 * size, value) : value;
  return type === "i32" ? Number(BigInt.asIntN(32, cut)) : BigInt.asIntN(64, cut);
}

function withMemory(memory: WebAssembly.Memory, build: (module: ModuleBuilder) => void) {
  const module = new ModuleBuilder();
  module.importMemory("host", "memory", { minimum: 1 });
  build(module);
  return instantiate(module, { host: { memory } });
}

describe("loads", () => {
  const { memory, bytes } = makeMemory();
  const names = Object.keys(LOAD) as LoadName[];
  const exports = withMemory(memory, (module) => {
    for (const name of names)
      for (const offset of OFFSETS) {
        const f = makeFunction(["i32"], [widthOf(name).type], (b) => b.get(b.param(0)).load(name, offset));
        module.function(f, `${name}+${offset}`);
      }
  });

  test.each(names)("%s", (name) => {
    const width = widthOf(name);
    for (const offset of OFFSETS) {
      const load = exports[`${name}+${offset}`]!;
      for (const address of [0, 1, 2, 3, 5, 8, 100, 255]) {
        if (address + offset + width.bytes > PAGE) continue;
        expect(load(address), `${address}+${offset}`).toBe(word(bytes, address + offset, width));
      }
    }
  });

  test.each(names)("%s takes address and offset as unsigned, and traps beyond the end", (name) => {
    const last = PAGE - widthOf(name).bytes;
    expect(exports[`${name}+0`]!(last)).toBe(word(bytes, last, widthOf(name)));
    expect(() => exports[`${name}+0`]!(last + 1)).toThrow(/out of bounds/);
    expect(() => exports[`${name}+8192`]!(-4096)).toThrow(/out of bounds/);
  });

  test("sign and width are told apart by the bytes that are read", () => {
    // Top bits set in the last byte of each width: the sign of each is then in no other.
    const at = bytes.findIndex(
      (_, n) => [0, 1, 3].every((more) => bytes[n + more]! >= 0x80) && bytes[n + 7]! < 0x80,
    );
    const results = names.map((name) => `${widthOf(name).type}:${exports[`${name}+0`]!(at)}`);
    expect(new Set(results).size).toBe(names.length);
  });
});

describe("stores", () => {
  const { memory, bytes } = makeMemory();
  const names = Object.keys(STORE) as StoreName[];
  const exports = withMemory(memory, (module) => {
    for (const name of names)
      for (const offset of OFFSETS) {
        const f = makeFunction(["i32", widthOf(name).type], [], (b) =>
          b.get(b.param(0)).get(b.param(1)).store(name, offset),
        );
        module.function(f, `${name}+${offset}`);
      }
  });

  test.each(names)("%s writes its bytes and no others", (name) => {
    const width = widthOf(name);
    for (const offset of OFFSETS) {
      for (const address of [0, 3, 8, 100]) {
        if (address + offset + width.bytes > PAGE) continue;
        const wanted = bytes.slice();
        const value = 0x8192_a3b4_c5d6_e7f8n ^ BigInt(address * 0x1111 + offset);
        for (let n = 0; n < width.bytes; n++)
          wanted[address + offset + n] = Number((value >> BigInt(8 * n)) & 0xffn);
        const passed = width.type === "i32" ? Number(BigInt.asIntN(32, value)) : BigInt.asIntN(64, value);
        exports[`${name}+${offset}`]!(address, passed);
        expect(Buffer.compare(bytes, wanted), `${address}+${offset}`).toBe(0);
      }
    }
  });

  test.each(names)("%s beyond the end traps and writes nothing", (name) => {
    const { bytes: size, type } = widthOf(name);
    const before = bytes.slice();
    expect(() => exports[`${name}+0`]!(PAGE - size + 1, type === "i32" ? 0 : 0n)).toThrow(/out of bounds/);
    expect(Buffer.compare(bytes, before)).toBe(0);
  });
});

describe("bulk operations", () => {
  const { memory, bytes } = makeMemory();
  const three = (emit: (f: ReturnType<typeof makeFunction>) => void) =>
    makeFunction(["i32", "i32", "i32"], [], (f) => {
      for (const n of [0, 1, 2]) f.get(f.param(n));
      emit(f);
    });
  const exports = withMemory(memory, (module) => {
    module.function(
      three((f) => f.memoryCopy()),
      "copy",
    );
    module.function(
      three((f) => f.memoryFill()),
      "fill",
    );
    module.function(
      makeFunction([], ["i32"], (f) => f.memorySize()),
      "size",
    );
    module.function(
      makeFunction(["i32"], ["i32"], (f) => f.get(f.param(0)).memoryGrow()),
      "grow",
    );
  });
  const call = (name: string): WasmFunction => exports[name]!;

  test.each([
    [100, 90, 50],
    [90, 100, 50],
    [0, 1000, 300],
    [PAGE - 4, 0, 4],
    [5, 5, 9],
    [1, 2, 0],
  ])("copy to %i from %i of %i bytes", (to, from, size) => {
    const wanted = bytes.slice();
    wanted.copyWithin(to, from, from + size);
    call("copy")(to, from, size);
    expect(Buffer.compare(bytes, wanted)).toBe(0);
  });

  test("fill takes the value's low byte", () => {
    const wanted = bytes.slice().fill(0x5a, 40, 77);
    call("fill")(40, 0x1_235a, 37);
    expect(Buffer.compare(bytes, wanted)).toBe(0);
    expect(() => call("fill")(PAGE - 1, 0, 2)).toThrow(/out of bounds/);
    expect(() => call("copy")(0, PAGE - 1, 2)).toThrow(/out of bounds/);
  });

  test("size and grow count pages", () => {
    expect(call("size")()).toBe(1);
    expect(call("grow")(2)).toBe(1);
    expect(call("size")()).toBe(3);
    expect(memory.buffer.byteLength).toBe(3 * PAGE);
    expect(call("grow")(-1)).toBe(-1);
  });
});
