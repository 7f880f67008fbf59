// At every instruction boundary of every workload: the machine's true stack against a shadow stack, and the
// frame-pointer walk against both. Where the walk is right is read from the listings: between a function's
// `mov %rsp,%rbp` and its `pop %rbp`; elsewhere it misses callers, and we say which. It never claims to be reliable.

import { beforeAll, describe, expect, test } from "vitest";
import type { Addr } from "../../src/base/addr.ts";
import { hex } from "../../src/base/addr.ts";
import { Lab } from "../../src/lab.ts";
import type { Redirect } from "../../src/livepatch/redirect.ts";
import { PT_REGS } from "../../src/machine/ptRegs.ts";
import type { Vcpu } from "../../src/machine/vcpu.ts";
import { loadDisassembler } from "../../src/x86/disassemble.ts";
import { listMemory, textOf } from "../lab/listing.ts";
import { beginWorkload, stepCall, WORKLOADS, type Workload } from "../lab/workloads.ts";
import { ShadowStack } from "./shadowStack.ts";

let lab: Lab;
let redirects: Redirect[];
/** How many of the innermost callers the walk cannot see, by the address about to be executed. */
const missing = new Map<Addr, number>();

const FRAMED = /^movq %rsp, %rbp$/;
const UNFRAMED = /^popq %rbp$/;
/** The same of trampolines. */
const RECORDED = /^leaq .*\(%rsp\), %rbp$/;
const UNRECORDED = /^movq .*\(%rsp\), %rbp$/;

beforeAll(async () => {
  lab = await Lab.open({ recordCalls: true });
  const disassembler = await loadDisassembler();
  const to = (name: string) => lab.symbol(name).address;
  redirects = [
    lab.redirect("mem_read", to("mem_read_upper")),
    lab.redirect("leaf", to("leaf_new")),
    lab.redirect("zero_read", to("leaf_new")),
    lab.redirect("tail", to("leaf")),
    lab.redirect("vfs_read", to("zero_read")),
  ];
  // They are made anew for whoever is enabled, in the same places.
  for (const redirect of redirects) redirect.enable();
  const trampolines = redirects.map(({ ops }) => ops.trampoline!);
  const ranges = [...lab.image.symbols.filter(({ kind }) => kind === "func"), ...trampolines];
  for (const range of ranges) {
    // In a trampoline two return addresses lie on the stack that rbp does not lead to, before it has set up records:
    // into the traced function, and that one's own, as it had not begun its frame.
    const isTrampoline = trampolines.some(({ address }) => address === range.address);
    const unseen = isTrampoline ? 2 : 1;
    let now: number = range.name === "lab_call" ? 0 : unseen;
    const listing = lines(listMemory(lab, disassembler, range.address, range.size));
    // gcc may set up a frame for the unlikely way alone.
    const framed = listing.slice(0, 4).some(({ text }) => FRAMED.test(text));
    for (const { at, text } of listing) {
      missing.set(at, now);
      if (isTrampoline ? RECORDED.test(text) : FRAMED.test(text)) now = 0;
      if (isTrampoline ? UNRECORDED.test(text) : UNFRAMED.test(text)) now = unseen;
      // Code behind a return is reached by a jump from inside the frame, where there is one.
      if (text === "retq" && framed) now = 0;
    }
  }
  for (const redirect of redirects) redirect.disable();
});

function lines(listing: readonly string[]): { at: Addr; text: string }[] {
  return listing.map((line) => ({
    at: Number(BigInt.asIntN(64, BigInt(line.slice(0, 18)))) as Addr,
    text: textOf(line),
  }));
}

interface Seen {
  boundaries: number;
  right: number;
}

function walkEverywhere(workload: Workload): Seen {
  const vcpu = beginWorkload(lab, workload);
  const shadow = new ShadowStack(lab.machine, vcpu);
  const seen: Seen = { boundaries: 0, right: 0 };
  let begun = false;
  stepCall(lab, vcpu, () => {
    checkTruth(vcpu, shadow);
    // rbp is whatever the caller of lab_call left, until it is cleared.
    if (begun) {
      seen.boundaries++;
      if (checkWalk(vcpu, shadow)) seen.right++;
    }
    begun = true;
    shadow.note();
  });
  expect(shadow.returns).toEqual([]);
  return seen;
}

