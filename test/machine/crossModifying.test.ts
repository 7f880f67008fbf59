// Stores to code that vCPUs may see late, one property at a time.

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { type Addr, addr, offset, PAGE_SIZE } from "../../src/base/addr.ts";
import { describeExit } from "../../src/machine/exit.ts";
import { MAX_LOG_BYTES } from "../../src/machine/fetchLog.ts";
import { Machine } from "../../src/machine/machine.ts";
import { newest, oldest } from "../../src/machine/staleCode.ts";
import type { Vcpu } from "../../src/machine/vcpu.ts";
import { FLAG } from "../../src/x86/register.ts";
import { bytes, type StaleGuest, Staleness, serialiseAll, staleGuest } from "./crossModifying.ts";
import { DATA, loopOf, makeGuest, RO, RW, RWX, RX, setRegisters, TEXT } from "./guest.ts";

/** mov $1,%eax; vmcall */
const MOVE = "b8 01 00 00 00 0f 01 c1";
const IMMEDIATE = offset(TEXT, 1);
const ALIAS = addr(0xffff_e000_0000_0000n);

const on = ({ machine }: Pick<StaleGuest, "machine">, n: number): Vcpu => machine.vcpus[n]!;

/** What eax is when vCPU `n` has run from `rip` to a vmcall. */
function run(guest: Pick<StaleGuest, "machine">, n: number, rip: Addr = TEXT, rcx = 0): bigint {
  const vcpu = on(guest, n);
  setRegisters({ machine: guest.machine, vcpu }, { rcx }, rip);
  expect(vcpu.run().kind).toBe("hypercall");
  return vcpu.get("rax");
}

function staleMove(vcpus = 2): StaleGuest {
  const guest = staleGuest(MOVE, vcpus);
  guest.code.by = oldest;
  return guest;
}

describe("a vCPU sees its own stores at once", () => {
  // mov %dl,(%rbx); mov $1,%eax; vmcall
  const WRITER = `88 13 ${MOVE}`;
  const OWN = offset(TEXT, 3);

  test("made by the guest, in text and through a view of it", () => {
    for (const view of [TEXT, ALIAS]) {
      const guest = staleGuest(WRITER);
      guest.code.by = oldest;
      guest.machine.memory.alias(ALIAS, TEXT, PAGE_SIZE, RW);
      setRegisters(guest, { rbx: OWN - TEXT + view, rdx: 7 });
      expect(guest.vcpu.run().kind).toBe("hypercall");
      expect(guest.vcpu.get("rax")).toBe(7n);
      expect(on(guest, 0).log?.isEmpty).toBe(true);
      expect(run(guest, 1, offset(TEXT, 2))).toBe(1n);
      guest.code.by = newest;
      expect(run(guest, 1, offset(TEXT, 2))).toBe(7n);
    }
  });

  test("over what others stored: that byte is its own, the ones beside are not", () => {
    const guest = staleMove();
    on(guest, 1).store(IMMEDIATE, bytes("02 02 02 02"));
    on(guest, 0).store(offset(IMMEDIATE, 1), bytes("05"));
    expect(run(guest, 0)).toBe(0x0000_0501n);
    // That is mixed: what it stored itself and what was before the other's store were never there together.
    expect(guest.code.reports).toHaveLength(1);
    expect(guest.code.reports[0]).toMatchObject({
      bytes: bytes("b8 01 05 00 00"),
      instants: [bytes("b8 02 05 02 02")],
    });
    expect(run(guest, 1)).toBe(0x0202_0202n);
  });

  test("and a later store of another's is contested again", () => {
    const guest = staleMove();
    on(guest, 1).store(IMMEDIATE, bytes("02"));
    on(guest, 0).store(IMMEDIATE, bytes("03"));
    expect(run(guest, 0)).toBe(3n);
    on(guest, 1).store(IMMEDIATE, bytes("04"));
    expect(run(guest, 0)).toBe(3n);
    on(guest, 0).store(IMMEDIATE, bytes("04"));
    expect(run(guest, 0)).toBe(4n);
    expect(on(guest, 0).log?.isEmpty).toBe(true);
  });

  test("by a push, a string instruction, a store across two pages", () => {
    const at = offset(TEXT, PAGE_SIZE - 4);
    // push %rdx, with the stack in text; rep stosb; mov %rdx,(%rdi)
    for (const store of ["52", "f3 aa", "48 89 17"]) {
      const guest = staleGuest(`${store} ff e6`); // jmp *%rsi
      guest.code.by = oldest;
      guest.machine.memory.write(at, bytes(MOVE));
      serialiseAll(guest.machine);
      const value = 0xc101_0f00_0000_09b8n;
      setRegisters(guest, { rdi: at + (store === "f3 aa" ? 1 : 0), rdx: value, rsi: at, rcx: 4, rax: 9 });
      guest.vcpu.rsp = offset(at, 8);
      expect(guest.vcpu.run().kind).toBe("hypercall");
      expect(guest.vcpu.get("rax")).toBe(store === "f3 aa" ? 0x0909_0909n : 9n);
      expect(run(guest, 1, at)).toBe(1n);
    }
  });
});

