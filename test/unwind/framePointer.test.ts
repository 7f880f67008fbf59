// The walk over anything: it ends, its frames go up the stack, and what is wrong is said.

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { type Addr, addr } from "../../src/base/addr.ts";
import { Lab } from "../../src/lab.ts";
import { type UnwindContext, type Walk, walkFramePointers } from "../../src/unwind/framePointer.ts";
import { beginWorkload, WORKLOADS } from "../lab/workloads.ts";

const LOW = addr(0xffffc90000000000n);
const WORDS = 64;
const TEXT = 0xffffffff81000000n;
const place = (n: number) => BigInt.asUintN(64, BigInt(LOW + 8 * n));

function contextOf(words: readonly bigint[]): UnwindContext & { readonly reads: () => number } {
  let reads = 0;
  return {
    reads: () => reads,
    readStack: (at) => {
      reads++;
      const n = (at - LOW) / 8;
      return n >= 0 && n < words.length ? words[n] : undefined;
    },
    isText: (at) => at >= Number(BigInt.asIntN(64, TEXT)) && at < Number(BigInt.asIntN(64, TEXT)) + 4096,
  };
}

function stack(words: Record<number, bigint>): bigint[] {
  return Array.from({ length: WORDS }, (_, n) => words[n] ?? 0x5a5an);
}

const slotOf = (n: number) => (LOW + 8 * n) as Addr;
const shown = ({ frames, doubt }: Walk) => ({ slots: frames.map(({ slot }) => slot), doubt });

describe("a walk", () => {
  test("follows frames up to the one whose rbp is zero", () => {
    const words = stack({ 2: place(10), 3: TEXT + 1n, 10: place(20), 11: TEXT + 2n, 20: 0n, 21: TEXT + 3n });
    const walk = walkFramePointers(contextOf(words), place(2));
    expect(walk.doubt).toBeNull();
    expect(walk.frames.map(({ returnAddress }) => BigInt(returnAddress) - BigInt.asIntN(64, TEXT))).toEqual([
      1n,
      2n,
      3n,
    ]);
    expect(walk.frames.map(({ slot }) => slot)).toEqual([slotOf(3), slotOf(11), slotOf(21)]);
  });

  test("of nothing finds nothing, without a doubt", () => {
    expect(walkFramePointers(contextOf([]), 0n)).toEqual({ frames: [], doubt: null });
  });

  const first = { 2: place(10), 3: TEXT };
  test.for<[string, Record<number, bigint>, bigint, string, number[]]>([
    ["rbp outside the stack", {}, place(WORDS), "frame-outside-stack", []],
    ["rbp below the stack", {}, place(-1), "frame-outside-stack", []],
    ["rbp in the stack's last word", {}, place(WORDS - 1), "frame-outside-stack", []],
    ["rbp not aligned", {}, place(2) + 4n, "frame-outside-stack", []],
    ["rbp that is no address", {}, 1n << 62n, "frame-outside-stack", []],
    ["rbp with every bit", {}, 2n ** 64n - 1n, "frame-outside-stack", []],
    [
      "a frame below the one before",
      { ...first, 10: place(4), 11: TEXT },
      place(2),
      "frame-went-back",
      [3, 11],
    ],
    ["a frame that points at itself", { 2: place(2), 3: TEXT }, place(2), "frame-went-back", [3]],
    ["a cycle of two", { ...first, 10: place(2), 11: TEXT }, place(2), "frame-went-back", [3, 11]],
    ["a return address that is data", { ...first, 10: 0n, 11: place(4) }, place(2), "not-text", [3]],
    ["a return address that is none", { ...first, 10: 0n, 11: 1n << 63n }, place(2), "not-text", [3]],
    ["a next frame that is no address", { 2: 1n << 50n, 3: TEXT }, place(2), "frame-outside-stack", [3]],
  ])("ends in doubt at %s", ([, words, rbp, why, frames]) => {
    const walk = shown(walkFramePointers(contextOf(stack(words)), rbp));
    expect(walk.slots).toEqual(frames.map(slotOf));
    expect(walk.doubt?.why).toBe(why);
  });

  test("always ends, whatever is on the stack", () => {
    const garbage = [
      { weight: 1, arbitrary: fc.constantFrom(0n, 1n << 47n, 1n << 63n, 2n ** 64n - 1n) },
      { weight: 1, arbitrary: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }) },
      { weight: 2, arbitrary: fc.integer({ min: -2, max: WORDS + 1 }).map(place) },
    ];
    const text = { weight: 40, arbitrary: fc.bigInt({ min: TEXT, max: TEXT + 4095n }) };
    // Like a stack, mostly: frames that lead a little up, and text above each.
    const words = fc.tuple(
      ...Array.from({ length: WORDS }, (_, n) => {
        if (n % 2 === 1) return fc.oneof(text, ...garbage);
        const link = fc.integer({ min: 1, max: 6 }).map((more) => place(n + 2 * more));
        return fc.oneof({ weight: 40, arbitrary: link }, ...garbage);
      }),
    );
    const start = fc.oneof(
      fc.integer({ min: 0, max: WORDS / 2 }).map((n) => place(2 * n)),
      ...garbage,
    );
    const depths = new Set<number>();
    const doubts = new Set<string>();
    fc.assert(
      fc.property(words, start, (words, rbp) => {
        const context = contextOf(words);
        const { frames, doubt } = walkFramePointers(context, rbp);
        expect(context.reads()).toBeLessThanOrEqual(2 * (WORDS + 1));
        for (const [n, { slot, returnAddress }] of frames.entries()) {
          expect(context.isText(returnAddress)).toBe(true);
          expect(words[(slot - LOW) / 8]).toBe(BigInt.asUintN(64, BigInt(returnAddress)));
          if (n > 0) expect(slot).toBeGreaterThan(frames[n - 1]!.slot);
        }
        const last = frames.at(-1);
        const next = last === undefined ? rbp : words[(last.slot - LOW) / 8 - 1];
        expect(doubt === null).toBe(next === 0n);
        depths.add(frames.length);
        doubts.add(doubt?.why ?? "none");
      }),
      { numRuns: 1500, seed: 1 },
    );
    expect([...doubts].sort()).toEqual(["frame-outside-stack", "frame-went-back", "none", "not-text"]);
    expect(depths.size).toBeGreaterThan(4);
  });
});

