// A machine's state as one number.

import { describe, expect, test } from "vitest";
import { addr, offset, PAGE_SIZE } from "../../src/base/addr.ts";
import { makeGuest, RO, RW, RWX, TEXT } from "./guest.ts";
import { page } from "./snapshotGuest.ts";

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
