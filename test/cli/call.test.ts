// `fentrylab call`: what the host's CPU returned for the same calls, and what is on the way there.

import { readFileSync } from "node:fs";
import { afterAll, describe, expect, test } from "vitest";
import { type CallDocument, command, fixturePath, Scratch, spawnCommand } from "./command.ts";

const scratch = new Scratch();
afterAll(() => scratch.remove());

async function call(...args: string[]): Promise<CallDocument> {
  const { status, stdout, stderr } = await command("call", "--json", ...args);
  expect([status, stderr]).toEqual([0, ""]);
  return JSON.parse(stdout);
}

interface Recorded {
  readonly object: string;
  readonly function: string;
  readonly args: string[];
  readonly result: string;
}

const recorded: Recorded[] = JSON.parse(readFileSync(fixturePath("calls.json"), "utf8"));
/** One call of every third function: the middle one of those recorded. */
const sample = [...new Set(recorded.map((call) => call.function))]
  .filter((_, n) => n % 3 === 0)
  .map((name) => recorded.filter((call) => call.function === name))
  .map((calls) => calls[calls.length >> 1]!);
/** What each object needs loaded before it. */
const NEEDS: Record<string, string[]> = {
  "compute.o": ["string.o"],
  "readfile.o": ["string.o"],
  "lookup_fixed.o": ["lookup_buggy.o"],
};

test.each(sample)("$object: $function($args) = $result", async ({ object, function: name, args, result }) => {
  const needs = (NEEDS[object] ?? []).flatMap((needed) => ["--with", fixturePath(needed)]);
  const ran = await call(fixturePath(object), name, ...args, ...needs);
  expect(ran).toEqual({ function: name, arguments: args, result, instructions: expect.any(Number) });
});

describe("a source", () => {
  const source = scratch.file(
    "sum.S",
    `.text
.globl sum, vfs_read
sum:      lea (%rdi,%rsi), %rax
          add %rdx, %rax
          add %rcx, %rax
          add %r8, %rax
          add %r9, %rax
          ret
vfs_read: mov $7, %eax
          ret
`,
  );

  test("up to six arguments, in decimal and hexadecimal, negative too", async () => {
    expect(await call(source, "sum", "1", "0x20", "300", "-3", "0X10", "18446744073709551615")).toEqual({
      function: "sum",
      arguments: ["0x1", "0x20", "0x12c", "0xfffffffffffffffd", "0x10", "0xffffffffffffffff"],
      result: `0x${(1 + 0x20 + 300 - 3 + 16 - 1).toString(16)}`,
      instructions: 6,
    });
    expect((await call(source, "sum", "--", "-0x8000000000000000")).arguments).toEqual([
      "0x8000000000000000",
    ]);
  });

  test("a name of the kernel's too is the image's own", async () => {
    expect(await call(source, "vfs_read")).toMatchObject({ result: "0x7", instructions: 2 });
  });

  test("a name that only the kernel has is the kernel's", async () => {
    expect((await call(source, "leaf", "1")).instructions).toBe(3);
  });

  test("the budget is what the call itself may take, and what calls it", async () => {
    const CALLER = 3;
    expect((await command("call", source, "vfs_read", "--budget", `${2 + CALLER}`)).status).toBe(0);
    expect((await command("call", source, "vfs_read", "--budget", `${1 + CALLER}`)).status).toBe(2);
  });

  test("people get one line", () => {
    expect(spawnCommand("call", source, "sum", "1", "--", "-6")).toEqual({
      status: 0,
      stdout: "sum(1, -6) = -5 (0xfffffffffffffffb), 6 instructions\n",
      stderr: "",
    });
  });
});