test("what a system instruction stores is the vCPU's own", () => {
  const guest = staleGuest("0f 01 03 ff e3"); // sgdt (%rbx); jmp *%rbx
  const at = offset(TEXT, 0x100);
  guest.code.by = oldest;
  on(guest, 1).store(at, new Uint8Array(10).fill(0x91));
  const { system } = guest.vcpu;
  system.setWord("gdtLimit", 0x05b0n); // mov $5,%al
  system.setWord("gdtBase", 0xffff_ffff_90c1_010fn); // vmcall
  setRegisters(guest, { rbx: at });
  expect(guest.vcpu.run().kind).toBe("hypercall");
  expect(guest.vcpu.get("rax")).toBe(5n);
});

describe("whichever way the store goes", () => {
  test("through a view that was hot before the page could be executed", () => {
    const guest = staleGuest(loopOf("88 13"), 2); // mov %dl,(%rbx)
    const { memory } = guest.machine;
    const page = offset(ALIAS, PAGE_SIZE);
    memory.map(page, PAGE_SIZE, RW);
    memory.write(page, bytes(MOVE));
    const write = (rdx: number) => {
      setRegisters(guest, { rbx: page + 1, rdx, rcx: 500 });
      expect(guest.vcpu.run().kind).toBe("hypercall");
    };
    write(1);
    memory.alias(ALIAS, page, PAGE_SIZE, RX);
    write(2);
    guest.code.by = oldest;
    expect(run(guest, 1, ALIAS)).toBe(1n);
    expect(on(guest, 0).log?.isEmpty).toBe(true);
    on(guest, 1).serialise();
    expect(run(guest, 1, ALIAS)).toBe(2n);
  });

  test("stores to pages that cannot be executed are not noted, until they can be", () => {
    const guest = staleMove();
    const { memory } = guest.machine;
    memory.map(ALIAS, PAGE_SIZE, RW);
    memory.write(ALIAS, bytes(MOVE));
    expect(guest.machine.vcpus.every(({ log }) => log?.isEmpty)).toBe(true);
    memory.protect(ALIAS, PAGE_SIZE, RX);
    expect(run(guest, 1, ALIAS)).toBe(1n);
    memory.protect(ALIAS, PAGE_SIZE, RW);
    memory.write(offset(ALIAS, 1), bytes("02"));
    memory.protect(ALIAS, PAGE_SIZE, RX);
    expect(run(guest, 1, ALIAS)).toBe(2n);
  });

  test("unless there is something to see of them: then each store counts", () => {
    const guest = staleMove();
    const { memory } = guest.machine;
    memory.write(IMMEDIATE, bytes("02"));
    memory.protect(TEXT, PAGE_SIZE, RW);
    memory.write(IMMEDIATE, bytes("03"));
    memory.protect(TEXT, PAGE_SIZE, RX);
    const seen = [0, 1, 2].map((choice) => {
      guest.code.by = ({ versions }) => {
        expect(versions).toEqual([1, 2, 3]);
        return choice;
      };
      return run(guest, 1);
    });
    expect(seen).toEqual([1n, 2n, 3n]);
  });

  test("what is known of a page is forgotten with its last mapping, and not before", () => {
    const guest = staleMove();
    const { memory } = guest.machine;
    memory.alias(ALIAS, TEXT, PAGE_SIZE, RX);
    memory.write(IMMEDIATE, bytes("02"));
    memory.unmap(TEXT, PAGE_SIZE);
    expect(run(guest, 1, ALIAS)).toBe(1n);
    memory.unmap(ALIAS, PAGE_SIZE);
    expect(on(guest, 1).log?.isEmpty).toBe(true);
    memory.map(ALIAS, PAGE_SIZE, RWX); // the same frame again
    on(guest, 1).store(ALIAS, bytes(MOVE));
    expect(run(guest, 1, ALIAS)).toBe(1n);
  });
});

