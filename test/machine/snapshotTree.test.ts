// Any number of snapshots, in any order; random histories are in snapshotRandom.test.ts.

import { describe, expect, test } from "vitest";
import { type Addr, addr, offset, PAGE_SIZE } from "../../src/base/addr.ts";
import type { Snapshot } from "../../src/machine/snapshot.ts";
import { DATA, type Guest, makeGuest, RW } from "./guest.ts";
import { page } from "./snapshotGuest.ts";

describe("the tree", () => {
  test("older, newer, and across branches, in any order", () => {
    const { machine } = makeGuest("90");
    const { memory } = machine;
    const made: { snapshot: Snapshot; words: bigint[] }[] = [];
    const words = () => [0, 1, 2, 3].map((n) => memory.readWord(page(n)));
    for (let n = 0; n < 60; n++) {
      if (n % 7 === 6) machine.restore(made[(n * 5) % made.length]!.snapshot);
      memory.writeWord(page(n % 4), BigInt(n));
      made.push({ snapshot: machine.snapshot(), words: words() });
    }
    for (let n = 0; n < 600; n++) {
      const { snapshot, words: expected } = made[(n * 37) % made.length]!;
      machine.restore(snapshot);
      expect(words()).toEqual(expected);
    }
  });

  test("loses inner snapshots without losing the others", () => {
    const { machine } = makeGuest("90");
    const { memory } = machine;
    const chain = Array.from({ length: 50 }, (_, n) => {
      memory.writeWord(page(n % 3), BigInt(n));
      return machine.snapshot();
    });
    chain.forEach((snapshot, n) => {
      if (n % 10 !== 9) snapshot.dispose();
    });
    for (const n of [9, 49, 19, 39, 29]) {
      machine.restore(chain[n]!);
      expect([n, n - 1, n - 2].map((k) => memory.readWord(page(k % 3)))).toEqual(
        [n, n - 1, n - 2].map(BigInt),
      );
    }
    expect(machine.snapshotStats.snapshots).toBe(5);
  });

  test("refuses what was disposed of, and what another machine made", () => {
    const [one, other] = [makeGuest("90"), makeGuest("90")];
    const snapshot = one.machine.snapshot();
    expect(() => other.machine.restore(snapshot)).toThrow("the snapshot is of another machine");
    snapshot.dispose();
    snapshot.dispose();
    expect(() => one.machine.restore(snapshot)).toThrow("the snapshot was disposed of");
  });
});

describe("many snapshots", () => {
  const wordAt = (far: Addr, n: number, k: number) => offset(far, k * PAGE_SIZE + 64 * ((n + k) % 64));

  /** Dirties a line on each of ten pages, and a vCPU. */
  function dirty({ machine, vcpu }: Guest, far: Addr, n: number): void {
    for (let k = 0; k < 10; k++) machine.memory.writeWord(wordAt(far, n, k), BigInt(n * 10 + k + 1));
    vcpu.set("rax", BigInt(n));
  }

  function makeMany(count: number): { guest: Guest; made: Snapshot[]; far: Addr } {
    const guest = makeGuest("90");
    const far = addr(0xffff_8900_0000_0000n);
    guest.machine.memory.map(far, 10 * PAGE_SIZE, RW);
    const made: Snapshot[] = [];
    for (let n = 0; n < count; n++) {
      if (n % 5 === 4) guest.machine.restore(made[Math.floor(n / 2)]!);
      dirty(guest, far, n);
      made.push(guest.machine.snapshot());
    }
    return { guest, made, far };
  }

  test("of ten lines each cost less than 5 KB, by the process's own account too", () => {
    const used = () => {
      const { heapUsed, arrayBuffers } = process.memoryUsage();
      return heapUsed + arrayBuffers;
    };
    globalThis.gc?.();
    const before = used();
    const { guest, made, far } = makeMany(20_000);
    globalThis.gc?.();
    const each = (used() - before) / made.length;
    const { bytes, snapshots } = guest.machine.snapshotStats;
    expect(snapshots).toBe(20_000);
    expect(bytes / snapshots).toBeLessThan(1500);
    expect(each).toBeLessThan(5000);
    const { machine, vcpu } = guest;
    for (let i = 0; i < 300; i++) {
      const n = (i * 104_729) % made.length;
      machine.restore(made[n]!);
      expect(vcpu.get("rax")).toBe(BigInt(n));
      for (let k = 0; k < 10; k++)
        expect(machine.memory.readWord(wordAt(far, n, k))).toBe(BigInt(n * 10 + k + 1));
    }
  });

  test("give back what they held when they are disposed of, for the next ones to use", () => {
    const { guest, made, far } = makeMany(2000);
    const { bytes, lines, cells } = guest.machine.snapshotStats;
    expect(lines).toBeGreaterThan(2000 * 10);
    for (let round = 0; round < 3; round++) {
      guest.machine.restore(made[0]!);
      for (const snapshot of made.splice(1)) snapshot.dispose();
      expect(guest.machine.snapshotStats).toMatchObject({ snapshots: 1, lines: 0, cells: 0 });
      for (let n = 0; n < 1999; n++) {
        dirty(guest, far, n);
        made.push(guest.machine.snapshot());
      }
      expect(guest.machine.snapshotStats.bytes).toBeLessThanOrEqual(bytes);
    }
    expect(guest.machine.snapshotStats.cells).toBeLessThanOrEqual(cells);
  });

  test("hold equal lines once", () => {
    const { machine } = makeGuest("90");
    const content = Uint8Array.from({ length: 64 }, (_, n) => n + 1);
    machine.snapshot();
    for (let n = 0; n < 200; n++) {
      machine.memory.write(offset(DATA, 64 * n), content);
      machine.snapshot();
    }
    expect(machine.snapshotStats.lines).toBe(2); // what they are now and were
  });
});
