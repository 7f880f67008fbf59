// The binding of native Unicorn, and what it makes of the timed loops, each against the manual or the host's CPU.
// Skips what the host lacks: Unicorn, GNU as, gcc.

import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { beforeEach, describe, expect, test } from "vitest";
import { addr, offset } from "../../src/base/addr.ts";
import { parseHexBytes } from "../../src/base/bytes.ts";
import { loadUnicorn, PROT, UnicornError } from "../../src/reference/unicornLibrary.ts";

const TEXT = addr(0xffffffff81000000n);
const STACK = addr(0xffffc90000000000n);
const LOOPS = join(import.meta.dirname, "../../bench/workloads/loops.S");

const unicorn = await loadUnicorn();
if ("missing" in unicorn) console.log(`the binding of Unicorn is not tested: ${unicorn.missing}`);

describe("an engine", () => {
  beforeEach((ctx) => {
    if ("missing" in unicorn) ctx.skip(unicorn.missing);
  });

  function open(code: string) {
    if ("missing" in unicorn) throw new Error(unicorn.missing);
    const engine = unicorn.open();
    engine.mapMemory(TEXT, 4096, PROT.READ + PROT.EXEC);
    engine.writeMemory(TEXT, new Uint8Array(4096).fill(0xcc));
    engine.writeMemory(TEXT, parseHexBytes(code));
    return engine;
  }

  test("counts in a loop that it ran without counting, and stops at a new end inside it", () => {
    const engine = open("48 ff c8 75 fb e9 f6 07 00 00"); // dec %rax; jnz back; jmp end
    const [jump, end] = [offset(TEXT, 3), offset(TEXT, 0x800)];
    engine.regWrite("rax", 9n);
    expect(engine.start(TEXT, end)).toBe("UC_ERR_OK");
    expect(engine.regRead("rax")).toBe(0n);
    engine.regWrite("rax", 9n);
    expect(engine.start(TEXT, jump)).toBe("UC_ERR_OK");
    expect(engine.regRead("rax")).toBe(8n);
    expect(engine.start(jump, end)).toBe("UC_ERR_OK");
    expect(engine.regRead("rax")).toBe(0n);
    engine.regWrite("rax", 9n);
    expect(engine.step(TEXT)).toBe("UC_ERR_OK");
    expect([engine.ip(), engine.regRead("rax")]).toEqual([jump, 8n]);
    expect(engine.start(jump, end, 0, 3)).toBe("UC_ERR_OK");
    expect([engine.ip(), engine.regRead("rax")]).toEqual([TEXT, 7n]);
    engine.close();
  });

  test("fetches what was written over code that it ran", () => {
    const engine = open("b8 01 00 00 00"); // mov $1, %eax
    engine.step(TEXT);
    engine.writeMemory(offset(TEXT, 1), Uint8Array.of(2));
    engine.step(TEXT);
    expect(engine.regRead("rax")).toBe(2n);
    engine.close();
  });

  test("every register is the one its name and its place say", () => {
    // push every register in encoding order: what each pushed is read back from memory
    const engine = open("50 51 52 53 54 55 56 57 41 50 41 51 41 52 41 53 41 54 41 55 41 56 41 57 9c");
    const memory = engine.allocate(4096);
    engine.mapNative(STACK, memory, 0, 4096, PROT.READ + PROT.WRITE);
    const words = BigInt64Array.from({ length: 18 }, (_, n) => BigInt(0x1000 + n));
    words[4] = BigInt(STACK) + 4096n;
    words[16] = BigInt(TEXT);
    words[17] = 0x8d7n; // all status flags
    engine.writeState(words);
    const start = words.slice();
    expect(engine.readState().words).toEqual(start);
    for (let n = 0; n < 17; n++) expect(engine.step(engine.ip())).toBe("UC_ERR_OK");
    const pushed = [...new BigInt64Array(memory.bytes.slice().buffer)].slice(-17).reverse();
    const rsp = start[4]! - 32n;
    expect(pushed).toEqual([...start.slice(0, 16), start[17]].map((word, n) => (n === 4 ? rsp : word)));
    expect(engine.regRead("r15")).toBe(0x100fn);
    const { words: now, halves } = engine.readState();
    expect(new Int32Array(now.slice().buffer)).toEqual(halves.slice());
    engine.close();
  });

  test("native memory shows wherever it is mapped, and what is written there is seen", () => {
    const engine = open("8a 06 88 07 b0 01"); // mov (%rsi), %al; mov %al, (%rdi); mov $1, %al
    const memory = engine.allocate(8192);
    engine.mapNative(STACK, memory, 4096, 4096, PROT.READ + PROT.WRITE);
    engine.mapNative(offset(STACK, 0x10000), memory, 4096, 4096, PROT.READ + PROT.WRITE);
    memory.bytes[4096 + 5] = 77;
    engine.regWrite("rsi", BigInt(STACK) + 5n);
    engine.regWrite("rdi", BigInt(STACK) + 0x10000n + 6n);
    engine.step(TEXT);
    engine.step(engine.ip());
    expect([memory.bytes[4096 + 6], engine.readMemory(offset(STACK, 6), 1)[0]]).toEqual([77, 77]);
    engine.unmapMemory(STACK, 4096);
    engine.unmapMemory(offset(STACK, 0x10000), 4096);
    engine.release(memory);
    engine.close();
  });

  test("code in native memory is fetched anew once it is said to have changed", () => {
    const engine = open("90");
    const memory = engine.allocate(4096);
    memory.bytes.set([0xb8, 1, 0, 0, 0, 0xcc]);
    engine.mapNative(STACK, memory, 0, 4096, PROT.READ + PROT.EXEC);
    engine.step(STACK);
    memory.bytes[1] = 2;
    engine.forget(STACK, 4096);
    engine.step(STACK);
    expect(engine.regRead("rax")).toBe(2n);
    engine.close();
  });

  test("has segment bases", () => {
    const engine = open("65 48 8b 06 64 48 8b 1e"); // mov %gs:(%rsi), %rax; mov %fs:(%rsi), %rbx
    engine.mapMemory(STACK, 4096, PROT.READ + PROT.WRITE);
    engine.writeMemory(offset(STACK, 16), Uint8Array.of(1));
    engine.writeMemory(offset(STACK, 32), Uint8Array.of(2));
    engine.writeBase("gs", BigInt(STACK));
    engine.writeBase("fs", BigInt(STACK) + 16n);
    engine.regWrite("rsi", 16n);
    engine.step(TEXT);
    engine.step(engine.ip());
    expect([engine.regRead("rax"), engine.regRead("rbx")]).toEqual([1n, 2n]);
    engine.close();
  });

  test("restores a context, and throws Unicorn's own name for a wrong call", () => {
    const engine = open("90");
    engine.regWrite("r13", 13n);
    const context = engine.saveContext();
    engine.regWrite("r13", 14n);
    engine.restoreContext(context);
    expect(engine.regRead("r13")).toBe(13n);
    expect(() => engine.mapMemory(1n, 1, PROT.ALL)).toThrow(new UnicornError("uc_mem_map", "UC_ERR_ARG"));
    expect(() => engine.mapMemory(TEXT, 4096, PROT.ALL)).toThrow("UC_ERR_MAP");
    engine.close();
  });
});