test("a corrupted stack of a real call: every word of it, one at a time", async () => {
  const lab = await Lab.open({ recordCalls: true });
  const { memory } = lab.machine;
  const read = WORKLOADS.find(({ name }) => name === "mem_read")!;
  const vcpu = beginWorkload(lab, read);
  const inside = (lab.symbol("mem_read").address + 9) as Addr;
  expect(vcpu.run({ until: inside, budget: 1000 }).kind).toBe("reached");
  const truth = lab.trueReturns(vcpu);
  expect(lab.walk(vcpu).frames.map(({ returnAddress }) => returnAddress)).toEqual(truth);
  const { high } = lab.kernel.tasks[0]!.stack;
  const links = new Set<Addr>();
  for (const { slot } of lab.walk(vcpu).frames) links.add(slot).add((slot - 8) as Addr);
  for (let at = vcpu.rsp; at < high; at = (at + 8) as Addr) {
    const before = memory.readWord(at);
    // A cycle, a word outside, garbage.
    for (const word of [vcpu.get("rbp"), BigInt(high), 0x1234_5678_9abc_def1n]) {
      memory.writeWord(at, word);
      const { frames, doubt } = lab.walk(vcpu);
      expect(frames.length).toBeLessThanOrEqual(truth.length);
      expect(doubt === null).toBe(!links.has(at));
      expect(lab.trueReturns(vcpu)).toEqual(truth); // never reads the stack
    }
    memory.writeWord(at, before);
  }
  expect(links.size).toBe(2 * truth.length);
});
