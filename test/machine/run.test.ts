// Stepping and running: the same states, the same counts; budgets and `until` stop exactly where they say,
// whether the code was met for the first time or is compiled.

import { describe, expect, test } from "vitest";
import { type Addr, offset } from "../../src/base/addr.ts";
import {
  counted,
  DATA,
  type Guest,
  makeGuest,
  type Registers,
  restart,
  type State,
  setRegisters,
  stateOf,
  TEXT,
  trace,
} from "./guest.ts";

interface Program {
  readonly name: string;
  readonly code: string;
  readonly registers: Registers;
}

const PROGRAMS: readonly Program[] = [
  {
    name: "a loop that calls",
    // 0: add %rcx,%rax; push %rax; call 15; pop %rdx; xor %rdx,(%rbx); dec %rcx; jne 0; vmcall
    // 15: mov %rax,(%rdi); pushfq; popfq; ret
    code: "48 01 c8 50 e8 0c 00 00 00 5a 48 31 13 48 ff c9 75 ee 0f 01 c1 48 89 07 9c 9d c3",
    registers: { rbx: DATA, rdi: DATA + 64, rcx: 3 },
  },
  {
    name: "a repeated string instruction in a loop",
    // 0: push %rcx; mov $5,%ecx; mov %rbx,%rsi; lea 0x40(%rbx),%rdi; rep movsb; pop %rcx; dec %rcx; jne 0; vmcall
    code: "51 b9 05 00 00 00 48 89 de 48 8d 7b 40 f3 a4 59 48 ff c9 75 eb 0f 01 c1",
    registers: { rbx: DATA, rcx: 3 },
  },
  {
    name: "two ways through a loop",
    // 0: test $1,%cl; je 8; inc %rax; 8: jmp *%rdx (to a); a: dec %rcx; jne 0; vmcall
    code: "f6 c1 01 74 03 48 ff c0 ff e2 48 ff c9 75 f1 0f 01 c1",
    registers: { rdx: TEXT + 10, rcx: 5 },
  },
];

const LONG = 3000;

function cold({ code, registers }: Program): Guest {
  const guest = makeGuest(code);
  restart(guest, registers);
  return guest;
}

/** A guest that ran the program often enough for all of it to be compiled. */
function hot(program: Program): Guest {
  const guest = makeGuest(program.code);
  restart(guest, { ...program.registers, rcx: LONG });
  expect(guest.vcpu.run().kind).toBe("hypercall");
  expect(guest.machine.regions.activeCount).toBeGreaterThan(0);
  restart(guest, program.registers);
  return guest;
}

describe.each(PROGRAMS)("$name", (program) => {
  const { states, exit } = trace(cold(program));
  const total = states.length - 1;

  test.each([
    ["cold", cold],
    ["hot", hot],
  ] as const)("run %s ends as stepping does", (_, make) => {
    const guest = make(program);
    const { result, instructions } = counted(guest, () => guest.vcpu.run());
    expect(result).toEqual(exit);
    expect(instructions).toBe(total);
    expect(stateOf(guest)).toEqual(states.at(-1));
  });

  test("many iterations: run ends as stepping does", () => {
    const many = { ...program, registers: { ...program.registers, rcx: 1000 } };
    const [stepped, ran] = [cold(many), cold(many)];
    const steps = trace(stepped).states.length - 1;
    expect(counted(ran, () => ran.vcpu.run()).instructions).toBe(steps);
    expect(stateOf(ran)).toEqual(stateOf(stepped));
    expect(ran.machine.memory.read(DATA, 256)).toEqual(stepped.machine.memory.read(DATA, 256));
  });

  test.each([
    ["cold", cold],
    ["hot", hot],
  ] as const)("a budget of n stops %s after n", (_, make) => {
    let guest = make(program);
    for (let n = 0; n <= total; n++) {
      if (make === cold && n % 8 === 7) guest = cold(program); // fresh now and then: machines are not small
      restart(guest, program.registers);
      const { result, instructions } = counted(guest, () => guest.vcpu.run({ budget: n }));
      expect(instructions).toBe(n);
      expect(stateOf(guest)).toEqual(states[n]);
      expect(result).toEqual(n === total ? exit : { kind: "budget", ip: states[n]!.rip });
    }
  });

  test("budgets in a row add up", () => {
    const guest = hot(program);
    let done = 0;
    for (let n = 1; done < total; done += n, n = (n * 3) % 7 || 7) {
      const { result, instructions } = counted(guest, () => guest.vcpu.run({ budget: n }));
      if (done + n >= total) expect(result).toEqual(exit);
      else expect([instructions, stateOf(guest)]).toEqual([n, states[done + n]]);
    }
  });

  const addresses = [...new Set(states.slice(0, -1).map(({ rip }) => rip))];
  /** Arrivals at `at` after the start, as numbers of instructions. */
  const arrivals = (at: Addr) =>
    states.flatMap(({ rip }: State, n) => (n > 0 && n < total && rip === at ? [n] : []));

  test.each([
    ["cold", cold],
    ["hot", hot],
  ] as const)("until stops %s at every arrival", (_, make) => {
    const guest = make(program);
    for (const until of addresses) {
      restart(guest, program.registers);
      const start = guest.vcpu.instructions;
      for (const n of arrivals(until)) {
        expect(guest.vcpu.run({ until })).toEqual({ kind: "reached", ip: until });
        expect(guest.vcpu.instructions - start).toBe(n);
        expect(stateOf(guest)).toEqual(states[n]);
      }
      expect(guest.vcpu.run({ until })).toEqual(exit);
      expect(guest.vcpu.instructions - start).toBe(total);
    }
  });

  test("until is forgotten when the run has ended, and code is compiled again", () => {
    const guest = hot(program);
    for (const until of addresses) guest.vcpu.run({ until, budget: 1 });
    restart(guest, { ...program.registers, rcx: LONG });
    expect(guest.vcpu.run()).toEqual(exit);
    expect(guest.machine.regions.activeCount).toBeGreaterThan(0);
  });

  test("a budget that ends where until is, says that it is reached, hot or cold", () => {
    for (const make of [cold, hot])
      for (const until of addresses) {
        const [n] = arrivals(until);
        if (n === undefined) continue;
        const guest = make(program);
        expect(guest.vcpu.run({ until, budget: n }), `${make.name}, at ${until - TEXT}`).toEqual({
          kind: "reached",
          ip: until,
        });
        expect(stateOf(guest)).toEqual(states[n]);
      }
  });
});