describe("fetching", () => {
  test("asks only for contested bytes that are needed, in order, until there is an instruction", () => {
    const guest = staleGuest("0f 1f 44 00 00 90 0f 01 c1");
    on(guest, 0).store(TEXT, bytes("e8 05 04 03 02 cc"));
    const asked: [number, readonly number[]][] = [];
    const choices = [0, 0, 1, 0];
    guest.code.by = ({ vcpu, ip, at, versions }) => {
      expect([vcpu, ip]).toEqual([1, TEXT]);
      asked.push([at - TEXT, versions]);
      return choices[asked.length - 1]!;
    };
    guest.code.answer = "stop";
    setRegisters({ machine: guest.machine, vcpu: on(guest, 1) }, {});
    const exit = on(guest, 1).step();
    expect(asked).toEqual([
      [0, [0x0f, 0xe8]],
      [1, [0x1f, 0x05]],
      [2, [0x44, 0x04]],
      [3, [0x00, 0x03]],
    ]);
    expect(exit).toMatchObject({
      kind: "mixed",
      ip: TEXT,
      fetch: {
        vcpu: 1,
        bytes: bytes("0f 1f 04 00"),
        text: "nopl (%rax,%rax)",
        instants: [bytes("0f 1f 44 00"), bytes("e8 05 04 03")],
      },
    });
    expect(describeExit(exit!)).toMatch(/^mixed fetch on vCPU 1 at 0xffffffff81000000: nopl .*0f 1f 04 00/);
  });

  test("each byte of the longest instruction, wherever it lies", () => {
    const long = bytes("66 66 66 66 66 66 2e 0f 1f 84 00 00 00 00 00"); // a NOP
    const guest = staleGuest("90");
    const { memory } = guest.machine;
    const clean = guest.machine.snapshot();
    for (const place of [...Array(18).keys(), ...Array.from({ length: 18 }, (_, n) => PAGE_SIZE - 17 + n)]) {
      guest.machine.restore(clean);
      const at = offset(TEXT, place);
      memory.write(at, long);
      for (let n = 0; n < long.length; n++) {
        serialiseAll(guest.machine);
        for (const byte of [0x90, long[n]!]) memory.write(offset(at, n), Uint8Array.of(byte));
        const asked: number[] = [];
        guest.code.by = ({ at: where, versions }) => {
          asked.push(where - at);
          return newest({ vcpu: 1, ip: at, at: where, versions });
        };
        setRegisters({ machine: guest.machine, vcpu: on(guest, 1) }, {}, at);
        expect(on(guest, 1).step()).toBeUndefined();
        expect(on(guest, 1).rip).toBe(at + long.length);
        expect(asked).toEqual([n]);
      }
    }
  });

  test("a mixed fetch: nothing happens if it is to stop, the torn bytes if it is to be executed", () => {
    const guest = staleMove();
    on(guest, 0).store(IMMEDIATE, bytes("02 02"));
    guest.code.by = ({ at, versions }) => (at === IMMEDIATE ? 0 : versions.length - 1);
    guest.code.answer = "stop";
    const vcpu = on(guest, 1);
    setRegisters({ machine: guest.machine, vcpu }, { rax: 77 });
    const before = vcpu.instructions;
    for (let n = 0; n < 3; n++) {
      const exit = n === 1 ? vcpu.step() : vcpu.run();
      expect(exit).toMatchObject({ kind: "mixed", ip: TEXT, fetch: { text: "mov $0x201,%eax" } });
      expect([vcpu.rip, vcpu.get("rax"), vcpu.instructions]).toEqual([TEXT, 77n, before]);
    }
    expect(guest.code.reports).toHaveLength(3);
    guest.code.answer = "execute";
    expect(run(guest, 1)).toBe(0x201n);
    guest.code.by = oldest;
    expect(run(guest, 1)).toBe(1n); // not of the torn bytes: nobody keeps those
    expect(run(guest, 0)).toBe(0x202n);
  });

  test("an index that is none is refused", () => {
    const guest = staleMove();
    on(guest, 0).store(IMMEDIATE, bytes("02"));
    for (const wrong of [-1, 2, 0.5, Number.NaN]) {
      guest.code.by = () => wrong;
      expect(() => run(guest, 1)).toThrow(/of 2 versions/);
    }
    guest.code.by = oldest;
    expect(run(guest, 1)).toBe(1n);
  });

  test("code beside runs as always, and what is contested is nobody else's", () => {
    const guest = staleGuest(loopOf("b8 01 00 00 00"), 3);
    const { regions } = guest.machine;
    expect(run(guest, 0, TEXT, 500)).toBe(1n);
    expect(regions.activeCount).toBe(1);
    on(guest, 0).store(IMMEDIATE, bytes("02"));
    on(guest, 2).serialise();
    guest.code.by = oldest;
    for (let n = 0; n < 3; n++) {
      expect(run(guest, 0, TEXT, 500)).toBe(2n);
      expect(run(guest, 1, TEXT, 5)).toBe(1n);
      expect(run(guest, 2, TEXT, 500)).toBe(2n);
    }
    expect(regions.activeCount).toBe(1);
    on(guest, 1).serialise();
    expect(run(guest, 1, TEXT, 500)).toBe(2n);
  });

  test("counts, budgets and stops are those of any instruction", () => {
    const guest = staleMove();
    on(guest, 0).store(IMMEDIATE, bytes("02"));
    const vcpu = on(guest, 1);
    setRegisters({ machine: guest.machine, vcpu }, {});
    const before = vcpu.instructions;
    expect(vcpu.run({ until: offset(TEXT, 5) })).toEqual({ kind: "reached", ip: offset(TEXT, 5) });
    expect(vcpu.instructions - before).toBe(1);
    vcpu.rip = TEXT;
    expect(vcpu.run({ budget: 1 })).toEqual({ kind: "budget", ip: offset(TEXT, 5) });
    vcpu.rip = TEXT;
    expect(vcpu.run({ until: TEXT, budget: 2 }).kind).toBe("hypercall");
  });

  test("other lengths than memory's: it goes on where the chosen instruction ends", () => {
    const guest = staleGuest("b0 05 0f 01 c1 90 90 90 90 90 0f 01 c1"); // mov $5,%al; vmcall
    on(guest, 0).store(TEXT, bytes("48")); // rex.w add %eax... 48 05 imm32
    guest.code.by = oldest;
    expect(run(guest, 1)).toBe(5n);
    expect(on(guest, 1).rip).toBe(TEXT + 5);
    guest.code.by = newest;
    expect(run(guest, 1)).toBe(0xffff_ffff_90c1_010fn);
    expect(on(guest, 1).rip).toBe(TEXT + 13);
  });

  test("bytes that encode nothing, or nothing that is known here", () => {
    const guest = staleGuest("0f 0b 90");
    guest.code.by = oldest;
    on(guest, 0).store(offset(TEXT, 1), bytes("1f 00"));
    const at = (n: number) => {
      setRegisters({ machine: guest.machine, vcpu: on(guest, n) }, { rax: DATA });
      return on(guest, n).step();
    };
    expect(at(1)).toEqual({ kind: "fault", ip: TEXT, fault: { vector: "#UD" } });
    expect(at(0)).toBeUndefined();
    serialiseAll(guest.machine);
    on(guest, 0).store(TEXT, bytes("0f 58 c1")); // addps
    guest.code.by = newest;
    expect(at(1)).toMatchObject({
      kind: "unimplemented",
      bytes: bytes("0f 58 c1"),
      text: "addps %xmm1,%xmm0",
    });
    on(guest, 0).store(TEXT, bytes("90 90 90"));
    guest.code.by = ({ versions }) =>
      versions.indexOf([0x0f, 0x58, 0xc1].find((byte) => versions.includes(byte))!);
    expect(at(1)).toMatchObject({
      kind: "unimplemented",
      bytes: bytes("0f 58 c1"),
      text: "addps %xmm1,%xmm0",
    });
    serialiseAll(guest.machine);
    on(guest, 0).store(TEXT, bytes("06")); // push %es: not in 64-bit mode
    guest.code.by = newest;
    expect(at(1)).toEqual({ kind: "fault", ip: TEXT, fault: { vector: "#UD" } });
    on(guest, 0).store(TEXT, bytes("90"));
    guest.code.by = ({ versions }) => versions.indexOf(6);
    expect(at(1)).toEqual({ kind: "fault", ip: TEXT, fault: { vector: "#UD" } });
  });

  test("into a page that may not be fetched: as far as the chosen bytes need it", () => {
    const at = offset(TEXT, 4 * PAGE_SIZE - 1);
    const guest = staleGuest("90");
    const { memory } = guest.machine;
    memory.map(offset(TEXT, 4 * PAGE_SIZE), PAGE_SIZE, RO);
    memory.write(at, bytes("b8"));
    serialiseAll(guest.machine);
    on(guest, 0).store(at, bytes("90"));
    const step = () => {
      setRegisters({ machine: guest.machine, vcpu: on(guest, 1) }, {}, at);
      return on(guest, 1).step();
    };
    const fault = { vector: "#PF", errorCode: 17, address: offset(at, 1), size: 1 };
    guest.code.by = oldest;
    expect(step()).toEqual({ kind: "fault", ip: at, fault });
    guest.code.by = newest;
    expect(step()).toBeUndefined();
    on(guest, 0).store(at, bytes("b8"));
    guest.code.by = ({ versions }) => versions.indexOf(0x90);
    expect(step()).toBeUndefined();
    guest.code.by = ({ versions }) => versions.indexOf(0xb8);
    expect(step()).toEqual({ kind: "fault", ip: at, fault });
    expect(guest.code.reports).toEqual([]);
  });

  test("torn between two pages, and between a page that is stored to and one that is not", () => {
    const at = offset(TEXT, PAGE_SIZE - 2);
    const guest = staleGuest("90");
    guest.machine.memory.write(at, bytes(MOVE));
    serialiseAll(guest.machine);
    on(guest, 0).store(offset(at, 1), bytes("02 02"));
    guest.code.by = ({ at: byte, versions }) => (byte < TEXT + PAGE_SIZE ? 0 : versions.length - 1);
    expect(run(guest, 1, at)).toBe(0x201n);
    expect(guest.code.reports[0]?.instants).toEqual([bytes("b8 01 00 00 00"), bytes("b8 02 02 00 00")]);
    on(guest, 1).serialise();
    on(guest, 0).store(offset(at, 2), bytes("03"));
    guest.code.by = oldest;
    expect(run(guest, 1, at)).toBe(0x202n);
    expect(guest.code.reports).toHaveLength(1);
  });

  test("where what follows a frame has changed since the store", () => {
    const at = offset(TEXT, PAGE_SIZE - 2);
    const guest = staleGuest("90");
    const { memory } = guest.machine;
    memory.write(at, bytes("b8 01"));
    memory.write(offset(TEXT, 2 * PAGE_SIZE), bytes("07 00 00 0f 01 c1"));
    serialiseAll(guest.machine);
    on(guest, 0).store(offset(at, 1), bytes("02"));
    memory.alias(ALIAS, TEXT, PAGE_SIZE, RX);
    memory.alias(offset(ALIAS, PAGE_SIZE), offset(TEXT, 2 * PAGE_SIZE), PAGE_SIZE, RX);
    on(guest, 0).store(offset(TEXT, 2 * PAGE_SIZE), bytes("08"));
    const from = offset(ALIAS, PAGE_SIZE - 2);
    const seen = [0, 1, 2, 3].map((choice) => {
      guest.code.by = ({ at: byte }) => (byte < ALIAS + PAGE_SIZE ? choice & 1 : choice >> 1);
      return run(guest, 1, from);
    });
    expect(seen).toEqual([0x701n, 0x702n, 0x801n, 0x802n]);
    // The second was there between the two stores.
    expect(guest.code.reports.map(({ bytes: torn }) => torn)).toEqual([bytes("b8 01 08 00 00")]);
  });

  test("a repeated string instruction is fetched anew for each iteration", () => {
    const guest = staleGuest("f3 aa 0f 01 c1"); // rep stosb; vmcall
    on(guest, 0).store(offset(TEXT, 1), bytes("90")); // pause
    const vcpu = on(guest, 1);
    for (const iterations of [0, 1, 3]) {
      let fetched = 0;
      guest.code.by = () => (fetched++ < iterations ? 0 : 1);
      guest.machine.memory.write(DATA, new Uint8Array(8));
      setRegisters({ machine: guest.machine, vcpu }, { rdi: DATA, rax: 0xff, rcx: 5 });
      expect(vcpu.run().kind).toBe("hypercall");
      expect([vcpu.get("rcx"), vcpu.getNumber("rdi")]).toEqual([5n - BigInt(iterations), DATA + iterations]);
      expect(guest.machine.memory.read(DATA, 5).filter((byte) => byte === 0xff)).toHaveLength(iterations);
    }
    guest.code.by = oldest;
    setRegisters({ machine: guest.machine, vcpu }, { rdi: DATA, rax: 0xff, rcx: 5 });
    vcpu.rflags = FLAG.RF; // which is kept while it repeats, by what was executed, not by what memory has
    vcpu.step();
    expect(vcpu.rflags & FLAG.RF).toBe(FLAG.RF);
  });

  test("a system instruction that memory does not have any more", () => {
    const guest = staleGuest("0f a2 90 90 90 0f 01 c1"); // cpuid
    on(guest, 0).store(TEXT, bytes("0f 1f 44 00 00"));
    guest.code.by = oldest;
    const vcpu = on(guest, 1);
    setRegisters({ machine: guest.machine, vcpu }, {});
    expect(vcpu.step()).toBeUndefined();
    expect(vcpu.get("rax")).toBe(7n);
    expect(vcpu.rip).toBe(TEXT + 2);
    expect(vcpu.log?.isEmpty).toBe(true);
  });

  test("which segment a bad address is in goes by the chosen bytes", () => {
    const guest = staleGuest("8b 03"); // mov (%rbx),%eax
    on(guest, 0).store(offset(TEXT, 1), bytes("45 00")); // mov 0(%rbp),%eax
    const vcpu = on(guest, 1);
    const bad = { rbx: 1n << 62n, rbp: 1n << 62n };
    for (const [choose, vector] of [
      [oldest, "#GP"],
      [newest, "#SS"],
    ] as const) {
      guest.code.by = choose;
      setRegisters({ machine: guest.machine, vcpu }, bad);
      expect(vcpu.step()).toMatchObject({ kind: "fault", fault: { vector } });
    }
  });

  test("a call that memory does not have any more is recorded as made", () => {
    const code = new Staleness();
    const guest = {
      ...makeGuest("e8 03 00 00 00 0f 01 c1 0f 01 c1", { vcpus: 2, code, recordCalls: true }),
      code,
    };
    serialiseAll(guest.machine);
    on(guest, 0).store(TEXT, bytes("0f 1f 44 00 00"));
    for (const [choose, callers] of [
      [oldest, [TEXT]],
      [newest, []],
    ] as const) {
      code.by = choose;
      const vcpu = on(guest, 1);
      setRegisters({ machine: guest.machine, vcpu }, {});
      guest.machine.calls.forget(vcpu.rsp);
      expect(vcpu.run().kind).toBe("hypercall");
      expect(guest.machine.trueStack(vcpu.rsp).map((frame) => frame.kind === "call" && frame.call)).toEqual(
        callers,
      );
    }
  });

  test("an instruction breakpoint comes before the fetch", () => {
    const guest = staleMove();
    on(guest, 0).store(IMMEDIATE, bytes("02"));
    guest.code.by = () => expect.fail("asked");
    const vcpu = on(guest, 1);
    setRegisters({ machine: guest.machine, vcpu }, {});
    vcpu.system.setWord("dr", BigInt.asUintN(64, BigInt(TEXT)), 0);
    vcpu.system.setWord("dr", 0x401n, 7);
    vcpu.rflags = 2n;
    expect(vcpu.step()).toMatchObject({ kind: "fault", fault: { vector: "#DB" } });
    guest.code.by = oldest;
    vcpu.rflags = FLAG.RF;
    expect(vcpu.step()).toBeUndefined();
    expect(vcpu.get("rax")).toBe(1n);
  });
});

