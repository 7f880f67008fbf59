// Functions whose return address is replaced while they run: what they return, where to, and what is kept meanwhile.

import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Addr, addr, offset } from "../../src/base/addr.ts";
import type { FtraceOps } from "../../src/ftrace/ftrace.ts";
import { CONSTANTS, RET_STACK, VECTORS } from "../../src/kernel/layout.ts";
import { Lab } from "../../src/lab.ts";
import type { Vcpu } from "../../src/machine/vcpu.ts";
import { FLAG } from "../../src/x86/register.ts";
import { beginWorkload, stepCall, WORKLOADS } from "../lab/workloads.ts";

const { MAX_RET_DEPTH } = CONSTANTS;
const TRAMPOLINES = ["return_to_handler", "rethook_trampoline"] as const;
/** What a function must leave as it found it (System V ABI, 3.2.1), and what it returns in. */
const KEPT = ["rax", "rdx", "rbx", "rbp", "r12", "r13", "r14", "r15", "rsp"] as const;

let lab: Lab;
let folder: string;
let ops: Record<(typeof TRAMPOLINES)[number], FtraceOps>;

beforeAll(async () => {
  lab = await Lab.open({ recordCalls: true });
  folder = mkdtempSync(join(tmpdir(), "fentrylab-"));
  const source = join(folder, "down.S");
  // long down(long n): n, by as many calls, each of which returns a different rdx
  writeFileSync(
    source,
    `.include "macros.inc"
     .text
     traced down
	xor %eax, %eax
	test %rdi, %rdi
	jz 1f
	push %rdi
	dec %rdi
	call down
	pop %rdi
	inc %rax
     1:	lea 3(%rdi), %rdx
	ret
     done down`,
  );
  await lab.loadModule("down", [source]);
  const handler = lab.symbol("return_hook_handler").address;
  const hook = (name: string) => lab.ftrace.makeOps({ name, handler, own: lab.symbol(name).address });
  ops = { return_to_handler: hook("return_to_handler"), rethook_trampoline: hook("rethook_trampoline") };
});
afterAll(() => rmSync(folder, { recursive: true }));

const task = () => lab.kernel.tasks[0]!;
const depth = () => task().struct.getNumber("ret_depth");

/** Turns on the sites of `names`, or all, for as long as `act` runs. */
function hooked<T>(by: FtraceOps | ((n: number) => FtraceOps), act: () => T, names?: readonly string[]): T {
  const sites = lab.ftrace.records.filter(({ symbol }) => names === undefined || names.includes(symbol));
  for (const [n, site] of sites.entries()) lab.ftrace.enable(site, typeof by === "function" ? by(n) : by);
  try {
    return act();
  } finally {
    for (const site of sites) lab.ftrace.disable(site);
  }
}

/** Runs the call that was begun; what it leaves in the registers that matter, and how deep hooks were. */
function outcome(vcpu: Vcpu) {
  let deepest = 0;
  const result = stepCall(lab, vcpu, () => {
    deepest = Math.max(deepest, depth());
  });
  return { result, deepest, kept: KEPT.map((name) => vcpu.get(name)) };
}

