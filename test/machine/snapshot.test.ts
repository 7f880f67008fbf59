// Snapshots one property at a time; random histories are in snapshotRandom.test.ts.

import { describe, expect, test } from "vitest";
import { type Addr, addr, offset, PAGE_SIZE } from "../../src/base/addr.ts";
import type { Snapshot } from "../../src/machine/snapshot.ts";
import {
  DATA,
  type Guest,
  loopOf,
  makeGuest,
  RO,
  RW,
  RWX,
  restart,
  STACK_TOP,
  stateOf,
  TEXT,
} from "./guest.ts";

const page = (n: number): Addr => offset(DATA, n * PAGE_SIZE);
/** mov $1,%eax; mov %rax,(%rbx), over and over. */
const STORE = loopOf("b8 01 00 00 00 48 89 03");
const IMMEDIATE = offset(TEXT, 1);

function run(guest: Guest, iterations: number, at: Addr = DATA): bigint {
  guest.vcpu.rip = TEXT;
  guest.vcpu.set("rcx", BigInt(iterations));
  guest.vcpu.set("rbx", BigInt(at));
  expect(guest.vcpu.run().kind).toBe("hypercall");
  return guest.machine.memory.readWord(at);
}

/** Pages that are not written for this long are no longer followed. */
function letIdle({ machine }: Guest): void {
  for (let n = 0; n < 12; n++) {
    machine.memory.writeWord(page(3), BigInt(n));
    machine.snapshot().dispose();
  }
}

const poke = (guest: Guest, value: number) => guest.machine.memory.write(IMMEDIATE, Uint8Array.of(value));

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

describe("a vCPU", () => {
  test("gets back registers, flags, bases and the count of instructions; others too", () => {
    const guest = makeGuest(STORE, { vcpus: 3 });
    const { machine, vcpu } = guest;
    run(guest, 10);
    const other = machine.vcpus[2]!;
    other.gsBase = 0xffff_8880_0000_1000n;
    vcpu.rflags = 0x8d7n;
    const before = [stateOf(guest), vcpu.instructions, other.gsBase, machine.instructions];
    const snapshot = machine.snapshot();
    expect([stateOf(guest), vcpu.instructions, other.gsBase, machine.instructions]).toEqual(before);
    run(guest, 300);
    other.gsBase = 1n;
    machine.restore(snapshot);
    expect([stateOf(guest), vcpu.instructions, other.gsBase, machine.instructions]).toEqual(before);
    vcpu.rip = TEXT;
    vcpu.set("rcx", 1n);
    vcpu.run();
    expect(vcpu.instructions).toBe((before[1] as number) + 5);
  });

  test("goes on with the rights that it had", () => {
    const guest = makeGuest(STORE);
    const { machine, vcpu } = guest;
    run(guest, 2);
    const kernel = machine.snapshot();
    vcpu.system.setPrivilege(3);
    const user = machine.snapshot();
    for (const [snapshot, kind] of [
      [kernel, "hypercall"],
      [user, "fault"],
      [kernel, "hypercall"],
      [user, "fault"],
    ] as const) {
      machine.restore(snapshot);
      vcpu.rip = TEXT;
      vcpu.set("rcx", 2n);
      expect(vcpu.run().kind).toBe(kind);
    }
  });

  test("gets back its chain of calls", () => {
    // 0: call 8; vmcall; 8: test %rcx,%rcx; je 15; dec %rcx; call 8; 15: ret
    const code = "e8 03 00 00 00 0f 01 c1 48 85 c9 74 08 48 ff c9 e8 f3 ff ff ff c3";
    const guest = makeGuest(code, { recordCalls: true });
    const { machine, vcpu } = guest;
    const depth = () => machine.trueStack(vcpu.rsp).length;
    restart(guest, { rsp: STACK_TOP - 64, rcx: 30 });
    const made = [5, 40, 30].map((budget) => {
      vcpu.run({ budget });
      return { snapshot: machine.snapshot(), chain: machine.trueStack(vcpu.rsp) };
    });
    vcpu.run();
    expect(depth()).toBe(0);
    for (const n of [1, 0, 2, 0, 1]) {
      machine.restore(made[n]!.snapshot);
      expect(machine.trueStack(vcpu.rsp)).toEqual(made[n]!.chain);
      expect(depth()).toBeGreaterThan(0);
      vcpu.run();
      expect(depth()).toBe(0);
    }
  });
});

