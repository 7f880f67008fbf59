// The heap for structures made on the guest's behalf.

import { expect, test } from "vitest";
import { addr, offset, PAGE_SIZE } from "../../src/base/addr.ts";
import { Heap } from "../../src/machine/heap.ts";
import { Machine } from "../../src/machine/machine.ts";

const START = addr(0xffff888000000000n);
const ACCESS = { write: true, execute: false, user: false };

test("what is given out is mapped, zeroed, aligned, and given out once", () => {
  const { memory } = new Machine();
  const heap = new Heap(memory, START, ACCESS);
  const first = heap.allocate(24);
  const second = heap.allocate(PAGE_SIZE, 64);
  expect(first).toBe(START + 16); // behind its cursor, and aligned
  expect(Math.abs(second % 64)).toBe(0);
  expect(second).toBeGreaterThanOrEqual(first + 24);
  expect(memory.read(second, PAGE_SIZE).every((byte) => byte === 0)).toBe(true);
});

test("its cursor can lie elsewhere, so that all its pages are for what is allocated", () => {
  const { memory } = new Machine();
  const cursor = new Heap(memory, START, ACCESS).allocate(8);
  const start = offset(START, 2 ** 30);
  const heap = new Heap(memory, start, { ...ACCESS, write: false, execute: true }, cursor);
  expect([heap.allocate(24), heap.allocate(PAGE_SIZE)]).toEqual([start, start + 32]);
});

test("a restored snapshot has it as it was, pages and all", () => {
  const machine = new Machine();
  const heap = new Heap(machine.memory, START, ACCESS);
  heap.allocate(16);
  const before = machine.snapshot();
  const first = heap.allocate(3 * PAGE_SIZE);
  machine.memory.write(first, new Uint8Array(3 * PAGE_SIZE).fill(1));
  const after = machine.snapshot();
  const next = heap.allocate(40);
  for (let n = 0; n < 3; n++) {
    machine.restore(before);
    expect(heap.allocate(3 * PAGE_SIZE)).toBe(first);
    expect(machine.memory.read(first, 3 * PAGE_SIZE).every((byte) => byte === 0)).toBe(true);
    machine.restore(after);
    expect(heap.allocate(40)).toBe(next);
    expect(machine.memory.read(first, 3 * PAGE_SIZE).every((byte) => byte === 1)).toBe(true);
  }
});