describe.each(TRAMPOLINES)("%s", (trampoline) => {
  test.for(WORKLOADS)("$name returns what it does without", (workload) => {
    const plain = outcome(beginWorkload(lab, workload));
    const traced = hooked(ops[trampoline], () => outcome(beginWorkload(lab, workload)));
    expect(traced).toEqual({ ...plain, deepest: traced.deepest });
    expect(traced.result).toBe(workload.result);
    expect([plain.deepest, traced.deepest > 0, depth()]).toEqual([0, true, 0]);
  });

  test.each([
    0,
    1,
    20,
    MAX_RET_DEPTH - 2,
    MAX_RET_DEPTH - 1,
    MAX_RET_DEPTH,
    MAX_RET_DEPTH + 1,
    2 * MAX_RET_DEPTH,
  ])("calls within calls, %i deep: those that find no room are not followed", (n) => {
    const { struct } = task();
    const end = offset(struct.getNumber("ret_stack") as Addr, RET_STACK.size * MAX_RET_DEPTH);
    const behind = lab.machine.memory.read(end, 64);
    const begin = () => lab.begin(lab.symbol("down").address, [BigInt(n)]);
    const plain = outcome(begin());
    const traced = hooked(ops[trampoline], () => outcome(begin()), ["down"]);
    expect(traced).toEqual({ ...plain, deepest: Math.min(n + 1, MAX_RET_DEPTH) });
    expect(traced.result).toBe(BigInt(n));
    expect(depth()).toBe(0);
    expect(lab.machine.memory.read(end, 64)).toEqual(behind);
  });

  test("keeps where each function goes, and the slot, until it goes there", () => {
    hooked(ops[trampoline], () => {
      const vcpu = lab.begin(lab.symbol("down").address, [2n]);
      const { struct } = task();
      const entry = (n: number) => {
        const view = Buffer.from(
          lab.machine.memory.read(
            offset(struct.getNumber("ret_stack") as Addr, RET_STACK.size * n),
            RET_STACK.size,
          ),
        );
        return { returnAddress: addr(view.readBigUInt64LE(0)), slot: addr(view.readBigUInt64LE(8)) };
      };
      let full = 0;
      stepCall(lab, vcpu, () => {
        const entries = Array.from({ length: depth() }, (_, n) => entry(n)).reverse();
        // Of the calls that are live or owed, those of `down` that have gone through their site.
        const live = lab.machine
          .trueChain(vcpu.rsp)
          .flatMap((frame) =>
            frame.kind === "call" ? [{ returnAddress: frame.returnAddress, slot: frame.slot }] : [],
          );
        for (const one of entries) expect(live).toContainEqual(one);
        if (entries.length === 3) full++;
      });
      expect(full).toBeGreaterThan(20);
    }, ["down"]);
  });

  test("a function left by a jump has its entry below the other's, and both are gone through", () => {
    hooked(ops[trampoline], () => {
      const vcpu = lab.begin(lab.symbol("tail").address, [3n]);
      const body = offset(lab.symbol("leaf").address, 5);
      expect(vcpu.run({ until: body, budget: 1000 }).kind).toBe("reached");
      expect(depth()).toBe(2);
      const context = lab.kernel.unwindContextOf(vcpu, lab.unwinding);
      const replaced = lab.machine.memory.readNumber(vcpu.rsp) as Addr;
      expect(replaced).toBe(lab.symbol(trampoline).address);
      expect(lab.code.describe(context.recover(replaced, vcpu.rsp)!)).toMatch(/^lab_call\+/);
      expect(context.recover(replaced, offset(vcpu.rsp, 8))).toBeUndefined();
      expect(lab.finish(vcpu)).toBe(7n);
      expect(depth()).toBe(0);
    }, ["tail", "leaf"]);
  });
});

test.each(TRAMPOLINES)(
  "%s: an interrupt at any boundary, its own functions followed too, changes nothing",
  (trampoline) => {
    const { machine } = lab;
    hooked(ops[trampoline], () => {
      const vcpu = lab.begin(lab.symbol("through_pointer").address, [7n]);
      let boundaries = 0;
      let delivered = 0;
      for (; !lab.code.describe(vcpu.rip).startsWith("lab_call+0x4"); vcpu.step()) {
        boundaries++;
        if ((vcpu.rflags & FLAG.IF) === 0n) continue;
        const before = machine.snapshot();
        vcpu.interrupt(VECTORS.TIMER_VECTOR);
        const here = lab.code.describe(vcpu.rip);
        const ticks = lab.kernel.cpus[0]!.struct.get("ticks");
        expect(lab.finish(vcpu), here).toBe(8n);
        expect([depth(), lab.kernel.cpus[0]!.struct.get("ticks") - ticks], here).toEqual([0, 1n]);
        machine.restore(before);
        before.dispose();
        delivered++;
      }
      expect(boundaries).toBeGreaterThan(120);
      expect(delivered).toBe(boundaries);
    });
  },
);

test("both kinds among one another: each return goes through its own", () => {
  const by = (n: number) => ops[TRAMPOLINES[n % 2]!];
  for (const workload of WORKLOADS) {
    const plain = outcome(beginWorkload(lab, workload));
    for (const shift of [0, 1]) {
      const traced = hooked(
        (n) => by(n + shift),
        () => outcome(beginWorkload(lab, workload)),
      );
      expect(traced, workload.name).toEqual({ ...plain, deepest: traced.deepest });
    }
  }
  expect(depth()).toBe(0);
});

test("a call that never comes back leaves nothing to the next", () => {
  for (const [name, left] of [
    ["fault_page", 1],
    ["checked", 2], // do_exit is hooked as well
  ] as const) {
    hooked(ops.return_to_handler, () => {
      const vcpu = lab.begin(lab.symbol(name).address, [0n]);
      vcpu.run({ budget: 10_000 });
      expect(depth(), name).toBe(left);
      lab.begin(lab.symbol("tail").address, [3n]);
      expect(depth()).toBe(0);
      expect(outcome(vcpu)).toMatchObject({ result: 7n, deepest: 2 });
      expect(depth()).toBe(0);
    });
  }
});

test("rethook_trampoline leaves the flags as the function did", () => {
  const flags = (name?: keyof typeof ops) => {
    const seen: bigint[] = [];
    const run = () => {
      const vcpu = lab.begin(lab.symbol("down").address, [1n]);
      vcpu.rflags |= FLAG.CF;
      stepCall(lab, vcpu, () => {
        if (/^lab_call\+0x4/.test(lab.code.describe(vcpu.rip))) seen.push(vcpu.rflags);
      });
    };
    if (name === undefined) run();
    else hooked(ops[name], run, ["down"]);
    return seen;
  };
  expect(flags("rethook_trampoline")).toEqual(flags());
  expect(flags().length).toBe(1);
});
