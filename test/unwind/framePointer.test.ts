// The frame-pointer walk over anything: it ends, its frames go up the stack, and what is wrong is said.

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { addr } from "../../src/base/addr.ts";
import { PT_REGS } from "../../src/machine/ptRegs.ts";
import { framePointerUnwinder } from "../../src/unwind/framePointer.ts";
import { type Doubt, MAX_ENTRIES, type Start, type Walk } from "../../src/unwind/walk.ts";
import { code, RETURN_TRAMPOLINE, TEXT, TEXT_SIZE, WordContext, WordStack } from "./wordStack.ts";

const LOW = addr(0xffffc90000000000n);
const WORDS = 64;
const TOP = WORDS - 2; // the outermost frame's rbp

const walk = framePointerUnwinder.walk;
const stack = (words: Record<number, bigint>, count = WORDS) => new WordStack(LOW, count, words);
const place = (n: number) => BigInt.asUintN(64, BigInt(LOW + 8 * n));
const slotOf = (n: number) => addr(LOW + 8 * n);
const field = (name: keyof typeof PT_REGS.fields) => PT_REGS.fields[name].offset / 8;

/** A task that was switched out in code at TEXT, by the return address in word 1, with `bp` in its frame. */
function switchedOut(bp: bigint | number): Start {
  return { from: "switched-out", ip: TEXT, slot: slotOf(1), bp: Number(BigInt.asIntN(64, BigInt(bp))) };
}

function live(bp: bigint): Start {
  const register = () => 0;
  return { from: "live", ip: TEXT, sp: slotOf(0), bp: Number(BigInt.asIntN(64, bp)), register };
}

const shown = ({ frames, doubt }: Walk) => ({
  slots: frames.map(({ slot }) => slot),
  doubt: doubt?.why ?? null,
});

/** A pt_regs at word `n`, which is odd so that its end is aligned, of kernel code. */
function registers(
  n: number,
  saved: Partial<Record<keyof typeof PT_REGS.fields, bigint>>,
): Record<number, bigint> {
  const end = n + PT_REGS.size / 8;
  const all = { ip: code(0x100), cs: 0x10n, sp: place(end), bp: 0n, ...saved };
  return Object.fromEntries(Object.entries(all).map(([name, word]) => [n + field(name as "ip"), word]));
}

