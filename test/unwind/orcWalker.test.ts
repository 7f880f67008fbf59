// The ORC walk, rule by rule, on stacks made for each; and over anything, where it ends.

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { type Addr, addr } from "../../src/base/addr.ts";
import { PT_REGS } from "../../src/machine/ptRegs.ts";
import { type BpRegister, type CfaRegister, frameless, type OrcRule } from "../../src/unwind/orc/entry.ts";
import { orcUnwinder } from "../../src/unwind/orcWalker.ts";
import { type Doubt, type ExtraRegister, MAX_ENTRIES, type Start } from "../../src/unwind/walk.ts";
import { code, RETURN_TRAMPOLINE, TEXT, TRAMPOLINE, WordContext, WordStack } from "./wordStack.ts";

const LOW = addr(0xffffc90000000000n);
const WORDS = 64;
const REGS_WORDS = PT_REGS.size / 8;
const IRET_WORDS = 5;

const field = (name: keyof typeof PT_REGS.fields) => PT_REGS.fields[name].offset / 8;

function rule(
  type: OrcRule["type"],
  cfa: [CfaRegister, number],
  bp: [BpRegister, number] = ["undefined", 0],
): OrcRule {
  return {
    type,
    cfa: { register: cfa[0], offset: cfa[1] },
    bp: { register: bp[0], offset: bp[1] },
    signal: type !== "CALL",
  };
}

/** Every function's code: what a return into it finds above its slot ends the stack. */
const LEAF = rule("CALL", ["sp", 8]);
const OUTERMOST = addr(TEXT + 0x7000);

/** Functions by where they begin, of 256 bytes: each with one rule; at OUTERMOST stacks end. */
function contextOf(rules: Readonly<Record<number, OrcRule>>, ...stacks: WordStack[]): WordContext {
  const context = new WordContext(...stacks);
  context.rules.set(TEXT, frameless("UNDEFINED"));
  context.rules.set(OUTERMOST, frameless("END_OF_STACK"));
  context.rules.set(addr(OUTERMOST + 256), frameless("UNDEFINED"));
  for (const [at, one] of Object.entries(rules)) {
    context.rules.set(addr(TEXT + Number(at)), one);
    const end = addr(TEXT + Number(at) + 256);
    if (!context.rules.has(end) && rules[Number(at) + 256] === undefined)
      context.rules.set(end, frameless("UNDEFINED"));
  }
  return context;
}

/** Words of a task's stack, whose outermost return address goes where stacks end. */
function taskStack(words: Readonly<Record<number, bigint>>): WordStack {
  return new WordStack(LOW, WORDS, { [WORDS - 1]: code(OUTERMOST - TEXT + 4), ...words });
}

function live(
  stack: WordStack,
  at: number,
  options: { sp: number; bp?: number; registers?: Partial<Record<ExtraRegister, number>> },
): Start & { from: "live" } {
  return {
    from: "live",
    ip: addr(TEXT + at),
    sp: stack.at(options.sp),
    bp: options.bp ?? 0,
    register: (name) => options.registers?.[name] ?? Number.NaN,
  };
}

function outcome(context: WordContext, start: Start, stack: WordStack) {
  const { frames, doubt } = orcUnwinder.walk(context, start);
  return {
    frames: frames.map(({ kind, address, slot }) => [kind, address - TEXT, (slot - stack.low) / 8]),
    doubt: doubt?.why ?? null,
  };
}

const END = ["return", OUTERMOST - TEXT + 4, WORDS - 1];

