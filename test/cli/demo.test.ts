// The guided tour as a document: complete, the same every time, and its figures agree with each other.

import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { closeSync, existsSync, openSync } from "node:fs";
import { describe, expect, test } from "vitest";
import type { Tour } from "../../src/report/tour.ts";
import { command, MAIN, spawnCommand } from "./command.ts";

const first = spawnCommand("demo", "--json");
const tour: Tour = JSON.parse(first.stdout);

test("one document on stdout and nothing else, the same each time", async () => {
  expect(first.status).toBe(0);
  expect(first.stderr).toBe("");
  expect(first.stdout).toBe(`${JSON.stringify(tour, null, 2)}\n`);
  const again = await command("demo", "--json", "--seed", "7");
  expect(again).toEqual(first);
});

describe("sites", () => {
  test("one of assembly, one of gcc", () => {
    expect(tour.sites.map(({ symbol, from }) => `${symbol}: ${from}`)).toEqual([
      "mem_read: asm/read.S",
      expect.stringMatching(/^lookup_slot: gcc .*lookup_buggy\.c$/),
    ]);
  });

  test.each(tour.sites)("$symbol: a five-byte NOP becomes a call of a trampoline", (site) => {
    expect(site.bytesBefore).toBe("0f 1f 44 00 00");
    const bytes = Buffer.from(site.bytesAfter.replaceAll(" ", ""), "hex");
    expect([bytes.length, bytes[0]]).toEqual([5, 0xe8]);
    const next = BigInt(site.address) + 5n;
    const target = BigInt.asUintN(64, next + BigInt(bytes.readInt32LE(1))).toString(16);
    expect(site.listingAfter).toEqual([
      `${site.address}: ${site.bytesAfter}  callq 0x${target} <ftrace_trampoline_${target.slice(-8)}>`,
    ]);
    expect(site.listingBefore.length).toBe(1);
    expect(site.listingBefore[0]).toContain(`${site.address}: ${site.bytesBefore}  nop`);
  });

  test("each has a trampoline of its own", () => {
    expect(new Set(tour.sites.flatMap(({ listingAfter }) => listingAfter[0]!.split("<")[1])).size).toBe(2);
  });
});

describe("calls", () => {
  const rows = (name: string) => tour.calls.filter((call) => call.function === name);

  test("tasks in one transition differ by their patch state, and by nothing else", () => {
    const [patched, unpatched, ...others] = tour.calls.filter(({ site }) => site === "in transition");
    expect(others).toEqual([]);
    expect(patched).toMatchObject({ patchState: "KLP_PATCHED", version: "new" });
    expect(unpatched).toMatchObject({ patchState: "KLP_UNPATCHED", version: "old" });
    expect(patched!.task).not.toBe(unpatched!.task);
    expect(patched!.via).toBe(unpatched!.via);
  });

  test("the patched read is in upper case, wherever the new body was entered", () => {
    const old = "hello from the old kernel";
    for (const { version, output, result } of rows("mem_read")) {
      expect(output).toBe(version === "new" ? old.toUpperCase() : old);
      expect(Number(result)).toBe(old.length);
    }
    expect(rows("mem_read").map(({ site, version }) => [site, version])).toEqual([
      ["off", "old"],
      ["in transition", "new"],
      ["in transition", "old"],
      ["on", "new"],
    ]);
  });

  test("the lookup leaks the secret only before it is patched", () => {
    const EINVAL = 22n;
    expect(rows("lookup_slot").map(({ site, version, result }) => [site, version, result])).toEqual([
      ["off", "old", "0xdeadbeefcafef00d"],
      ["on", "new", `0x${BigInt.asUintN(64, -EINVAL).toString(16)}`],
    ]);
  });

  test("a site that is on costs instructions, even when the old body runs", () => {
    const [off, , unpatched] = rows("mem_read");
    expect(unpatched!.instructions).toBeGreaterThan(off!.instructions);
  });
});

