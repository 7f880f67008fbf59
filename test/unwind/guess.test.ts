// The guessing walk: every address of code on the stack, on to the stacks that were interrupted, never reliable.

import { expect, test } from "vitest";
import { addr } from "../../src/base/addr.ts";
import { guessUnwinder } from "../../src/unwind/guess.ts";
import { MAX_ENTRIES, type Start } from "../../src/unwind/walk.ts";
import { code, RETURN_TRAMPOLINE, TEXT, WordContext, WordStack } from "./wordStack.ts";

const LOW = addr(0xffffc90000000000n);
const live = (stack: WordStack, n: number): Start => ({
  from: "live",
  ip: TEXT,
  sp: stack.at(n),
  bp: 0,
  register: () => 0,
});

test("takes every word that is an address of code, from where the stack is in use", () => {
  const stack = new WordStack(LOW, 16, { 2: code(1), 4: code(2), 9: code(3), 15: code(4) });
  const slots = (start: Start) =>
    guessUnwinder.walk(new WordContext(stack), start).frames.map(({ slot }) => (slot - LOW) / 8);
  expect(slots(live(stack, 3))).toEqual([4, 9, 15]);
  expect(slots({ from: "switched-out", ip: TEXT, slot: stack.at(9), bp: 0 })).toEqual([9, 15]);
  expect(slots({ from: "unstarted", ip: TEXT, sp: stack.at(16) })).toEqual([]);
  // An rsp between two words: from the next.
  expect(slots({ ...live(stack, 3), sp: addr(stack.at(4) + 3) } as Start)).toEqual([9, 15]);
});

test("is never reliable, whatever it finds", () => {
  const stack = new WordStack(LOW, 16, { 15: code(4) });
  for (let n = -1; n <= 17; n++)
    expect(guessUnwinder.walk(new WordContext(stack), live(stack, n)).doubt?.why).toBe("guess");
});

test("gives back replaced return addresses where they are recorded", () => {
  const trampoline = BigInt.asUintN(64, BigInt(RETURN_TRAMPOLINE));
  const stack = new WordStack(LOW, 4, { 1: trampoline, 3: trampoline });
  const context = new WordContext(stack);
  context.replaced.set(stack.at(3), addr(TEXT + 5));
  const { frames } = guessUnwinder.walk(context, live(stack, 0));
  expect(frames.map(({ address }) => address)).toEqual([RETURN_TRAMPOLINE, TEXT + 5]);
});

test("goes on from an interrupt's stack, and from an exception's, to what they interrupted, each once", () => {
  const task = new WordStack(LOW, 16, { 3: code(3), 12: code(4) });
  const irq = new WordStack(addr(LOW + 0x1000), 8, { 2: code(2), 7: task.place(10) }, "irq");
  const nmi = new WordStack(addr(LOW + 0x2000), 8, { 1: code(1), 6: irq.place(0) }, "exception");
  const context = new WordContext(task, irq, nmi);
  const addresses = () =>
    guessUnwinder.walk(context, live(nmi, 0)).frames.map(({ address }) => address - TEXT);
  expect(addresses()).toEqual([1, 2, 4]);
  irq.words[7] = nmi.place(0);
  expect(addresses()).toEqual([1, 2]);
  irq.words[7] = irq.place(0);
  expect(addresses()).toEqual([1, 2]);
});

test("stops when the trace is full", () => {
  const stack = new WordStack(LOW, 2 * MAX_ENTRIES);
  stack.words.fill(code(1));
  expect(guessUnwinder.walk(new WordContext(stack), live(stack, 0)).frames.length).toBe(MAX_ENTRIES);
});