describe("where a rule finds the frame", () => {
  const AT = 0x1000;
  const CALLER = 0x1180;
  const last = rule("CALL", ["sp", 8 * (WORDS - 21)]);
  const whole = { frames: [["return", CALLER, 20], END], doubt: null };

  test.for<
    [
      string,
      OrcRule,
      { bp?: number; registers?: Partial<Record<ExtraRegister, number>> },
      Record<number, bigint>,
    ]
  >([
    ["at a constant distance from rsp", rule("CALL", ["sp", 8 * 11]), {}, {}],
    ["from rbp", rule("CALL", ["bp", 16]), { bp: 19 }, {}],
    ["by the word at rbp", rule("CALL", ["bp-indirect", -8]), { bp: 15 }, { 14: 21n }],
    ["by the word at rsp", rule("CALL", ["sp-indirect", 16]), {}, { 10: 19n }],
    ["by rdx", rule("CALL", ["dx", 8]), { registers: { dx: 20 } }, {}],
    ["by rdi", rule("CALL", ["di", 0]), { registers: { di: 21 } }, {}],
    ["by r10", rule("CALL", ["r10", 0]), { registers: { r10: 21 } }, {}],
    ["by r13", rule("CALL", ["r13", -8]), { registers: { r13: 22 } }, {}],
  ])("%s", ([, here, { bp, registers }, links]) => {
    const stack = taskStack({ 20: code(CALLER) });
    for (const [n, to] of Object.entries(links)) stack.words[Number(n)] = stack.place(Number(to));
    const places = Object.entries(registers ?? {}).map(([name, n]) => [name, stack.at(n)]);
    const start = live(stack, AT + 8, {
      sp: 10,
      ...(bp !== undefined && { bp: stack.at(bp) }),
      registers: Object.fromEntries(places),
    });
    expect(outcome(contextOf({ [AT]: here, [CALLER & ~0xff]: last }, stack), start, stack)).toEqual(whole);
  });

  test("a register that no rule keeps is known in the first frame only", () => {
    const stack = taskStack({ 20: code(CALLER) });
    const start = live(stack, AT, { sp: 20, registers: { r10: stack.at(21), r13: stack.at(21) } });
    const context = contextOf({ [AT]: LEAF, [CALLER & ~0xff]: rule("CALL", ["r10", 0]) }, stack);
    expect(outcome(context, start, stack)).toEqual({
      frames: [["return", CALLER, 20]],
      doubt: "orc-register",
    });
  });
});

describe("the caller's rbp", () => {
  const AT = 0x1000;
  const CALLER = 0x1180;
  const fromBp = rule("CALL", ["bp", 16]);

  test.for<[string, [BpRegister, number], number, Record<number, bigint>]>([
    ["is what it was, where no rule says otherwise", ["undefined", 0], WORDS - 2, {}],
    ["is in the frame", ["prevsp", -16], 0, { 19: BigInt(WORDS - 2) }],
    ["is at a distance from rbp", ["bp", -8], 16, { 15: BigInt(WORDS - 2) }],
  ])("%s", ([, bp, inBp, links]) => {
    const stack = taskStack({ 20: code(CALLER) });
    for (const [n, to] of Object.entries(links)) stack.words[Number(n)] = stack.place(Number(to));
    const context = contextOf({ [AT]: rule("CALL", ["sp", 8 * 11], bp), [CALLER & ~0xff]: fromBp }, stack);
    const start = live(stack, AT, { sp: 10, bp: stack.at(inBp) });
    expect(outcome(context, start, stack)).toEqual({ frames: [["return", CALLER, 20], END], doubt: null });
  });

  test.for<[string, [BpRegister, number], number]>([
    ["outside the stack", ["prevsp", 8 * WORDS], 0],
    ["between two words", ["prevsp", -12], 0],
    ["from an rbp that is none", ["bp", -8], Number.NaN],
  ])("in doubt if it is %s", ([, bp, inBp]) => {
    const stack = taskStack({ 20: code(CALLER) });
    const context = contextOf({ [AT]: rule("CALL", ["sp", 8 * 11], bp), [CALLER & ~0xff]: fromBp }, stack);
    const start = live(stack, AT, { sp: 10, bp: inBp });
    expect(outcome(context, start, stack)).toEqual({ frames: [], doubt: "outside-stack" });
  });
});

