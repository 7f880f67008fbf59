// The native harness itself: nothing leaks from one program into the next, whatever a program does.

import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { CODE, DATA, DATA_SIZE, FILL, type Outcome, type Program } from "../x86/cases-model.ts";
import { parseCase } from "../x86/cases-text.ts";
import { nativeSkipReason, runNative } from "./oracle.ts";

const skip = await nativeSkipReason();
if (skip !== undefined) console.log(`the native harness is not tested: ${skip}`);

function program(bytes: string, before = ""): Program {
  return parseCase(`${bytes} | - | ${before}`, "oracle.test.ts", 1)!;
}

async function runOne(bytes: string, before = ""): Promise<Outcome> {
  const [outcome] = await runNative([program(bytes, before)]);
  return outcome!;
}

test("harness.S has the layout that the cases have", () => {
  const source = readFileSync(new URL("harness.S", import.meta.url), "utf8");
  const constants = Object.fromEntries(
    [...source.matchAll(/\.set\s+(\w+), (\w+)/g)].map(([, name, value]) => [name, Number(value)]),
  );
  expect(constants).toMatchObject({ DATA, DATA_SIZE, ENTRY: CODE, FILL });
});

describe.skipIf(skip !== undefined)("the native harness", () => {
  test("runs nothing when there is nothing to run", async () => {
    expect(await runNative([])).toEqual([]);
  });

  test("answers in order, thousands at a time", async () => {
    const programs = Array.from({ length: 20_000 }, (_, i) => program("ff c0", `rax=${i}`));
    const outcomes = await runNative(programs);
    expect(outcomes.map(({ registers }) => registers.rax)).toEqual(programs.map((_, i) => BigInt(i + 1)));
  });

  test("gives every program a fresh window, and reports every byte of it", async () => {
    // rep stosb over all of it, then a load from where that wrote, and from what the first program named
    const fill = program("f3 aa", `rdi=data rcx=${DATA_SIZE} rax=0x77 [data+8]=0x1234:2`);
    const load = program("48 8b 06", "rsi=data+8");
    const outcomes = await runNative([fill, load, fill, load, fill, fill, fill, load]);
    const whole = new Map(Array.from({ length: DATA_SIZE }, (_, i) => [i, 0x77]));
    const untouched = BigInt.asUintN(64, 0xa5a5a5a5a5a5a5a5n);
    for (const [i, { changed, registers }] of outcomes.entries()) {
      if (i === 1 || i === 3 || i === 7) expect(registers.rax).toBe(untouched);
      else expect(changed).toEqual(whole);
    }
  });

  test("gives every program a fresh code page", async () => {
    // Writes a nop over the int3 behind it, and so runs on to the one after that
    const patch = program("c6 05 00 00 00 00 90", "");
    const outcomes = await runNative([patch, program("90 90 90 90 90 90 90")]);
    expect(outcomes.map(({ rip }) => rip)).toEqual([BigInt(CODE + 8), BigInt(CODE + 7)]);
  });

  test("copes with any stack pointer and any flags", async () => {
    for (const rsp of ["0", "-1", "0x8000000000000000", "data-8"]) {
      const { fault, registers } = await runOne("ff c0", `rsp=${rsp} rax=1 df=1`);
      expect([fault, registers.rax]).toEqual([null, 2n]);
    }
    // Alignment checks and single steps switched on: the program meets them, the harness does not
    expect((await runOne("9d 8b 06", "rsi=data+1 [data+0x1000]=0x40202:8")).fault).toMatchObject({
      name: "#AC",
    });
    expect((await runOne("9d 90 90", "[data+0x1000]=0x302:8")).fault).toMatchObject({ name: "#DB" });
  });

  test("cuts off a program that never ends, and goes on", async () => {
    const outcomes = await runNative([program("eb fe", "rax=3"), program("ff c0", "rax=3")]);
    expect(outcomes.map(({ fault }) => fault)).toEqual(["hang", null]);
    expect(outcomes[0]).toMatchObject({ rip: BigInt(CODE) });
    expect(outcomes[1]!.registers.rax).toBe(4n);
  });

  test("does not take a long program for one that never ends", async () => {
    // Milliseconds each, a second together: several alarms, but no two in one program
    const programs = Array.from({ length: 300 }, () => program("e2 fe", "rcx=2000000"));
    const outcomes = await runNative(programs);
    expect(outcomes.every(({ fault, registers }) => fault === null && registers.rcx === 0n)).toBe(true);
  });

  test("lets no program call the system", async () => {
    // getpid
    await expect(runNative([program("90"), program("0f 05", "rax=39")])).rejects.toThrow(
      /killed the harness/,
    );
  });

  test("refuses what does not fit the pages", async () => {
    const long = { ...program("90"), bytes: new Uint8Array(0x800) };
    await expect(runNative([program("90"), long])).rejects.toThrow("program 1 does not fit its pages");
  });

  test("tells the program's own int3 from the one behind it", async () => {
    const behind = await runOne("90");
    const own = await runOne("90 cc");
    expect([behind.fault, behind.rip]).toEqual([null, BigInt(CODE + 1)]);
    expect([own.fault, own.rip]).toEqual([{ name: "#BP", address: null, access: null }, BigInt(CODE + 2)]);
  });
});
