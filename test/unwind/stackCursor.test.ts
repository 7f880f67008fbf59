// Where a walk may go: up the stack that it is on, and out to those that were interrupted, each once.

import { expect, test } from "vitest";
import { addr } from "../../src/base/addr.ts";
import { StackCursor, type StackInfo } from "../../src/unwind/walk.ts";
import { WordContext, WordStack } from "./wordStack.ts";

const stackOf = (n: number, kind: StackInfo["kind"]) =>
  new WordStack(addr(0xffffc90000000000n + BigInt(n) * 0x1000n), 16, {}, kind);
const task = stackOf(0, "task");
const other = stackOf(1, "task");
const irq = stackOf(2, "irq");
const nmi = stackOf(3, "exception");
const doubleFault = stackOf(4, "exception");
const context = new WordContext(task, other, irq, nmi, doubleFault);

/** What each move gives, in turn. */
function moves(...places: (readonly [WordStack, number, size?: number])[]) {
  const cursor = new StackCursor(context);
  return places.map(([stack, n, size = 8]) => cursor.moveTo(stack.at(n), size) ?? null);
}

test("up a stack, never down, nor to where it is", () => {
  expect(moves([task, 3], [task, 4], [task, 9])).toEqual([null, null, null]);
  expect(moves([task, 3], [task, 3])).toEqual([null, "went-back"]);
  expect(moves([task, 3], [task, 2])).toEqual([null, "went-back"]);
});

test("never past a stack's end, nor between words", () => {
  expect(moves([task, 15, 16])).toEqual(["outside-stack"]);
  expect(moves([task, 3], [task, 15, 16])).toEqual([null, "outside-stack"]);
  expect(moves([task, -1])).toEqual(["outside-stack"]);
  const cursor = new StackCursor(context);
  expect([cursor.moveTo(task.at(3) + 4, 8), cursor.moveTo(Number.NaN, 8)]).toEqual([
    "misaligned",
    "outside-stack",
  ]);
});

test.for<[string, readonly WordStack[], boolean]>([
  ["from an interrupt to the task", [irq, task], true],
  ["from an NMI to the task", [nmi, task], true],
  ["from an NMI to an interrupt, to the task", [nmi, irq, task], true],
  ["from a double fault to an NMI to an interrupt to the task", [doubleFault, nmi, irq, task], true],
  ["from a task to another", [task, other], false],
  ["from a task to an interrupt", [task, irq], false],
  ["from a task to an NMI", [task, nmi], false],
  ["from an interrupt to an NMI", [irq, nmi], false],
])("%s", ([, stacks, may]) => {
  const all = moves(...stacks.map((stack) => [stack, 3] as const));
  expect(all.at(-1)).toBe(may ? null : "outside-stack");
  expect(all.slice(0, -1)).toEqual(stacks.slice(1).map(() => null));
});

test("never to a stack that it has left", () => {
  expect(moves([nmi, 3], [doubleFault, 3], [nmi, 9])).toEqual([null, null, "went-back"]);
});