describe("which rule", () => {
  const AT = 0x1000;
  // Two functions in a row: the first ends in the call that it returns behind of.
  const rules = { [AT]: rule("CALL", ["sp", 8 * (WORDS - 21)]), [AT + 256]: rule("CALL", ["sp", 16]) };
  const next = code(AT + 256);
  const stack = () => taskStack({ 20: next });

  test("a return address is the call's before it, even where it is another function's start", () => {
    const start: Start = { from: "switched-out", ip: addr(TEXT + AT + 256), slot: stack().at(20), bp: 0 };
    expect(outcome(contextOf(rules, stack()), start, stack())).toEqual({
      frames: [["return", AT + 256, 20], END],
      doubt: null,
    });
  });

  test("an interrupted instruction is looked up where it is", () => {
    const found = outcome(contextOf(rules, stack()), live(stack(), AT + 256, { sp: 10 }), stack());
    expect(found).toEqual({ frames: [], doubt: "not-text" });
  });

  test("a function's start that is returned to is looked up where it is if a trampoline does, or no call ends there", () => {
    const to = AT + 256;
    const from = taskStack({ 10: code(to), 11: code(OUTERMOST - TEXT + 4) });
    const start = (by: number) => live(from, by, { sp: 10 });
    const OTHER = 0x2000;
    const trampoline = TRAMPOLINE - TEXT + 4;
    const found = (before: OrcRule, by: number) => {
      const at = { [AT]: before, [to]: LEAF, [OTHER]: LEAF, [TRAMPOLINE - TEXT]: LEAF };
      return outcome(contextOf(at, from), start(by), from).frames.length;
    };
    // LEAF finds the next word, the other rule none.
    const past = rule("CALL", ["sp", 8 * WORDS]);
    expect(found(past, trampoline)).toBe(2);
    expect(found(past, OTHER)).toBe(1);
    expect(found(frameless("UNDEFINED"), OTHER)).toBe(2);
    // Elsewhere in the function it is a return address as any other.
    from.words[10] = code(to + 5);
    expect(found(past, trampoline)).toBe(2);
    from.words[10] = code(AT + 5);
    expect(found(past, trampoline)).toBe(1);
    expect(found(frameless("UNDEFINED"), OTHER)).toBe(1);
  });
});