describe("a walk", () => {
  const chain = {
    2: place(10),
    3: code(1),
    10: place(TOP),
    11: code(2),
    [TOP]: 0n,
    [TOP + 1]: code(3),
  };

  test("of a task that was switched out follows frames to the one at the stack's beginning", () => {
    const { frames: found, doubt } = walk(new WordContext(stack(chain)), switchedOut(place(2)));
    expect(doubt).toBeNull();
    expect(found).toEqual([
      { kind: "return", address: TEXT, slot: slotOf(1) },
      { kind: "return", address: TEXT + 1, slot: slotOf(3) },
      { kind: "return", address: TEXT + 2, slot: slotOf(11) },
      { kind: "return", address: TEXT + 3, slot: slotOf(TOP + 1) },
    ]);
  });

  test("from live registers finds the same, and is never reliable", () => {
    const found = shown(walk(new WordContext(stack(chain)), live(place(2))));
    expect(found).toEqual({ slots: [3, 11, TOP + 1].map(slotOf), doubt: "live-registers" });
    expect(shown(walk(new WordContext(stack({})), live(0n)))).toEqual({ slots: [], doubt: "live-registers" });
  });

  test("of a task that was never run finds nothing; that is reliable where its stack begins, and nowhere else", () => {
    const context = new WordContext(stack({}));
    const from = (n: number): Start => ({ from: "unstarted", ip: TEXT, sp: slotOf(n) });
    expect(walk(context, from(WORDS))).toEqual({ frames: [], doubt: null });
    for (const n of [0, 20, WORDS - 1, WORDS + 1])
      expect(walk(context, from(n)).doubt?.why, `${n}`).toBe("early-end");
  });

  const first = { 2: place(10), 3: code(0) };
  test.for<[string, Record<number, bigint>, bigint, Doubt, number[]]>([
    ["rbp past the stack", {}, place(WORDS), "outside-stack", []],
    ["rbp below the stack", {}, place(-1), "outside-stack", []],
    ["rbp in the stack's last word", {}, place(WORDS - 1), "outside-stack", []],
    ["rbp not aligned", {}, place(2) + 4n, "misaligned", []],
    ["rbp odd, and no mark", {}, place(2) + 3n, "misaligned", []],
    ["rbp that is no address", {}, 1n << 62n, "outside-stack", []],
    ["rbp with every bit", {}, 2n ** 64n - 1n, "misaligned", []],
    ["a frame below the one before", { ...first, 10: place(4), 11: code(0) }, place(2), "went-back", [3, 11]],
    ["a frame that points at itself", { 2: place(2), 3: code(0) }, place(2), "went-back", [3]],
    ["a cycle of two", { ...first, 10: place(2), 11: code(0) }, place(2), "went-back", [3, 11]],
    ["a return address that is data", { ...first, 10: 0n, 11: place(4) }, place(2), "not-text", [3]],
    ["a return address that is none", { ...first, 10: 0n, 11: 1n << 63n }, place(2), "not-text", [3]],
    ["a next frame that is no address", { 2: 1n << 50n, 3: code(0) }, place(2), "outside-stack", [3]],
    ["a chain that ends early", { ...first, 10: 0n, 11: code(0) }, place(2), "early-end", [3, 11]],
    ["a chain that ends at once", {}, 0n, "early-end", []],
    [
      "a replaced return address",
      { 2: 0n, 3: BigInt.asUintN(64, BigInt(RETURN_TRAMPOLINE)) },
      place(2),
      "return-replaced",
      [],
    ],
    ["registers that do not fit", {}, place(WORDS - 20) + 1n, "outside-stack", []],
    ["registers without a selector", registers(21, { cs: 1n << 60n }), place(21) + 1n, "early-end", []],
    [
      "registers of user mode further in",
      registers(21, { cs: 0x33n, ip: 4096n }),
      place(21) + 1n,
      "early-end",
      [],
    ],
    ["registers with another rsp", registers(21, { sp: place(50) }), place(21) + 1n, "saved-sp", []],
    ["registers without code", registers(21, { ip: place(50) }), place(21) + 1n, "exception-frame", []],
  ])("ends in doubt at %s", ([, words, bp, why, slots]) => {
    const found = shown(walk(new WordContext(stack(words)), switchedOut(bp)));
    expect(found).toEqual({ slots: [1, ...slots].map(slotOf), doubt: why });
  });

  test("goes on past the registers of kernel code, in doubt of its rbp", () => {
    const words = { ...registers(5, { bp: place(TOP) }), [TOP]: 0n, [TOP + 1]: code(3) };
    const { frames: found, doubt } = walk(new WordContext(stack(words)), switchedOut(place(5) + 1n));
    expect(found.slice(1)).toEqual([
      { kind: "interrupted", address: TEXT + 0x100, slot: slotOf(5 + field("ip")) },
      { kind: "return", address: TEXT + 3, slot: slotOf(TOP + 1) },
    ]);
    expect(doubt).toEqual({ why: "exception-frame", at: slotOf(5) });
  });

  test("is reliable up to registers of user mode at the stack's beginning, if they are that", () => {
    const at = WORDS - PT_REGS.size / 8;
    const of = (saved: Record<string, bigint>) =>
      walk(new WordContext(stack(registers(at, saved))), switchedOut(place(at) + 1n)).doubt?.why ?? null;
    expect(of({ cs: 0x33n, ip: 0x401000n, sp: 0x7ffff000n, ss: 0x2bn })).toBeNull();
    expect(of({ cs: 0x33n, sp: 0x7ffff000n, ss: 0x2bn })).toBe("early-end"); // at a kernel address
    expect(of({ cs: 0x33n, ip: 1n << 50n })).toBe("early-end");
  });

  test("finds what a return address was before it was replaced", () => {
    const context = new WordContext(
      stack({ [TOP]: 0n, [TOP + 1]: BigInt.asUintN(64, BigInt(RETURN_TRAMPOLINE)) }),
    );
    context.replaced.set(slotOf(TOP + 1), addr(TEXT + 7));
    const { frames: found, doubt } = walk(context, switchedOut(place(TOP)));
    expect([found.at(-1)?.address, doubt]).toEqual([TEXT + 7, null]);
  });

  test("that fills the trace is not reliable", () => {
    // Frames of two words each, one above the other.
    const deep = (count: number) =>
      stack(
        Object.fromEntries(
          Array.from({ length: count }, (_, n) => [
            [2 + 2 * n, n === count - 1 ? 0n : place(4 + 2 * n)] as const,
            [3 + 2 * n, code(n)] as const,
          ]).flat(),
        ),
        2 + 2 * count,
      );
    const of = (count: number) => walk(new WordContext(deep(count)), switchedOut(place(2)));
    expect([of(MAX_ENTRIES - 2).frames.length, of(MAX_ENTRIES - 2).doubt]).toEqual([MAX_ENTRIES - 1, null]);
    for (const count of [MAX_ENTRIES - 1, MAX_ENTRIES, MAX_ENTRIES + 1]) {
      expect(of(count).frames.length).toBe(MAX_ENTRIES);
      expect(of(count).doubt?.why).toBe("too-deep");
    }
  });

  describe("from one stack to another", () => {
    const at = (n: number) => addr(LOW + n * 0x10000);
    const irq = (words: Record<number, bigint>) => new WordStack(at(1), 16, words, "irq");
    const nmi = (words: Record<number, bigint>) => new WordStack(at(2), 32, words, "exception");

    test("goes from an interrupt's to the task's, and not back", () => {
      const task = stack({ ...registers(5, { bp: place(TOP) }), [TOP]: 0n, [TOP + 1]: code(3) });
      const from = irq({ 2: place(5) + 1n, 3: code(2) });
      const start: Start = { from: "switched-out", ip: TEXT, slot: from.at(1), bp: from.at(2) };
      const found = walk(new WordContext(task, from), start);
      expect(found.frames.map(({ slot }) => slot)).toEqual([
        from.at(1),
        from.at(3),
        task.at(5 + field("ip")),
        task.at(TOP + 1),
      ]);
      task.words[5 + field("bp")] = from.place(8);
      from.words[9] = code(4);
      const back = walk(new WordContext(task, from), start);
      expect(back.frames.length).toBe(3);
    });

    test("does not go from a task's to an interrupt's, nor from that to a higher one's", () => {
      const [two, three] = [irq({ 2: 0n, 3: code(1) }), nmi({ 2: 0n, 3: code(1) })];
      const task = stack({ 2: two.place(2), 3: code(0) });
      const fromTask = shown(walk(new WordContext(task, two, three), switchedOut(place(2))));
      expect([fromTask.doubt, fromTask.slots.length]).toEqual(["outside-stack", 2]);
      two.words[2] = three.place(2);
      const start: Start = { from: "switched-out", ip: TEXT, slot: two.at(1), bp: two.at(2) };
      const fromIrq = shown(walk(new WordContext(task, two, three), start));
      expect([fromIrq.doubt, fromIrq.slots.length]).toEqual(["outside-stack", 2]);
    });

    test("nor below where the task was switched out", () => {
      const task = stack({ 2: 0n, 3: code(0) });
      const start: Start = { from: "switched-out", ip: TEXT, slot: task.at(5), bp: task.at(2) };
      expect(shown(walk(new WordContext(task), start))).toMatchObject({ doubt: "went-back" });
    });

    test("finds registers on a stack that the hardware switched to, whatever rsp they have", () => {
      const task = stack({ [TOP]: 0n, [TOP + 1]: code(3) });
      const end = 32;
      const regs = end - PT_REGS.size / 8;
      const saved = { sp: task.place(6), bp: task.place(TOP) };
      const words = (n: number) =>
        Object.fromEntries(
          Object.entries({ ip: code(0x100), cs: 0x10n, ...saved }).map(([name, word]) => [
            n + field(name as "ip"),
            word,
          ]),
        );
      const of = (n: number) => {
        const from = nmi(words(n));
        return shown(walk(new WordContext(task, from), { from: "registers", regs: from.at(n) }));
      };
      expect(of(regs).doubt).toBe("exception-frame");
      expect(of(regs).slots.length).toBe(2);
      expect(of(regs - 2)).toEqual({ slots: [], doubt: "saved-sp" });
    });
  });

  test("always ends, whatever is on the stack", () => {
    const garbage = [
      { weight: 1, arbitrary: fc.constantFrom(0n, 1n << 47n, 1n << 63n, 2n ** 64n - 1n) },
      { weight: 1, arbitrary: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }) },
      { weight: 2, arbitrary: fc.integer({ min: -2, max: WORDS + 1 }).map(place) },
      { weight: 1, arbitrary: fc.integer({ min: -2, max: WORDS + 1 }).map((n) => place(n) + 1n) },
    ];
    const text = { weight: 40, arbitrary: fc.integer({ min: 0, max: TEXT_SIZE - 1 }).map(code) };
    // Like a stack, mostly: frames that lead a little up, and text above each.
    const words = fc.tuple(
      ...Array.from({ length: WORDS }, (_, n) => {
        if (n % 2 === 1) return fc.oneof(text, ...garbage);
        const link = fc.integer({ min: 1, max: 6 }).map((more) => place(n + 2 * more));
        const end = { weight: n === TOP ? 200 : 1, arbitrary: fc.constant(0n) };
        return fc.oneof({ weight: 40, arbitrary: link }, end, ...garbage);
      }),
    );
    const start = fc.oneof(
      fc.integer({ min: 0, max: WORDS / 2 }).map((n) => place(2 * n)),
      ...garbage,
    );
    const depths = new Set<number>();
    const doubts = new Set<string>();
    fc.assert(
      fc.property(words, start, (words, bp) => {
        const context = new WordContext(new WordStack(LOW, WORDS, { ...words }));
        const { frames: found, doubt } = walk(context, switchedOut(bp));
        expect(context.reads).toBeLessThanOrEqual(5 * WORDS);
        for (const [n, { slot, address }] of found.entries()) {
          if (n === 0) continue;
          expect(context.isText(address)).toBe(true);
          expect(words[(slot - LOW) / 8]).toBe(BigInt.asUintN(64, BigInt(address)));
          expect(slot).toBeGreaterThan(n === 1 ? LOW : found[n - 1]!.slot);
        }
        // Reliable is one thing only: a chain of frames to the stack's beginning.
        if (doubt === null) {
          expect(found.at(-1)!.slot).toBe(slotOf(TOP + 1));
          let next = bp;
          for (const { slot } of found.slice(1)) {
            expect(slotOf(1) < slot && next).toBe(BigInt.asUintN(64, BigInt(slot - 8)));
            next = words[(slot - 8 - LOW) / 8]!;
          }
          expect(next).toBe(0n);
        }
        depths.add(found.length);
        doubts.add(doubt?.why ?? "none");
      }),
      { numRuns: 1500, seed: 1 },
    );
    for (const why of ["early-end", "none", "not-text", "outside-stack", "went-back"] as const)
      expect(doubts).toContain(why);
    expect(depths.size).toBeGreaterThan(4);
  });
});
