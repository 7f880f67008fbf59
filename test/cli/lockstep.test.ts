// `fentrylab lockstep`: agreement, the first difference of an engine that is made wrong, and what is in the way.

import { afterAll, afterEach, describe, expect, test, vi } from "vitest";
import { Vcpu } from "../../src/machine/vcpu.ts";
import { OPENERS } from "../reference/guest.ts";
import { command, fixturePath, Scratch } from "./command.ts";

const scratch = new Scratch();
afterAll(() => scratch.remove());
afterEach(() => {
  vi.restoreAllMocks();
});

const SOURCE = scratch.file(
  "sum.S",
  `.text
.globl sum, times, own, sse
sum:    xor %eax, %eax
1:      add %rdi, %rax
        mov %rax, -8(%rsp)
        dec %rdi
        jnz 1b
        ret
times:  rdtsc
        mov $1, %eax
        cpuid
        xor %eax, %eax
        ret
own:    mov (%rdi), %rax
        ret
sse:    nop
        addsd %xmm0, %xmm1
        ret
`,
);

/** Why there is no such reference here; undefined if there is. */
const missing = new Map<string, string | undefined>();
for (const [name, open] of Object.entries(OPENERS)) {
  const opened = await open();
  if ("missing" in opened) console.log(`lockstep --against ${name} is not tested: ${opened.missing}`);
  else opened.close();
  missing.set(name, "missing" in opened ? opened.missing : undefined);
}

/** From the instruction at `offset` of sum() on, the engine gets rax wrong. */
function makeWrong(offset: number, times: bigint): void {
  const step = Vcpu.prototype.step;
  vi.spyOn(Vcpu.prototype, "step").mockImplementation(function (this: Vcpu) {
    const wrong = (this.rip - offset) % 0x1000 === 0 && this.get("rdi") === times;
    const exit = step.call(this);
    if (wrong) this.set("rax", this.get("rax") + 1n);
    return exit;
  });
}

describe.each(["unicorn", "host"])("against %s", (against) => {
  const skip = missing.get(against);
  const line = (...args: string[]) => command("lockstep", ...args, "--against", against);
  const shown = against === "host" ? "the host's CPU" : "Unicorn 2.0.1";

  test.skipIf(skip)("what agrees, and what was not asked", async () => {
    expect(await line(SOURCE, "sum", "100")).toEqual({
      ...{ status: 0, stderr: "" },
      stdout: `402 instructions agree with ${shown}; sum(100) = 5050 (0x13ba)\n`,
    });
    expect(await line(SOURCE, "times")).toEqual({
      ...{ status: 0, stderr: "" },
      stdout: `3 instructions agree with ${shown}; times() = 0 (0x0)\nnot judged: 1 cpuid, 1 rdtsc\n`,
    });
  });

  test.skipIf(skip)("the same as a document", async () => {
    const { status, stdout } = await line(SOURCE, "times", "7", "--json");
    expect(status).toBe(0);
    expect(JSON.parse(stdout)).toEqual({
      ...{ function: "times", arguments: ["0x7"], result: "0x0", against: shown },
      ...{
        steps: 5,
        agreed: 3,
        notJudged: { cpuid: 1, rdtsc: 1 },
        referenceFaults: {},
        ended: { kind: "reached" },
      },
    });
  });

  test.skipIf(skip)("what gcc made, which needs symbols of another image", async () => {
    const { status, stdout } = await line(
      fixturePath("compute.o"),
      "test_tail",
      "20",
      "--with",
      fixturePath("string.o"),
    );
    expect(status).toBe(0);
    expect(stdout).toMatch(/^\d+ instructions agree with .*; test_tail\(20\) = /);
  });

  test.skipIf(skip)("a difference: the instruction, the state before, and both after", async () => {
    makeWrong(2, 97n);
    const { status, stdout, stderr } = await line(SOURCE, "sum", "100");
    expect([status, stderr]).toEqual([1, ""]);
    const lines = stdout.split("\n");
    expect(lines[0]).toBe(`13 instructions agree with ${shown}; the next does not`);
    expect(lines[2]).toMatch(/^ {2}sum\+0x2\/0x10 \[sum\] at 0x[0-9a-f]{13}002: 48 01 f8 {2}add %rdi,%rax$/);
    const word = (value: number) => `0x${value.toString(16).padStart(16, "0")}`;
    const before = 100 + 99 + 98;
    const row = (name: string) =>
      lines
        .find((text) => text.slice(5).startsWith(`${name} `))!
        .trim()
        .split(/\s+/);
    expect(row("rax")).toEqual(["*", "rax", word(before), word(before + 98), word(before + 97)]);
    expect(row("rdi")).toEqual(["rdi", word(97), word(97), word(97)]);
    expect(row("ends")).toEqual(["ends", "retired", "retired"]);
    const marked = lines.filter((text) => text.startsWith("  *"));
    expect(marked.map((text) => text.trim().split(/\s+/)[1])).toEqual(["rax"]);
  });

  test.skipIf(skip)("a difference as a document", async () => {
    makeWrong(2, 97n);
    const { status, stdout } = await line(SOURCE, "sum", "100", "--json");
    expect(status).toBe(1);
    expect(JSON.parse(stdout)).toMatchObject({
      ...{ steps: 13, agreed: 13, ended: { kind: "difference" } },
      difference: {
        ...{ step: 13, since: 13, bytes: "48 01 f8", text: "add %rdi,%rax", fields: ["rax"], memory: [] },
        ...{ before: { rax: "0x0000000000000129" }, ours: { rax: "0x000000000000018b" } },
        ...{ theirs: { rax: "0x000000000000018a" }, stops: { ours: null, theirs: null } },
      },
    });
  });

  test.skipIf(skip)("an end that both agree upon", async () => {
    const { status, stdout } = await line(SOURCE, "own", "4096");
    expect(status).toBe(0);
    expect(stdout).toMatch(
      /^0 instructions agree with .*; both end with #PF: read .*at 0x0000000000001000, not mapped, at own\+0x0\/0x4 \[sum\]\n$/,
    );
    expect((await line(SOURCE, "sum", "1000", "--limit", "50")).stdout).toMatch(
      /^50 instructions agree with .*; stopped there, before sum\+0x[0-9a-f]+\/0x10 \[sum\] \(--limit\)\n$/,
    );
  });

  test.skipIf(skip)("what this engine cannot execute is refused", async () => {
    const { status, stdout, stderr } = await line(SOURCE, "sse");
    expect([status, stdout]).toEqual([2, ""]);
    expect(stderr).toMatch(/^fentrylab: the call did not return: unimplemented instruction at sse\+0x1.*\n$/);
  });
});

test("without the reference, one line says why", async () => {
  vi.stubGlobal("process", Object.create(process, { platform: { value: "plan9" } }));
  try {
    expect(await command("lockstep", SOURCE, "sum", "1", "--against", "host")).toEqual({
      ...{ status: 2, stdout: "" },
      stderr:
        "fentrylab: host cannot be asked here: this host runs plan9, not Linux; choose another reference (--against)\n",
    });
  } finally {
    vi.unstubAllGlobals();
  }
});