test("a budget longer than a slice is exact", () => {
  const guest = makeGuest("48 ff c0 eb fb"); // inc %rax; jmp back
  const { result, instructions } = counted(guest, () => guest.vcpu.run({ budget: 1_234_567 }));
  expect(result).toEqual({ kind: "budget", ip: offset(TEXT, 3) });
  expect(instructions).toBe(1_234_567);
  expect(guest.vcpu.get("rax")).toBe(617_284n);
});

test("code entered in the middle of a compiled block, as slices leave it, is compiled to the end of that block", () => {
  // 0: inc %eax, four times; jmp 0a; 0a: dec %rcx; jne 0; vmcall
  const guest = makeGuest("ff c0 ff c0 ff c0 ff c0 eb 00 48 ff c9 75 f1 0f 01 c1");
  const { regions } = guest.machine;
  setRegisters(guest, { rcx: 1000 });
  guest.vcpu.run();
  const blocksAt = (at: number) => regions.find(offset(TEXT, at))?.region.blocks.length;
  expect(blocksAt(0)).toBeGreaterThan(1);
  for (const at of [2, 4, 6, 0xd]) {
    for (let n = 0; n < 300; n++) {
      setRegisters(guest, { rcx: 1 }, offset(TEXT, at));
      expect(guest.vcpu.run().kind).toBe("hypercall");
    }
    expect(blocksAt(at)).toBe(1);
  }
});

test("a jump to itself comes back to until once an instruction", () => {
  const guest = makeGuest("eb fe");
  for (let n = 0; n < 500; n++) {
    expect(counted(guest, () => guest.vcpu.run({ until: TEXT }))).toEqual({
      result: { kind: "reached", ip: TEXT },
      instructions: 1,
    });
  }
});

test("registers keep 64 bits, and addresses go through numbers", () => {
  const { vcpu } = makeGuest("90");
  vcpu.set("r15", -1n);
  expect(vcpu.get("r15")).toBe(2n ** 64n - 1n);
  vcpu.setNumber("rbp", DATA);
  expect([vcpu.get("rbp"), vcpu.getNumber("rbp")]).toEqual([0xffff_8880_0000_0000n, DATA]);
  for (const value of [0, 1, -1, 2 ** 31, 2 ** 32, -(2 ** 32), 2 ** 53 - 1, -(2 ** 47)]) {
    vcpu.setNumber("rax", value);
    expect(vcpu.getNumber("rax")).toBe(value);
    expect(vcpu.get("rax")).toBe(BigInt.asUintN(64, BigInt(value)));
  }
});

test("every combination of status flags is kept, and read back by pushfq and popfq", () => {
  const guest = makeGuest("9c 9d 9c 58"); // pushfq; popfq; pushfq; pop %rax
  const bits = [0, 2, 4, 6, 7, 11].map((n) => 1n << BigInt(n));
  for (let n = 0; n < 64; n++) {
    const flags = bits.reduce((sum, bit, k) => sum | ((n >> k) & 1 ? bit : 0n), 2n);
    restart(guest, {});
    guest.vcpu.rflags = flags;
    expect(guest.vcpu.rflags).toBe(flags);
    guest.vcpu.run({ budget: 4 });
    expect([guest.vcpu.get("rax"), guest.vcpu.rflags]).toEqual([flags, flags]);
  }
});