describe("stacks", () => {
  test("equal says whether the walked and the true one are", () => {
    for (const { walked, true: truth, equal } of tour.stacks) {
      expect(JSON.stringify(walked) === JSON.stringify(truth)).toBe(equal);
      expect(truth.at(-1)).toMatch(/^lab_call\+/);
    }
  });

  test("the walk is wrong only where there is no frame, or not yet, and misses just the caller there", () => {
    const wrong = tour.stacks.filter(({ equal }) => !equal);
    expect(wrong.map(({ where }) => where)).toEqual([
      "in the handler, while the call is being redirected",
      "at the new body's first instruction",
    ]);
    for (const { walked, true: real } of wrong) expect(walked).toEqual(real.slice(1));
    expect(wrong[1]!.true[0]).toMatch(/^vfs_read\+/);
  });

  test("in the handler the trampoline is on the stack, and the traced function below it", () => {
    const [handler] = tour.stacks;
    expect(handler!.true[0]).toMatch(/^ftrace_trampoline_/);
    expect(handler!.true[1]).toMatch(/^mem_read\+0x5\//);
  });
});

test("the cost is the sum of its parts", () => {
  const { parts, instructionsRedirected, instructionsUnpatched } = tour.cost;
  expect(parts.reduce((sum, { instructions }) => sum + instructions, 0)).toBe(instructionsRedirected);
  expect(parts.map(({ where }) => where.replace(/_[0-9a-f]{8}$/, ""))).toEqual([
    "leaf",
    "ftrace_trampoline",
    "klp_ftrace_handler",
    "leaf_new",
  ]);
  expect(instructionsUnpatched).toBeGreaterThan(0);
  expect(instructionsRedirected).toBeGreaterThan(instructionsUnpatched);
});

test("the machine retired at least what the calls took", () => {
  const counted = tour.calls.reduce((sum, { instructions }) => sum + instructions, 0);
  const { cost, machine } = tour;
  expect(machine.instructions).toBeGreaterThan(
    counted + cost.instructionsUnpatched + cost.instructionsRedirected,
  );
  expect(machine).toMatchObject({ vcpus: 2, tasks: 2 });
  expect(machine.sites).toBeGreaterThanOrEqual(tour.sites.length);
});

test("without --json it tells the same facts", async () => {
  const { status, stdout, stderr } = await command("demo");
  expect([status, stderr]).toEqual([0, ""]);
  for (const { listingBefore, listingAfter } of tour.sites) {
    for (const line of [...listingBefore, ...listingAfter]) expect(stdout).toContain(line);
  }
  for (const { output } of tour.calls) if (output !== undefined) expect(stdout).toContain(`"${output}"`);
  for (const { where, walked } of tour.stacks)
    for (const text of [where, ...walked]) expect(stdout).toContain(text);
  expect(stdout).toContain(`${tour.cost.instructionsRedirected} redirected`);
  expect(stdout).toContain(`${tour.machine.instructions} instructions`);
  expect(stdout).not.toMatch(/[ \t]$/m);
});

test("a reader that goes away is no error", async () => {
  const child = spawn(process.execPath, [MAIN, "demo"], { stdio: ["ignore", "pipe", "pipe"] });
  let stderr = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    stderr += text;
  });
  child.stdout.destroy();
  const [status] = await once(child, "close");
  expect([status, stderr]).toEqual([0, ""]);
});

test("a full disk is told in one line", (ctx) => {
  if (!existsSync("/dev/full")) ctx.skip("no /dev/full on this machine");
  const full = openSync("/dev/full", "w");
  const { status, stderr } = spawnSync(process.execPath, [MAIN, "demo"], {
    stdio: ["ignore", full, "pipe"],
    encoding: "utf8",
  });
  closeSync(full);
  expect(stderr).toMatch(/^fentrylab: stdout cannot be written \(ENOSPC\); [^\n]+\n$/);
  expect(status).toBe(2);
});
