// The heap for structures made on the guest's behalf.

import { expect, test } from "vitest";
import { addr, PAGE_SIZE } from "../../src/base/addr.ts";
import { Heap } from "../../src/machine/heap.ts";
import { Machine } from "../../src/machine/machine.ts";

const START = addr(0xffff888000000000n);
const ACCESS = { write: true, execute: false, user: false };

test("what is given out is mapped, zeroed, aligned, and given out once", () => {
  const { memory } = new Machine();
  const heap = new Heap(memory, START, ACCESS);
  const first = heap.allocate(24);
  const second = heap.allocate(PAGE_SIZE, 64);
  expect(first).toBe(START);
  expect(Math.abs(second % 64)).toBe(0);
  expect(second).toBeGreaterThanOrEqual(first + 24);
  expect(memory.read(second, PAGE_SIZE).every((byte) => byte === 0)).toBe(true);
});

test("a restored snapshot that has fewer pages is no trouble", () => {
  const machine = new Machine();
  const heap = new Heap(machine.memory, START, ACCESS);
  heap.allocate(16);
  const before = machine.snapshot();
  heap.allocate(3 * PAGE_SIZE);
  machine.restore(before);
  const at = heap.allocate(2 * PAGE_SIZE);
  machine.memory.write(at, new Uint8Array(2 * PAGE_SIZE).fill(1));
  expect(machine.memory.read(at, 2 * PAGE_SIZE).every((byte) => byte === 1)).toBe(true);
});
