// Writes to code are seen by the next fetch, whoever wrote: the guest itself, another vCPU, the laboratory,
// through whichever mapping; and by code that was compiled long ago.

import { describe, expect, test } from "vitest";
import { type Addr, addr, offset, PAGE_SIZE } from "../../src/base/addr.ts";
import { parseHexBytes } from "../../src/base/bytes.ts";
import {
  DATA,
  type Guest,
  loopOf,
  makeGuest,
  RO,
  RW,
  RWX,
  RX,
  setRegisters,
  stateOf,
  TEXT,
  trace,
} from "./guest.ts";

const NOP = "0f 1f 44 00 00";

function run(guest: Guest, rcx: number, rip: Addr = TEXT): bigint {
  setRegisters(guest, { rcx }, rip);
  expect(guest.vcpu.run().kind).toBe("hypercall");
  return guest.vcpu.get("rax");
}

describe("the laboratory writes", () => {
  // 0: a site of 5 bytes; dec %rcx; jne 0; vmcall; 0d: mov $1,%edx; add %rdx,%rax; ret
  const site = (bytes: string) => `${bytes} 48 ff c9 75 f6 0f 01 c1 ba 01 00 00 00 48 01 d0 c3`;
  const CALL = "e8 08 00 00 00";

  test("a site poked to and fro 1,000 times, each effect seen, with no more code kept than needed", () => {
    const guest = makeGuest(site(NOP));
    const { memory, regions } = guest.machine;
    expect(run(guest, 1000)).toBe(0n);
    for (let n = 0; n < 1000; n++) {
      const traced = n % 2 === 0;
      memory.write(TEXT, parseHexBytes(traced ? CALL : NOP));
      expect(run(guest, 300)).toBe(traced ? 300n : 0n);
    }
    expect(regions.activeCount + regions.keptCount).toBeLessThan(10);
  });

  test("by int3, the tail, the head, as a kernel pokes", () => {
    const guest = makeGuest(site(NOP));
    const { memory } = guest.machine;
    const call = parseHexBytes(CALL);
    run(guest, 1000);
    for (let n = 0; n < 20; n++) {
      memory.write(TEXT, Uint8Array.of(0xcc));
      setRegisters(guest, { rcx: 5 });
      expect(guest.vcpu.run()).toEqual({ kind: "fault", ip: TEXT, fault: { vector: "#BP" } });
      memory.write(offset(TEXT, 1), call.subarray(1));
      expect(guest.vcpu.run({ budget: 0 }).kind).toBe("budget");
      memory.write(TEXT, call.subarray(0, 1));
      expect(run(guest, 500)).toBe(500n);
      memory.write(TEXT, parseHexBytes(NOP));
      expect(run(guest, 500)).toBe(0n);
    }
  });

  test("in the middle of a run, between two budgets", () => {
    const guest = makeGuest(site(NOP));
    setRegisters(guest, { rcx: 3000 });
    guest.vcpu.run({ budget: 3 * 1000 });
    guest.machine.memory.write(TEXT, parseHexBytes(CALL));
    expect(guest.vcpu.run().kind).toBe("hypercall");
    expect(guest.vcpu.get("rax")).toBe(2000n);
  });

  test("a change to any byte of an immediate, at each of its bytes", () => {
    const guest = makeGuest(loopOf("48 b8 01 02 03 04 05 06 07 08"));
    for (let n = 0; n < 8; n++) {
      run(guest, 500);
      guest.machine.memory.write(offset(TEXT, 2 + n), Uint8Array.of(0xf0 + n));
      const bytes = guest.machine.memory.readWord(offset(TEXT, 2));
      expect(run(guest, 1)).toBe(bytes);
    }
  });

  test("bytes that were no instruction become one, by any of them", () => {
    for (const [wrong, at, right] of [
      ["0f 04 c0", 1, 0x28],
      ["0f 04 c0", 1, 0x1f],
      ["66 f0 90", 1, 0x66],
    ] as const) {
      const guest = makeGuest(`${wrong} 0f 01 c1`);
      for (let n = 0; n < 3; n++) expect(guest.vcpu.run()).toMatchObject({ fault: { vector: "#UD" } });
      guest.machine.memory.write(offset(TEXT, at), Uint8Array.of(right));
      expect(guest.vcpu.run().kind, wrong).toBe(right === 0x28 ? "unimplemented" : "hypercall");
    }
  });
});