describe("the walk ends", () => {
  const AT = 0x1000;

  test.for<[string, OrcRule | undefined, number, Doubt | null]>([
    ["reliably at an end of stack where the stack begins", frameless("END_OF_STACK"), WORDS, null],
    ["in doubt at an end of stack elsewhere", frameless("END_OF_STACK"), WORDS - 1, "early-end"],
    ["in doubt at an end of stack on none", frameless("END_OF_STACK"), WORDS + 3, "early-end"],
    ["in doubt where nothing is known", frameless("UNDEFINED"), WORDS, "orc-undefined"],
    ["in doubt at 6.1's end, even where the stack begins", frameless("END_6_1"), WORDS, "orc-ambiguous-end"],
    ["in doubt at a frame without a register", rule("CALL", ["undefined", 0]), 10, "orc-register"],
    ["in doubt past the stack", LEAF, WORDS, "outside-stack"],
    ["in doubt below the stack", LEAF, -1, "outside-stack"],
    ["in doubt at a word that is no code", LEAF, 10, "not-text"],
  ])("%s", ([, here, sp, doubt]) => {
    const stack = taskStack({});
    const context = contextOf(here === undefined ? {} : { [AT]: here }, stack);
    expect(outcome(context, live(stack, AT, { sp }), stack)).toEqual({ frames: [], doubt });
  });

  test("in doubt where no entry covers the address", () => {
    const stack = taskStack({});
    const context = new WordContext(stack);
    expect(outcome(context, live(stack, AT, { sp: 10 }), stack)).toEqual({ frames: [], doubt: "no-orc" });
  });

  test("in doubt at an rsp between two words", () => {
    const stack = taskStack({});
    const start = { ...live(stack, AT, { sp: 10 }), sp: addr(stack.at(10) + 4) } as Start;
    expect(outcome(contextOf({ [AT]: LEAF }, stack), start, stack).doubt).toBe("misaligned");
  });

  test("in doubt where a task would go on below where it was switched out", () => {
    const stack = taskStack({ 10: code(AT + 4), 4: code(AT + 4) });
    const context = contextOf({ [AT]: rule("CALL", ["bp", 16], ["undefined", 0]) }, stack);
    const ip = addr(TEXT + AT + 4);
    const start: Start = { from: "switched-out", ip, slot: stack.at(10), bp: stack.at(3) };
    expect(outcome(context, start, stack)).toEqual({ frames: [["return", AT + 4, 10]], doubt: "went-back" });
  });

  test("in doubt where it would come back", () => {
    const stack = taskStack({ 20: code(AT + 4) });
    const context = contextOf({ [AT]: rule("CALL", ["bp", 16], ["undefined", 0]) }, stack);
    const found = outcome(context, live(stack, AT, { sp: 10, bp: stack.at(19) }), stack);
    expect(found).toEqual({ frames: [["return", AT + 4, 20]], doubt: "went-back" });
  });

  test("in doubt when the trace is full", () => {
    const stack = new WordStack(LOW, 2 * MAX_ENTRIES, {});
    stack.words.fill(code(AT + 4));
    const found = outcome(contextOf({ [AT]: LEAF }, stack), live(stack, AT, { sp: 0 }), stack);
    expect([found.frames.length, found.doubt]).toEqual([MAX_ENTRIES, "too-deep"]);
  });

  test("of a task that was never run: reliably, with nothing", () => {
    const stack = taskStack({});
    const start: Start = { from: "unstarted", ip: OUTERMOST, sp: stack.at(WORDS) };
    expect(outcome(contextOf({}, stack), start, stack)).toEqual({ frames: [], doubt: null });
    expect(outcome(contextOf({}, stack), { ...start, sp: stack.at(9) }, stack).doubt).toBe("early-end");
  });

  test("with what a return address was before it was replaced, or in doubt of it", () => {
    const stack = taskStack({ 20: BigInt.asUintN(64, BigInt(RETURN_TRAMPOLINE)) });
    const rules = { [AT]: LEAF, [AT + 256]: rule("CALL", ["sp", 8 * (WORDS - 21)]) };
    const context = contextOf(rules, stack);
    const start = live(stack, AT, { sp: 20 });
    expect(outcome(context, start, stack)).toEqual({ frames: [], doubt: "return-replaced" });
    context.replaced.set(stack.at(20), addr(TEXT + AT + 256 + 9));
    expect(outcome(context, start, stack)).toEqual({ frames: [["return", AT + 265, 20], END], doubt: null });
  });
});