describe("the timed loops", () => {
  const N = 1000;
  const expected = { tight: tightResult(N), calls: 3n * BigInt(N), redirected: 2n * BigInt(N) };
  const perIteration = { tight: 4, calls: 7, redirected: 37 };
  const names = ["tight", "calls", "redirected"] as const;

  test("give what silicon gives", (ctx) => {
    if (process.arch !== "x64" || process.platform !== "linux") ctx.skip("the host is not x86-64 Linux");
    if (!has("gcc")) ctx.skip("gcc is not installed");
    const printed = inFolder((folder) => {
      const main = join(folder, "main.c");
      writeFileSync(
        main,
        `#include <stdio.h>
         long tight(long), calls(long), redirected(long);
         int main(void) { printf("%ld %ld %ld", tight(${N}), calls(${N}), redirected(${N})); return 0; }`,
      );
      const program = join(folder, "main");
      execFileSync("gcc", ["-o", program, main, LOOPS]);
      return execFileSync(program, { encoding: "utf8" });
    });
    expect(printed.split(" ").map(BigInt)).toEqual(names.map((name) => expected[name]));
  });

  test.for(names)("%s gives the same on Unicorn, in the stated number of instructions", (name, ctx) => {
    if ("missing" in unicorn) return ctx.skip(unicorn.missing);
    if (!has("as") || !has("objcopy") || !has("nm")) return ctx.skip("GNU binutils are not installed");
    const { text, symbols } = inFolder((folder) => {
      const object = join(folder, "loops.o");
      execFileSync("as", ["-o", object, LOOPS]);
      execFileSync("objcopy", ["-O", "binary", "-j", ".text", object, join(folder, "text")]);
      const lines = execFileSync("nm", [object], { encoding: "utf8" }).trim().split("\n");
      const pairs = lines
        .map((line) => line.split(" "))
        .map(([at, , symbol]) => [symbol!, Number(`0x${at}`)] as const);
      return { text: new Uint8Array(readFileSync(join(folder, "text"))), symbols: new Map(pairs) };
    });
    const engine = unicorn.open();
    const end = offset(TEXT, 4095);
    const top = offset(STACK, 4088);
    engine.mapMemory(TEXT, 4096, PROT.READ + PROT.EXEC);
    engine.mapMemory(STACK, 4096, PROT.READ + PROT.WRITE);
    engine.writeMemory(TEXT, new Uint8Array(4096).fill(0xcc));
    engine.writeMemory(TEXT, text);
    engine.writeMemory(top, new Uint8Array(BigUint64Array.of(BigInt.asUintN(64, BigInt(end))).buffer));
    const call = (n: number): number => {
      engine.regWrite("rsp", BigInt(top));
      engine.regWrite("rdi", BigInt(n));
      let steps = 0;
      for (let at = offset(TEXT, symbols.get(name)!); at !== end; at = engine.ip(), steps++) {
        expect(engine.step(at)).toBe("UC_ERR_OK");
      }
      return steps;
    };
    const once = call(1);
    expect(call(N) - once).toBe((N - 1) * perIteration[name]);
    expect(engine.regRead("rax")).toBe(expected[name]);
    engine.close();
  });
});

/** The loop of `tight`, in words. */
function tightResult(n: number): bigint {
  let sum = 0n;
  let folded = 0n;
  for (let i = BigInt(n); i > 0n; i--) {
    sum += i;
    folded ^= sum;
  }
  return sum ^ folded;
}

function has(program: string): boolean {
  return spawnSync(program, ["--version"]).status === 0;
}

function inFolder<T>(act: (folder: string) => T): T {
  const folder = mkdtempSync(join(tmpdir(), "fentrylab-"));
  try {
    return act(folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
}
