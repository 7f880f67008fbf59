// Snapshots and memory: what the guest stores, code that was poked, what is mapped.

import { describe, expect, test } from "vitest";
import { addr, offset, PAGE_SIZE } from "../../src/base/addr.ts";
import { DATA, makeGuest, RO, RW, RWX, TEXT } from "./guest.ts";
import { letIdle, page, poke, run, STORE } from "./snapshotGuest.ts";

describe("what the guest stores", () => {
  test.each([1, 500])("is undone where it had write access before the first snapshot (%i times)", (n) => {
    const guest = makeGuest(STORE);
    run(guest, n);
    guest.machine.memory.writeWord(DATA, 7n);
    const snapshot = guest.machine.snapshot();
    expect(run(guest, n)).toBe(1n);
    guest.machine.restore(snapshot);
    expect(guest.machine.memory.readWord(DATA)).toBe(7n);
  });

  test("is undone on a page that was given up after long idleness, and is written again", () => {
    const guest = makeGuest(STORE);
    const { machine } = guest;
    const first = machine.snapshot();
    const before = machine.memory.readWord(page(1));
    run(guest, 500, page(1));
    machine.restore(first);
    letIdle(guest);
    expect(machine.snapshotStats.followed).toBe(2); // the vCPU, and the page that it writes
    const second = machine.snapshot();
    expect(run(guest, 500, page(1))).toBe(1n);
    for (const snapshot of [second, first]) {
      machine.restore(snapshot);
      expect(machine.memory.readWord(page(1))).toBe(before);
      expect(machine.memory.readWord(page(3))).toBe(snapshot === second ? 11n : before);
      expect(run(guest, 3, page(1))).toBe(1n);
    }
  });

  test("is undone on pages that are written once and never again, and these are not followed for long", () => {
    const guest = makeGuest(STORE);
    const { machine } = guest;
    const far = addr(0xffff_8900_0000_0000n);
    machine.memory.map(far, 200 * PAGE_SIZE, RW);
    const snapshot = machine.snapshot();
    for (let n = 0; n < 200; n++) {
      expect(run(guest, 2, offset(far, n * PAGE_SIZE))).toBe(1n);
      machine.restore(snapshot);
      expect(machine.memory.readWord(offset(far, n * PAGE_SIZE))).toBe(0n);
      expect(machine.snapshotStats.followed).toBeLessThan(12);
    }
  });

  test("across two pages, and through an alias, is undone", () => {
    const guest = makeGuest(STORE);
    const { machine } = guest;
    const alias = addr(0xffff_e000_0000_0000n);
    machine.memory.alias(alias, page(1), PAGE_SIZE, RW);
    const at = offset(page(1), -3);
    const before = machine.memory.readWord(at);
    const snapshot = machine.snapshot();
    run(guest, 300, at);
    run(guest, 300, offset(alias, 64));
    expect(machine.memory.readWord(offset(page(1), 64))).toBe(1n);
    machine.restore(snapshot);
    expect(machine.memory.readWord(at)).toBe(before);
    expect(machine.memory.readWord(offset(alias, 64))).toBe(0xa5a5_a5a5_a5a5_a5a5n);
  });

  test("on more pages than fit the first list is undone", () => {
    const guest = makeGuest(STORE);
    const { machine } = guest;
    const far = addr(0xffff_8900_0000_0000n);
    machine.memory.map(far, 1000 * PAGE_SIZE, RW);
    const snapshot = machine.snapshot();
    for (let n = 0; n < 1000; n++) machine.memory.writeWord(offset(far, n * PAGE_SIZE), BigInt(n + 1));
    const written = machine.snapshot();
    machine.restore(snapshot);
    for (let n = 0; n < 1000; n++) expect(machine.memory.readWord(offset(far, n * PAGE_SIZE))).toBe(0n);
    machine.restore(written);
    for (let n = 0; n < 1000; n++)
      expect(machine.memory.readWord(offset(far, n * PAGE_SIZE))).toBe(BigInt(n + 1));
  });
});