describe("the guest writes", () => {
  test("the instruction after the one that writes it, stepped, cold and hot", () => {
    // 0: mov %dl,9(%rip) (to f, the immediate); nops; e: mov $imm8,%al; add %al,... dec; jne
    // 0: mov %dl,3(%rip) -> 88 15 01 00 00 00; 6: mov $0,%al (b0 00); 8: add %rax,%rbx; b: inc %dl; loop
    const code = loopOf("88 15 01 00 00 00 b0 00 48 01 c3 fe c2");
    const [stepped, ran] = [makeGuest(code), makeGuest(code)];
    for (const guest of [stepped, ran]) setRegisters(guest, { rcx: 300, rdx: 1 });
    trace(stepped);
    expect(ran.vcpu.run().kind).toBe("hypercall");
    expect(stateOf(ran)).toEqual(stateOf(stepped));
    let sum = 0n;
    for (let n = 0; n < 300; n++) sum += BigInt((n + 1) & 0xff);
    expect(ran.vcpu.get("rbx")).toBe(sum);
    expect(ran.vcpu.instructions).toBe(stepped.vcpu.instructions);
  });

  test("a whole function, by rep movsb, over one that was hot", () => {
    const guest = makeGuest(loopOf("ff d3")); // call *%rbx
    const { memory } = guest.machine;
    const [f, copier] = [offset(TEXT, 0x100), offset(TEXT, 0x200)];
    memory.write(f, parseHexBytes("48 ff c0 c3")); // inc %rax; ret
    memory.write(copier, parseHexBytes("f3 a4 0f 01 c1")); // rep movsb; vmcall
    const call = () => {
      setRegisters(guest, { rcx: 700, rbx: f });
      expect(guest.vcpu.run().kind).toBe("hypercall");
      return guest.vcpu.get("rax");
    };
    expect(call()).toBe(700n);
    memory.write(DATA, parseHexBytes("48 83 c0 05 c3")); // add $5,%rax; ret
    setRegisters(guest, { rsi: DATA, rdi: f, rcx: 5 }, copier);
    expect(guest.vcpu.run().kind).toBe("hypercall");
    expect(call()).toBe(3500n);
  });

  test("through a writable alias of text that is not writable itself", () => {
    const alias = addr(0xffff_8890_0000_0000n);
    const guest = makeGuest(loopOf("b8 01 00 00 00")); // mov $1,%eax
    const { memory } = guest.machine;
    memory.protect(TEXT, PAGE_SIZE, RX);
    memory.alias(alias, TEXT, PAGE_SIZE, RW);
    const writer = offset(TEXT, PAGE_SIZE);
    memory.write(writer, parseHexBytes("88 13 0f 01 c1")); // mov %dl,(%rbx); vmcall
    for (let n = 1; n < 50; n++) {
      setRegisters(guest, { rbx: alias + 1, rdx: n }, writer);
      expect(guest.vcpu.run().kind).toBe("hypercall");
      expect(run(guest, 250)).toBe(BigInt(n));
    }
    setRegisters(guest, { rbx: TEXT + 1 }, writer);
    expect(guest.vcpu.run()).toMatchObject({ kind: "fault", fault: { vector: "#PF", errorCode: 3 } });
  });

  test("data on a page that holds code too, which stays as it is", () => {
    const code = loopOf("48 89 0d f0 07 00 00 48 03 05 e9 07 00 00"); // mov %rcx,0x7f0(%rip); add 0x7e9(%rip),%rax
    const [stepped, ran] = [makeGuest(code), makeGuest(code)];
    for (const guest of [stepped, ran]) setRegisters(guest, { rcx: 1000 });
    trace(stepped);
    ran.vcpu.run();
    expect(stateOf(ran)).toEqual(stateOf(stepped));
    expect(ran.vcpu.get("rax")).toBe(500_500n);
  });
});