describe("the hash", () => {
  test("is of the state, not of its history", () => {
    const [one, other] = [makeGuest("90"), makeGuest("90")];
    const hashes = () => [one, other].map(({ machine }) => machine.hash());
    const [before] = hashes();
    one.machine.memory.writeWord(page(1), 5n);
    one.machine.memory.writeWord(page(2), 6n);
    other.machine.memory.writeWord(page(2), 9n);
    other.machine.snapshot();
    other.machine.memory.writeWord(page(2), 6n);
    expect(hashes()[0]).not.toBe(hashes()[1]);
    other.machine.memory.writeWord(page(1), 5n);
    expect(hashes()[0]).toBe(hashes()[1]);
    for (const { machine } of [one, other]) {
      machine.memory.write(page(1), new Uint8Array(2 * PAGE_SIZE).fill(0xa5));
    }
    expect(hashes()).toEqual([before, before]);
  });

  test("tells places, permissions, aliases and vCPUs apart", () => {
    const { machine } = makeGuest("90", { vcpus: 2 });
    const { memory, vcpus } = machine;
    const start = machine.snapshot();
    const far = addr(0xffff_e000_0000_0000n);
    const act = (change: () => void): bigint => {
      machine.restore(start);
      change();
      return machine.hash();
    };
    const different = [
      () => {},
      () => memory.writeWord(page(0), 1n),
      () => memory.writeWord(page(1), 1n),
      () => memory.writeWord(offset(page(0), 8), 1n),
      () => memory.writeWord(offset(page(0), 64), 1n),
      () => memory.unmap(page(3), PAGE_SIZE),
      () => memory.map(far, PAGE_SIZE, RW),
      () => memory.map(far, PAGE_SIZE, RO),
      () => memory.map(offset(far, PAGE_SIZE), PAGE_SIZE, RW),
      () => memory.protect(page(3), PAGE_SIZE, RO),
      () => memory.protect(page(3), PAGE_SIZE, RWX),
      () => memory.alias(far, page(0), PAGE_SIZE, RW),
      () => memory.alias(far, page(1), PAGE_SIZE, RW),
      () => {
        memory.map(far, PAGE_SIZE, RW); // the bytes of page 0, but not its frame
        memory.write(far, memory.read(page(0), PAGE_SIZE));
      },
      () => vcpus[0]!.set("rax", 1n),
      () => vcpus[1]!.set("rax", 1n),
      () => vcpus[1]!.set("rcx", 1n),
      () => {
        vcpus[0]!.rflags = 1n;
      },
    ];
    const hashes = different.map(act);
    expect(new Set(hashes).size).toBe(different.length);
    expect(different.toReversed().map(act).reverse()).toEqual(hashes);
    machine.restore(start);
    memory.map(far, PAGE_SIZE, RW);
    machine.hash();
    memory.writeWord(far, 3n);
    memory.unmap(far, PAGE_SIZE);
    expect(machine.hash()).toBe(hashes[0]);
  });

  test("does not see how flags came about, nor what was executed", () => {
    const flagged = (code: string, steps = 1) => {
      const { machine, vcpu } = makeGuest(code);
      for (let n = 0; n < steps; n++) vcpu.step();
      expect(vcpu.instructions).toBe(steps);
      machine.memory.write(TEXT, new Uint8Array(16));
      vcpu.rip = TEXT;
      return { hash: machine.hash(), flags: vcpu.rflags };
    };
    const subtracted = flagged("48 39 c0"); // cmp %rax,%rax
    expect(flagged("38 c9")).toEqual(subtracted); // cmp %cl,%cl
    expect(flagged("48 31 c0 90 90", 3)).toEqual(subtracted); // xor %rax,%rax; nop; nop
    expect(flagged("48 83 f8 01").hash).not.toBe(subtracted.hash); // cmp $1,%rax
  });

  test("is what it was after a restore, whether it was asked for before or not", () => {
    const { machine } = makeGuest("90");
    const unasked = machine.snapshot();
    machine.memory.writeWord(page(0), 4n);
    const hash = machine.hash();
    const asked = machine.snapshot();
    machine.restore(unasked);
    const first = machine.hash();
    machine.restore(asked);
    expect(machine.hash()).toBe(hash);
    machine.restore(unasked);
    expect(machine.hash()).toBe(first);
    expect(first).not.toBe(hash);
  });
});

describe("many snapshots", () => {
  /** Dirties a line on each of ten pages, and a vCPU. */
  function dirty({ machine, vcpu }: Guest, far: Addr, n: number): void {
    for (let k = 0; k < 10; k++)
      machine.memory.writeWord(offset(far, k * PAGE_SIZE + 64 * ((n + k) % 64)), BigInt(n * 10 + k + 1));
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
    const { guest, made } = makeMany(20_000);
    globalThis.gc?.();
    const each = (used() - before) / made.length;
    const { bytes, snapshots } = guest.machine.snapshotStats;
    expect(snapshots).toBe(20_000);
    expect(bytes / snapshots).toBeLessThan(1500);
    expect(each).toBeLessThan(5000);
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