describe("code that was poked", () => {
  test.each([
    ["interpreted", 2],
    ["compiled", 500],
  ])("is what it was after a restore, %s", (_, iterations) => {
    const guest = makeGuest(STORE);
    const { machine } = guest;
    expect(run(guest, iterations)).toBe(1n);
    const one = machine.snapshot();
    poke(guest, 2);
    expect(run(guest, iterations)).toBe(2n);
    const two = machine.snapshot();
    poke(guest, 3);
    expect(run(guest, iterations)).toBe(3n);
    for (const [snapshot, value] of [
      [one, 1n],
      [two, 2n],
      [one, 1n],
      [two, 2n],
    ] as const) {
      machine.restore(snapshot);
      expect(run(guest, iterations)).toBe(value);
    }
  });

  test("long before is what it was, though its page is no longer followed", () => {
    const guest = makeGuest(STORE);
    const { machine } = guest;
    const one = machine.snapshot();
    poke(guest, 2);
    const two = machine.snapshot();
    expect(run(guest, 500)).toBe(2n);
    letIdle(guest);
    machine.restore(one);
    expect(run(guest, 500)).toBe(1n);
    letIdle(guest);
    machine.restore(two);
    expect(run(guest, 500)).toBe(2n);
  });

  test("that did not change stays compiled, though its page was written", () => {
    const guest = makeGuest(STORE);
    const { machine } = guest;
    run(guest, 500);
    const snapshot = machine.snapshot();
    const region = machine.regions.find(TEXT)!.region;
    machine.memory.write(offset(TEXT, 40), Uint8Array.of(1)); // the same line
    machine.snapshot();
    expect(machine.regions.find(TEXT)!.region).toBe(region);
    const kept = machine.regions.keptCount;
    machine.restore(snapshot);
    expect([machine.regions.find(TEXT)!.region, machine.regions.keptCount]).toEqual([region, kept]);
    expect(run(guest, 500)).toBe(1n);
  });

  test("is compiled no more often than it has versions", () => {
    const guest = makeGuest(STORE);
    const { machine } = guest;
    const versions = [1, 2].map((value) => {
      poke(guest, value);
      run(guest, 500);
      return machine.snapshot();
    });
    const made = () => machine.regions.activeCount + machine.regions.keptCount;
    const before = made();
    for (let n = 0; n < 20; n++) {
      machine.restore(versions[n % 2]!);
      expect(run(guest, 500)).toBe(BigInt((n % 2) + 1));
    }
    expect(made()).toBe(before);
  });
});

describe("what is mapped", () => {
  test("comes back with its content, though its frame was used for another page", () => {
    const { machine } = makeGuest("90");
    const { memory } = machine;
    const far = addr(0xffff_e000_0000_0000n);
    memory.writeWord(page(2), 77n);
    const frame = memory.find(page(2))!.frame;
    const snapshot = machine.snapshot();
    memory.unmap(page(2), PAGE_SIZE);
    memory.map(far, PAGE_SIZE, RO);
    expect([memory.find(far)!.frame, memory.readWord(far)]).toEqual([frame, 0n]);
    const moved = machine.snapshot();
    for (let n = 0; n < 3; n++) {
      machine.restore(snapshot);
      expect([memory.readWord(page(2)), memory.isMapped(far, 1)]).toEqual([77n, false]);
      machine.restore(moved);
      expect([memory.readWord(far), memory.isMapped(page(2), 1)]).toEqual([0n, false]);
    }
  });

  test("and code in it, are executed as restored", () => {
    const guest = makeGuest(STORE);
    const { memory } = guest.machine;
    expect(run(guest, 500)).toBe(1n);
    const one = guest.machine.snapshot();
    const code = memory.read(TEXT, 64);
    memory.unmap(TEXT, PAGE_SIZE);
    const none = guest.machine.snapshot();
    memory.map(TEXT, PAGE_SIZE, RWX);
    code[1] = 2;
    memory.write(TEXT, code);
    expect(run(guest, 500)).toBe(2n);
    const two = guest.machine.snapshot();
    for (const [snapshot, value] of [
      [one, 1n],
      [two, 2n],
      [one, 1n],
    ] as const) {
      guest.machine.restore(none);
      guest.vcpu.rip = TEXT;
      expect(guest.vcpu.run()).toMatchObject({ kind: "fault", fault: { vector: "#PF" } });
      guest.machine.restore(snapshot);
      expect(run(guest, 500)).toBe(value);
    }
  });

  test("joins with other changes where snapshots between are disposed of", () => {
    const { machine } = makeGuest("90");
    const { memory } = machine;
    const start = machine.snapshot();
    memory.unmap(page(1), PAGE_SIZE);
    const unmapped = machine.snapshot();
    memory.map(page(1), PAGE_SIZE, RO);
    memory.writeWord(page(1), 5n);
    const mapped = machine.snapshot();
    memory.protect(page(1), PAGE_SIZE, RWX);
    const end = machine.snapshot();
    machine.restore(start);
    unmapped.dispose();
    mapped.dispose();
    machine.restore(end);
    expect([memory.find(page(1))?.access, memory.readWord(page(1))]).toEqual([RWX, 5n]);
    machine.restore(start);
    expect([memory.find(page(1))?.access, memory.readWord(page(1))]).toEqual([RW, 0xa5a5_a5a5_a5a5_a5a5n]);
  });
});