describe("saved registers", () => {
  const ENTRY = 0x1000;
  const INTERRUPTED = 0x2000;
  /** The interrupted function's, whose frame is above the registers. */
  const inner = rule("CALL", ["bp", 16]);
  const regs = 5;
  const end = regs + REGS_WORDS;
  const saved = (n: number, words: Partial<Record<keyof typeof PT_REGS.fields, bigint>>) =>
    Object.fromEntries(Object.entries(words).map(([name, word]) => [n + field(name as "ip"), word]));
  const place = (n: number) => BigInt.asUintN(64, BigInt(LOW + 8 * n));
  const kernel = {
    ip: code(INTERRUPTED + 4),
    cs: 0x10n,
    sp: place(end),
    bp: place(WORDS - 2),
    r13: place(WORDS),
  };
  const rules = { [ENTRY]: rule("REGS", ["sp", 0]), [INTERRUPTED]: inner };
  const whole = { frames: [["interrupted", INTERRUPTED + 4, regs + field("ip")], END], doubt: null };

  test("of kernel code lead to it, with its rbp", () => {
    const stack = taskStack(saved(regs, kernel));
    expect(outcome(contextOf(rules, stack), live(stack, ENTRY, { sp: regs }), stack)).toEqual(whole);
    const start: Start = { from: "registers", regs: stack.at(regs) };
    expect(outcome(contextOf(rules, stack), start, stack)).toEqual(whole);
  });

  test("give the registers that its rule needs", () => {
    const stack = taskStack(saved(regs, { ...kernel, bp: 0n }));
    const context = contextOf({ ...rules, [INTERRUPTED]: rule("CALL", ["r13", 0]) }, stack);
    expect(outcome(context, live(stack, ENTRY, { sp: regs }), stack)).toEqual(whole);
  });

  test("of the hardware alone leave rbp and the other registers as they are", () => {
    const partial = { ...rules, [ENTRY]: rule("REGS_PARTIAL", ["sp", 8]) };
    const iret = end - IRET_WORDS;
    const stack = taskStack(saved(regs, { ip: kernel.ip, cs: kernel.cs, sp: kernel.sp }));
    const start = (bp: number) =>
      live(stack, ENTRY, { sp: iret - 1, bp, registers: { r13: stack.at(WORDS) } });
    expect(outcome(contextOf(partial, stack), start(stack.at(WORDS - 2)), stack)).toEqual(whole);
    expect(outcome(contextOf(partial, stack), start(0), stack).doubt).toBe("outside-stack");
    const r13 = contextOf({ ...partial, [INTERRUPTED]: rule("CALL", ["r13", 0]) }, stack);
    expect(outcome(r13, start(0), stack).doubt).toBe("orc-register");
  });

  test("on another stack are found by the word that leads to them", () => {
    const stack = taskStack(saved(regs, kernel));
    const irq = new WordStack(addr(LOW + 0x10000), 8, { 7: place(regs) }, "irq");
    const context = contextOf({ ...rules, [ENTRY]: rule("REGS", ["sp-indirect", 0]) }, stack, irq);
    expect(outcome(context, live(irq, ENTRY, { sp: 7 }), stack)).toEqual(whole);
    irq.words[7] = irq.place(0);
    expect(outcome(context, live(irq, ENTRY, { sp: 7 }), stack).doubt).not.toBeNull();
  });

  test("of user mode end the walk reliably at the stack's beginning, and nowhere else", () => {
    const at = WORDS - REGS_WORDS;
    const user = { ip: 0x401000n, cs: 0x33n, sp: 0x7fff_0000n, ss: 0x2bn };
    const of = (n: number, words: Record<string, bigint>) => {
      const stack = taskStack({ ...saved(n, words) });
      return outcome(contextOf(rules, stack), live(stack, ENTRY, { sp: n }), stack);
    };
    expect(of(at, user)).toEqual({ frames: [], doubt: null });
    expect(of(at - 2, user).doubt).toBe("early-end");
    expect(of(at, { ...user, ip: kernel.ip }).doubt).toBe("early-end");
    expect(of(at, { ...user, sp: kernel.sp }).doubt).toBe("early-end");
    expect(of(at, { ...user, ss: 0x18n }).doubt).toBe("early-end");
    expect(of(at, { ...user, cs: 0x31n }).doubt).toBe("early-end");
    expect(of(at, { ...user, ip: 1n << 60n }).doubt).toBe("early-end");
  });

  test.for<[string, Partial<Record<keyof typeof PT_REGS.fields, bigint>>, Doubt]>([
    ["no code where it was interrupted", { ip: place(3) }, "not-text"],
    ["a selector that is no word's", { cs: 1n << 60n }, "early-end"],
    ["an rsp further out", { sp: place(end + 4) }, "saved-sp"],
    ["an rsp further in", { sp: place(2) }, "saved-sp"],
    ["an rsp on no stack", { sp: 0n }, "saved-sp"],
    ["an rsp that is no address", { sp: 1n << 60n }, "saved-sp"],
    ["an rbp on no stack", { bp: 0n }, "outside-stack"],
    ["an rbp between words", { bp: place(WORDS - 2) + 4n }, "misaligned"],
  ])("in doubt with %s", ([, words, doubt]) => {
    const stack = taskStack(saved(regs, { ...kernel, ...words }));
    expect(outcome(contextOf(rules, stack), live(stack, ENTRY, { sp: regs }), stack).doubt).toBe(doubt);
  });
});