function checkTruth(vcpu: Vcpu, shadow: ShadowStack): void {
  const here = lab.code.describe(vcpu.rip);
  const truth = lab.machine.trueStack(vcpu.rsp);
  expect(
    truth.map((frame) => frame.kind === "call" && frame.returnAddress),
    here,
  ).toEqual(shadow.returns);
  expect(
    truth.map(({ slot }) => slot),
    here,
  ).toEqual(shadow.slots);
  expect(lab.trueReturns(vcpu)).toEqual(shadow.returns);
}

function checkWalk(vcpu: Vcpu, shadow: ShadowStack): boolean {
  const { rip } = vcpu;
  const here = `${hex(rip)} ${lab.code.describe(rip)}`;
  const { frames, doubt } = lab.walk(vcpu);
  const expected = missing.get(rip);
  if (expected === undefined) return expect.fail(`nothing is known of ${here}`);
  expect(
    frames.map(({ address }) => address),
    here,
  ).toEqual(shadow.returns.slice(expected));
  // Where it is not in the trampoline's records, a frame is at its place.
  for (const { slot } of frames)
    if (!shadow.slots.includes(slot)) expect(inTrampoline(vcpu, slot), here).toBe(true);
  expect(doubt, here).toEqual({ why: "live-registers", at: rip });
  return expected === 0;
}

/** Whether `slot` is in what a trampoline that has not returned has pushed. */
function inTrampoline(vcpu: Vcpu, slot: Addr): boolean {
  return lab.machine.trueStack(vcpu.rsp).some((frame) => {
    if (frame.kind !== "call" || slot >= frame.slot || slot < frame.slot - PT_REGS.size - 8) return false;
    return redirects.some(({ site }) => site.ip === frame.call);
  });
}

describe.each([
  { name: "off", on: [] as number[], transition: false },
  { name: "redirected to the new bodies", on: [0, 1], transition: false },
  { name: "sent back to the old bodies", on: [0, 1], transition: true },
  { name: "redirected without frames", on: [1, 2, 3], transition: false },
  { name: "in the middle of the chain", on: [0, 4], transition: false },
])("with sites $name", ({ on, transition }) => {
  test.for(WORKLOADS)(
    "$name: the walk is right where there is a frame, else it misses what it must",
    (workload) => {
      for (const n of on) {
        redirects[n]!.transition = transition;
        redirects[n]!.enable();
      }
      try {
        const { boundaries, right } = walkEverywhere(workload);
        expect(boundaries).toBeGreaterThan(3);
        expect(right).toBeGreaterThan(0);
      } finally {
        for (const n of on) redirects[n]!.disable();
      }
    },
  );
});

test("all that a trampoline executes between setting up its records and restoring rbp are boundaries where the walk is right", () => {
  redirects[0]!.enable();
  const { address, size } = redirects[0]!.ops.trampoline!;
  redirects[0]!.disable();
  const right = [...missing].filter(([at, count]) => at >= address && at < address + size && count === 0);
  // All but 17 before, and add and ret after.
  expect(right).toHaveLength(35 - 17 - 2);
});

test("in the trampoline the record is of calls made: the return that was rewritten is still the traced function's", () => {
  const redirect = redirects[1]!;
  redirect.enable();
  const vcpu = beginWorkload(lab, WORKLOADS[0]!);
  let differing = 0;
  stepCall(lab, vcpu, () => {
    for (const frame of lab.machine.trueStack(vcpu.rsp)) {
      if (frame.kind !== "call") continue;
      const { slot, returnAddress } = frame;
      const word = BigInt.asIntN(64, lab.machine.memory.readWord(slot));
      if (Number(word) === returnAddress) continue;
      // Only this: execution is about to go on in the new body.
      expect([returnAddress, Number(word)]).toEqual([redirect.site.ip + 5, lab.symbol("leaf_new").address]);
      differing++;
    }
  });
  expect(differing).toBeGreaterThan(0);
  redirect.disable();
});
