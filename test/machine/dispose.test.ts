// Machines that are disposed of: what they took is used again, and clean; they themselves are not used any more.

import { describe, expect, test } from "vitest";
import { addr, offset, PAGE_SIZE } from "../../src/base/addr.ts";
import { pooledMemories } from "../../src/machine/host.ts";
import { Machine } from "../../src/machine/machine.ts";
import { DATA, type Guest, loopOf, makeGuest, RW, setRegisters, TEXT } from "./guest.ts";

/** mov %rcx,(%rbx), over and over. */
const STORE = loopOf("48 89 0b");

function run(guest: Guest, iterations: number): void {
  setRegisters(guest, { rcx: iterations, rbx: BigInt(DATA) });
  expect(guest.vcpu.run().kind).toBe("hypercall");
}

describe("after that", () => {
  test("every use is refused in one line, of whatever was kept of it", () => {
    const { machine, vcpu } = makeGuest(STORE);
    const snapshot = machine.snapshot();
    const { memory } = machine;
    machine.dispose();
    const uses: Record<string, () => unknown> = {
      run: () => vcpu.run(),
      step: () => vcpu.step(),
      registers: () => vcpu.registers(),
      "a register": () => vcpu.set("rax", 1n),
      rip: () => vcpu.rip,
      interrupt: () => vcpu.interrupt(32),
      "the count": () => machine.instructions,
      read: () => memory.read(DATA, 8),
      write: () => memory.writeWord(DATA, 1n),
      map: () => memory.map(addr(0), PAGE_SIZE, RW),
      unmap: () => memory.unmap(DATA, PAGE_SIZE),
      snapshot: () => machine.snapshot(),
      restore: () => machine.restore(snapshot),
      hash: () => machine.hash(),
      "the true stack": () => machine.trueStack(DATA),
    };
    for (const [what, use] of Object.entries(uses))
      expect(use, what).toThrow(
        /^the machine was disposed of; keep it for as long as anything of it is used$/,
      );
  });

  test("also of one that never made a snapshot", () => {
    const machine = new Machine();
    machine.dispose();
    expect(() => machine.snapshot()).toThrow("the machine was disposed of");
  });

  test("disposing again, of it or of its snapshots, does nothing", () => {
    const { machine } = makeGuest(STORE);
    const snapshot = machine.snapshot();
    machine.dispose();
    const pooled = pooledMemories();
    machine.dispose();
    snapshot.dispose();
    expect(pooledMemories()).toBe(pooled);
  });
});

describe("its memory", () => {
  test("is used by the next machine, to which it looks new", () => {
    while (pooledMemories() > 0) new Machine();
    const fresh = makeGuest(STORE, { vcpus: 3 });
    run(fresh, 500);
    const used = makeGuest("90", { vcpus: 2 });
    used.machine.memory.map(offset(DATA, 2 ** 30), 300 * PAGE_SIZE, RW);
    used.machine.memory.write(offset(DATA, 2 ** 30), new Uint8Array(300 * PAGE_SIZE).fill(0xff));
    for (let n = 0; n < 16; n++) used.machine.vcpus[1]!.system.setWord("requested", -1n, n % 4);
    used.machine.snapshot();
    used.machine.dispose();
    expect(pooledMemories()).toBe(1);
    const next = makeGuest(STORE, { vcpus: 3 });
    expect(pooledMemories()).toBe(0);
    run(next, 500);
    next.machine.memory.map(offset(DATA, 2 ** 31), 400 * PAGE_SIZE, RW);
    expect(next.machine.memory.read(offset(DATA, 2 ** 31), 400 * PAGE_SIZE).every((byte) => byte === 0)).toBe(
      true,
    );
    next.machine.memory.unmap(offset(DATA, 2 ** 31), 400 * PAGE_SIZE);
    expect(next.machine.hash()).toBe(fresh.machine.hash());
  });

  test("waits in a pool of bounded size", () => {
    const machines = Array.from({ length: 40 }, () => new Machine());
    for (const machine of machines) machine.dispose();
    expect(pooledMemories()).toBe(16);
  });

  test("is not kept if it has grown", () => {
    while (pooledMemories() > 0) new Machine();
    const machine = new Machine();
    machine.memory.map(DATA, 40 * 2 ** 20, RW);
    machine.memory.writeWord(offset(DATA, 40 * 2 ** 20 - 8), 7n);
    expect(machine.usage.bytes).toBeGreaterThan(40 * 2 ** 20);
    machine.dispose();
    expect(pooledMemories()).toBe(0);
  });

  test("has an end, which is refused before anything is mapped", () => {
    const { memory } = new Machine();
    expect(() => memory.map(DATA, 2 ** 31, RW)).toThrow("the machine needs more than 2 GiB; map less memory");
    expect(memory.isMapped(DATA, 1)).toBe(false);
    memory.map(DATA, PAGE_SIZE, RW);
    expect(memory.readWord(DATA)).toBe(0n);
  });
});

describe("nothing grows", () => {
  test("over 300 machines made, run and disposed of", () => {
    const uses = Array.from({ length: 300 }, () => {
      const guest = makeGuest(STORE, { vcpus: 4 });
      const snapshot = guest.machine.snapshot();
      run(guest, 300);
      guest.machine.restore(snapshot);
      const { usage } = guest.machine;
      guest.machine.dispose();
      return { usage, pooled: pooledMemories() };
    });
    expect(uses[299]).toEqual(uses[1]);
    expect(uses[299]!.usage.regions).toBe(1);
  });

  test("over 4,000 pokes of hot code to and fro, and over 400 versions of it", () => {
    const guest = makeGuest(loopOf("b8 01 00 00 00")); // mov $1,%eax
    const { machine, vcpu } = guest;
    const poke = (value: number) => {
      machine.memory.write(offset(TEXT, 1), Uint8Array.of(value, value >> 8));
      run(guest, 30);
      expect(vcpu.get("rax")).toBe(BigInt(value));
    };
    for (let n = 0; n < 400; n++) poke(n % 2);
    const { usage } = machine;
    expect(usage).toMatchObject({ regions: 1, retiredRegions: 1 });
    for (let n = 0; n < 4000; n++) poke(n % 2);
    expect(machine.usage).toEqual(usage);
    const hot = (value: number) => {
      poke(value);
      run(guest, 300);
    };
    for (let n = 0; n < 100; n++) hot(n);
    const full = machine.usage;
    expect(full).toMatchObject({ regions: 1, retiredRegions: 64, functions: usage.forms + 65 });
    for (let n = 100; n < 500; n++) hot(n);
    expect(machine.usage).toEqual(full);
  });
});
