// Whether the reference itself can be trusted: native Unicorn and the timed loops, each against the
// manual or the host's CPU. Skips what the host lacks: Unicorn, GNU as, gcc.

import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeEach, describe, expect, test } from "vitest";
import { loadUnicorn, PROT, UnicornError } from "../../bench/unicorn.ts";
import { addr, offset } from "../../src/base/addr.ts";
import { parseHexBytes } from "../../src/base/bytes.ts";
import { openUnicornMachine, type Program, type State } from "./unicornMachine.ts";

const TEXT = addr(0xffffffff81000000n);
const DATA = addr(0xffff888000001000n);
const STACK = addr(0xffffc90000000000n);
const LOOPS = join(import.meta.dirname, "../../bench/workloads/loops.S");

const unicorn = await loadUnicorn();
const machine = await openUnicornMachine();
afterAll(() => {
  if (!("missing" in machine)) machine.close();
});

function run(code: string, steps: number, rest: Partial<Program> = {}): State[] {
  if ("missing" in machine) throw new Error(machine.missing);
  return machine.run({ at: TEXT, code: parseHexBytes(code), ...rest }, steps);
}

function last(states: readonly State[]): State {
  return states[states.length - 1]!;
}

describe("stepping", () => {
  beforeEach((ctx) => {
    if ("missing" in machine) ctx.skip(machine.missing);
  });

  test("gives registers and flags after each instruction", () => {
    // stc; adc $0, %al; dec %rcx
    const states = run("f9 14 00 48 ff c9", 3, { registers: { rax: 0xffn, rcx: 0n, rflags: 2n } });
    expect(states.map((s) => s.registers.rip - BigInt.asUintN(64, BigInt(TEXT)))).toEqual([1n, 3n, 6n]);
    expect(states.map((s) => s.registers.rax)).toEqual([0xffn, 0n, 0n]);
    expect(states.map((s) => s.registers.rflags)).toEqual([
      0x03n, // CF
      0x57n, // CF PF AF ZF
      0x97n, // dec keeps CF; PF AF SF
    ]);
    expect(last(states).registers.rcx).toBe(0xffff_ffff_ffff_ffffn);
  });

  test("every register is the one its name says", () => {
    // push every register in encoding order: what each pushed is read back from memory
    const names = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split(" ");
    const registers = Object.fromEntries(names.map((name, i) => [name, BigInt(0x1000 + i)]));
    const rsp = BigInt.asUintN(64, BigInt(offset(STACK, 4096)));
    const { pages } = last(
      run("50 51 52 53 54 55 56 57 41 50 41 51 41 52 41 53 41 54 41 55 41 56 41 57", 16, {
        registers: { ...registers, rsp },
        pages: [{ at: STACK, bytes: new Uint8Array() }],
      }),
    );
    const words = [...new BigUint64Array(pages[0]!.buffer)].slice(-16).reverse();
    expect(words).toEqual(names.map((name) => (name === "rsp" ? rsp - 32n : registers[name])));
  });

  test.each([
    ["48 8b 06", "UC_ERR_READ_UNMAPPED", 0x5000n],
    ["48 89 06", "UC_ERR_WRITE_UNMAPPED", 0x5000n],
    ["48 89 06", "UC_ERR_WRITE_PROT", BigInt.asUintN(64, BigInt(DATA))],
    ["0f 0b", "UC_ERR_INSN_INVALID", 0n],
    ["48 f7 f6", "UC_ERR_EXCEPTION", 0n],
  ])("%s stops with %s and its own address", (code, stop, rsi) => {
    const pages = [{ at: DATA, bytes: new Uint8Array(), perms: PROT.READ }];
    const states = run(`90 ${code}`, 5, { registers: { rsi }, pages });
    expect(states.map((s) => s.stop)).toEqual(["UC_ERR_OK", stop]);
    expect(last(states).registers.rip).toBe(BigInt.asUintN(64, BigInt(offset(TEXT, 1))));
  });

  test("nothing of the program before is left", () => {
    const pages = [{ at: DATA, bytes: Uint8Array.of(7) }];
    const rsi = BigInt.asUintN(64, BigInt(DATA));
    // incb (%rsi); mov $5, %eax
    expect(last(run("fe 06 b8 05 00 00 00", 2, { registers: { rsi }, pages })).pages[0]![0]).toBe(8);
    const after = last(run("8a 06", 1, { registers: { rsi }, pages }));
    expect(after.registers.rax).toBe(7n);
    expect(last(run("8a 06", 1, { registers: { rsi } })).stop).toBe("UC_ERR_READ_UNMAPPED");
  });
});

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