describe("code across two pages", () => {
  // mov $imm32,%eax, with its immediate on the second page, in a loop that is hot
  const at = offset(TEXT, PAGE_SIZE - 1);
  const second = offset(TEXT, PAGE_SIZE);

  function hot(): Guest {
    const guest = makeGuest("90");
    guest.machine.memory.write(at, parseHexBytes(loopOf("b8 11 00 00 00")));
    expect(run(guest, 1000, at)).toBe(0x11n);
    expect(guest.machine.regions.activeCount).toBeGreaterThan(0);
    return guest;
  }

  test("sees the second changed", () => {
    const guest = hot();
    for (let n = 0; n < 50; n++) {
      guest.machine.memory.write(second, Uint8Array.of(n));
      expect(run(guest, 250, at)).toBe(BigInt(n));
    }
  });

  test("faults when the second is unmapped or not executable, and runs what is mapped there then", () => {
    const guest = hot();
    const { memory } = guest.machine;
    const fetchFault = (errorCode: number) => {
      setRegisters(guest, { rcx: 5 }, at);
      expect(guest.vcpu.run()).toEqual({
        kind: "fault",
        ip: at,
        fault: { vector: "#PF", errorCode, address: second, size: 1 },
      });
    };
    const rest = memory.read(second, PAGE_SIZE);
    memory.protect(second, PAGE_SIZE, RO);
    fetchFault(17);
    memory.protect(second, PAGE_SIZE, RX);
    expect(run(guest, 500, at)).toBe(0x11n);
    memory.unmap(second, PAGE_SIZE);
    fetchFault(16);
    memory.map(second, PAGE_SIZE, RWX);
    memory.write(second, rest);
    memory.write(second, Uint8Array.of(0x22));
    expect(run(guest, 500, at)).toBe(0x22n);
    memory.write(second, Uint8Array.of(0x11)); // what was compiled first fits again
    expect(run(guest, 500, at)).toBe(0x11n);
    memory.write(second, Uint8Array.of(0x33));
    expect(run(guest, 500, at)).toBe(0x33n);
  });
});

describe("several vCPUs", () => {
  test("run the same code, and see what another of them poked", () => {
    const guest = makeGuest(loopOf("b8 01 00 00 00"), { vcpus: 4 });
    const { memory, vcpus } = guest.machine;
    const writer = offset(TEXT, 0x800);
    memory.write(writer, parseHexBytes("88 13 0f 01 c1")); // mov %dl,(%rbx); vmcall
    const at = (n: number): Guest => ({ machine: guest.machine, vcpu: vcpus[n % 4]! });
    for (let n = 1; n < 60; n++) {
      setRegisters(at(n), { rbx: TEXT + 1, rdx: n }, writer);
      expect(at(n).vcpu.run().kind).toBe("hypercall");
      for (const k of [1, 2, 3, 4]) expect(run(at(n + k), 120)).toBe(BigInt(n));
    }
  });

  test("share memory, and have registers, flags and counts of their own", () => {
    const guest = makeGuest(loopOf("48 01 03 f9"), { vcpus: 3 }); // add %rax,(%rbx); stc
    const { memory, vcpus } = guest.machine;
    memory.writeWord(DATA, 0n);
    vcpus.forEach((vcpu, n) => {
      setRegisters({ machine: guest.machine, vcpu }, { rbx: DATA, rax: n + 1, rcx: 400 });
    });
    for (let done = 0; done < 3; ) {
      done = 0;
      vcpus.forEach((vcpu, n) => {
        if (vcpu.get("rcx") === 0n) done++;
        else vcpu.run({ budget: 7 + n });
      });
    }
    expect(memory.readWord(DATA)).toBe(400n * 6n);
    expect(vcpus.map((vcpu) => vcpu.get("rax"))).toEqual([1n, 2n, 3n]);
    expect(guest.machine.instructions).toBe(vcpus.reduce((sum, vcpu) => sum + vcpu.instructions, 0));
    expect(vcpus.every((vcpu) => vcpu.instructions >= 1600)).toBe(true);
  });
});