describe("what a vCPU may see is part of its state", () => {
  const logOf = (vcpu: Vcpu) => [...(vcpu.log?.entries() ?? [])];

  test("snapshots have it, and restores bring it back", () => {
    const guest = staleMove();
    const { machine } = guest;
    const clean = machine.snapshot();
    const hashes = [machine.hash()];
    on(guest, 0).store(IMMEDIATE, bytes("02"));
    const once = machine.snapshot();
    hashes.push(machine.hash());
    on(guest, 0).store(IMMEDIATE, bytes("03"));
    const twice = machine.snapshot();
    hashes.push(machine.hash());
    on(guest, 1).serialise();
    hashes.push(machine.hash());
    expect(new Set(hashes).size).toBe(4);
    for (const [snapshot, n, old, now] of [
      [twice, 2, 1n, 3n],
      [clean, 0, 1n, 1n],
      [once, 1, 1n, 2n],
      [twice, 2, 1n, 3n],
    ] as const) {
      machine.restore(snapshot);
      expect(machine.hash()).toBe(hashes[n]);
      expect(on(guest, 1).log?.isEmpty).toBe(n === 0);
      guest.code.by = oldest;
      expect(run(guest, 1)).toBe(old);
      guest.code.by = newest;
      expect(run(guest, 1)).toBe(now);
    }
    // Without the one between: its differences are the next one's.
    once.dispose();
    machine.restore(clean);
    machine.restore(twice);
    guest.code.by = ({ versions }) => versions.indexOf(2);
    expect(run(guest, 1)).toBe(2n);
    for (const snapshot of [twice, clean]) snapshot.dispose();
  });

  test("equal states have equal hashes, whatever led to them, and wherever the frames are", () => {
    const content = fc.uint8Array({ minLength: 6, maxLength: 6, max: 2 });
    const place = fc.constantFrom(0, 0x100, PAGE_SIZE - 3);
    fc.assert(
      fc.property(
        place,
        fc.array(content, { minLength: 1, maxLength: 12 }),
        fc.nat({ max: 2 }),
        (within, contents, by) => {
          const make = (first: Uint8Array, early: boolean) => {
            const machine = new Machine({ vcpus: 2, code: new Staleness() });
            const [low, high] = [TEXT, offset(TEXT, PAGE_SIZE)];
            for (const page of early ? [high, DATA, low] : [low, high, DATA])
              machine.memory.map(page, PAGE_SIZE, RWX);
            const at = offset(TEXT, within);
            machine.memory.write(at, first);
            serialiseAll(machine);
            return { machine, at };
          };
          const long = make(new Uint8Array(6), false);
          for (const stored of contents) {
            if (by < 2) long.machine.vcpus[by]!.store(long.at, stored);
            else long.machine.memory.write(long.at, stored);
          }
          // Each content once, by when it was there last.
          const all = [new Uint8Array(6), ...contents].map(String);
          const last = all.filter((text, n) => !all.slice(n + 1).includes(text));
          const [first, ...rest] = last.map((text) => Uint8Array.from(text.split(","), Number));
          const short = make(first!, true);
          for (const stored of rest) {
            if (by < 2) short.machine.vcpus[by]!.store(short.at, stored);
            else short.machine.memory.write(short.at, stored);
          }
          expect(short.machine.hash()).toBe(long.machine.hash());
          if (rest.length === 0) return;
          short.machine.vcpus[by === 1 ? 0 : 1]!.serialise();
          expect(short.machine.hash()).not.toBe(long.machine.hash());
        },
      ),
      { seed: 8, numRuns: 30 },
    );
  });

  test("stores far from one another may come in any order", () => {
    const stores: [Addr, string][] = [
      [TEXT, "90"],
      [offset(TEXT, 100), "91"],
      [offset(TEXT, 3 * PAGE_SIZE + 200), "92"],
    ];
    const hashes = [stores, stores.toReversed()].map((list) => {
      const guest = staleGuest(MOVE);
      for (const [at, stored] of list) guest.machine.memory.write(at, bytes(stored));
      return guest.machine.hash();
    });
    expect(hashes[1]).toBe(hashes[0]);
  });

  test("whose it is, in which order, and what was there counts", () => {
    const hashes = [
      [1, "02 03 04"],
      [2, "02 03 04"],
      [1, "03 02 04"],
      [1, "03 04"],
      [1, "02 04"],
      [1, "04"],
    ].map(([who, stored]) => {
      const guest = staleGuest(MOVE, 3);
      for (const value of bytes(String(stored))) on(guest, 0).store(IMMEDIATE, Uint8Array.of(value));
      on(guest, who === 1 ? 2 : 1).serialise();
      return guest.machine.hash();
    });
    expect(new Set(hashes).size).toBe(hashes.length);
  });

  test("a coherent machine has none, and serialising changes nothing there", () => {
    const { machine, vcpu } = makeGuest(MOVE, { vcpus: 2 });
    const hash = machine.hash();
    vcpu.store(IMMEDIATE, bytes("02"));
    vcpu.store(IMMEDIATE, bytes("01"));
    expect(machine.vcpus.map(({ log }) => log)).toEqual([undefined, undefined]);
    for (const other of machine.vcpus) other.serialise();
    expect(machine.hash()).toBe(hash);
  });

  test("poking on and off 100,000 times is no more than once", () => {
    const guest = staleGuest(MOVE, 3);
    const store = [bytes("02 02 02 02"), bytes("cc"), bytes("01 00 00 00"), bytes("05")];
    let most = 0;
    for (let n = 0; n < 100_000; n++) {
      on(guest, 0).store(IMMEDIATE, store[n % 4]!);
      most = Math.max(most, on(guest, 1).log!.bytes);
    }
    expect(most).toBeLessThan(500);
    expect(on(guest, 0).log?.isEmpty).toBe(true);
    expect(logOf(on(guest, 1)).map(([, { instants }]) => instants.length)).toEqual([4, 4]);
    expect(guest.machine.vcpus.map(({ log }) => log?.overflows)).toEqual([0, 0, 0]);
  });

  test("it is bounded: a vCPU whose log would grow beyond that is serialised, and that is counted", () => {
    for (const spread of [1, 61]) {
      const guest = staleMove();
      let most = 0;
      for (let n = 0; n < (spread === 1 ? 7_500 : 4_500); n++) {
        const place = spread === 1 ? 0 : (n * spread) % (4 * PAGE_SIZE - 8);
        guest.machine.memory.write(offset(TEXT, place), Uint8Array.of(n, n >> 8, n >> 16));
        for (const { log } of guest.machine.vcpus) most = Math.max(most, log!.bytes);
      }
      expect(most).toBeLessThanOrEqual(MAX_LOG_BYTES);
      expect(most).toBeGreaterThan(MAX_LOG_BYTES / 2);
      for (const { log } of guest.machine.vcpus) {
        expect(log!.overflows).toBeGreaterThan(0);
        expect(log!.overflows).toBeLessThan(20);
        log!.clear();
        expect(log!.bytes).toBe(0);
      }
    }
  });
});