test("whatever rules and stacks say, it ends, and its frames go up each stack", () => {
  const FUNCTIONS = 24;
  const word = fc.oneof(
    { weight: 12, arbitrary: fc.integer({ min: 0, max: FUNCTIONS * 256 - 1 }).map((n) => code(0x1000 + n)) },
    {
      weight: 6,
      arbitrary: fc.integer({ min: -1, max: WORDS }).map((n) => BigInt.asUintN(64, BigInt(LOW + 8 * n))),
    },
    { weight: 1, arbitrary: fc.constantFrom(0n, 0x10n, 0x33n, code(OUTERMOST - TEXT + 4), 1n << 60n) },
  );
  const cfa = fc.tuple(
    fc.constantFrom<CfaRegister>(
      "sp",
      "sp",
      "sp",
      "bp",
      "bp",
      "sp-indirect",
      "bp-indirect",
      "r10",
      "r13",
      "dx",
    ),
    fc.integer({ min: -1, max: 12 }).map((n) => 8 * n),
  );
  const bp = fc.oneof(
    fc.constant<[BpRegister, number]>(["undefined", 0]),
    fc.tuple(
      fc.constantFrom<BpRegister>("prevsp", "bp"),
      fc.integer({ min: -4, max: 1 }).map((n) => 8 * n),
    ),
  );
  const anyRule = fc.oneof(
    { weight: 8, arbitrary: fc.tuple(cfa, bp).map(([c, b]) => rule("CALL", c, b)) },
    {
      weight: 2,
      arbitrary: fc.tuple(fc.constantFrom("REGS", "REGS_PARTIAL" as const), cfa).map(([t, c]) => rule(t, c)),
    },
    { weight: 1, arbitrary: fc.constantFrom("UNDEFINED", "END_OF_STACK", "END_6_1" as const).map(frameless) },
  );
  const doubts = new Set<string>();
  let reliable = 0;
  fc.assert(
    fc.property(
      fc.array(word, { minLength: WORDS, maxLength: WORDS }),
      fc.array(anyRule, { minLength: FUNCTIONS, maxLength: FUNCTIONS }),
      fc.integer({ min: 0, max: FUNCTIONS * 256 - 1 }),
      fc.integer({ min: 0, max: WORDS }),
      fc.integer({ min: 0, max: WORDS }),
      (words, rules, at, sp, inBp) => {
        const stack = taskStack({ ...words.slice(0, -1) });
        const context = contextOf(Object.fromEntries(rules.map((one, n) => [0x1000 + 256 * n, one])), stack);
        const start = live(stack, 0x1000 + at, { sp, bp: stack.at(inBp), registers: { r10: stack.at(9) } });
        const { frames, doubt } = orcUnwinder.walk(context, start);
        expect(context.reads).toBeLessThanOrEqual(8 * WORDS);
        let before: Addr = addr(LOW - 8);
        for (const { slot, address } of frames) {
          expect(context.isText(address)).toBe(true);
          expect(slot).toBeGreaterThan(before);
          before = slot;
        }
        if (doubt === null) {
          // Where stacks end, or at registers of user mode; in either case at the stack's beginning.
          const last = frames.at(-1);
          const at = last === undefined ? start.ip : addr(last.address - Number(last.kind === "return"));
          expect(["END_OF_STACK", "REGS", "REGS_PARTIAL"]).toContain(context.orc.find(at)?.type);
          reliable++;
        }
        doubts.add(doubt?.why ?? "none");
      },
    ),
    { numRuns: 2000, seed: 1 },
  );
  expect(doubts.size).toBeGreaterThan(7);
  expect(reliable).toBeGreaterThan(5);
});
