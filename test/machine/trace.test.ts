// Traces of random programs against what stepping shows: which instructions, which bytes they read and wrote, where they
// went. And that tracing changes nothing but what is told.

import { beforeAll, describe, expect, test, vi } from "vitest";
import { type Addr, offset, PAGE_SIZE, toWord } from "../../src/base/addr.ts";
import { link } from "../../src/image/link.ts";
import type { Machine } from "../../src/machine/machine.ts";
import { type TraceEvent, type TraceKinds, TraceRecord } from "../../src/machine/trace.ts";
import { assemble } from "../../src/x86/assemble.ts";
import { Random } from "../fuzz/random.ts";
import {
  DATA,
  DATA_PAGES,
  type Guest,
  loopOf,
  makeGuest,
  restart,
  STACK,
  STACK_TOP,
  stateOf,
  TEXT,
} from "./guest.ts";
import { byInstruction, replay, stepExpecting, tracedBytes } from "./traceModel.ts";

const ALL: TraceKinds = { instructions: true, accesses: true, branches: true, calls: true, exceptions: true };
/** Data operands lie around a page boundary, and are aligned for those that must be. */
const POINTER = offset(DATA, PAGE_SIZE - 64);

const REGISTERS = { 8: ["rax", "rdx", "r8", "r9", "r10", "r13"], 4: ["eax", "edx", "r8d", "r13d"] } as const;

/** Statements: M is a memory operand, A an aligned one, R a 64-bit register, E a 32-bit one. */
const STATEMENTS = [
  ..."mov R, M|mov M, R|movl M, E|movzbl M, E|movsbq M, R|add R, M|add M, R|sbb E, M|incq M|negl M|notb M|shlq $3, M".split(
    "|",
  ),
  ..."rolw $1, M|xchg R, M|xadd R, M|lock cmpxchg R, M|cmpxchg8b M|cmpxchg16b A|imul M, R|mulq M|test R, M|cmpl $5, M".split(
    "|",
  ),
  ..."btsq $5, M|btl $3, M|movbe R, M|movnti R, M|cmovz M, R|setc M|lea M, R|movq $7, M|bsf M, R|popcnt M, R".split(
    "|",
  ),
  ..."push R; pop R|pushq M; popq M|pushfq; popfq|pushw $3; popw M|push R; lea 8(%rsp), %rsp|xlat".split("|"),
  ..."lea 16(%rbx), %rsi; lea 100(%rbx), %rdi; cmpsb|lea M, %rdi; stosw|lea M, %rsi; lodsq|lea M, %rdi; scasb".split(
    "|",
  ),
  ..."lea 16(%rbx), %rsi; lea 60(%rbx), %rdi; mov $3, %ecx; rep movsb|lea (%rbx), %rdi; mov $4, %ecx; rep stosq".split(
    "|",
  ),
  ..."lea (%rbx), %rsi; lea 8(%rbx), %rdi; mov $9, %ecx; repe cmpsb|lea M, %rdi; mov $20, %ecx; repne scasb".split(
    "|",
  ),
  ..."xor %ecx, %ecx; rep movsb|call f|call g|push R; call h|call *%gs:8|jz 1f; inc R; 1: nop|jmp 1f; 1: nop".split(
    "|",
  ),
  ..."lea 1f(%rip), %rax; jmp *%rax; 1: nop|mov $3, %ecx; 1: dec R; loop 1b|xor %ecx, %ecx; jrcxz 1f; nop; 1: nop".split(
    "|",
  ),
  ..."enter $32, $0; mov R, -8(%rbp); leave|lea 64(%rbx), %rax; movdir64b 128(%rbx), %rax|mov %gs:16, R|mov R, %gs:24".split(
    "|",
  ),
  ..."sgdt M|sidt M|push %fs; pop %fs|str M|jnc 1f; call f; 1: nop|add $0, R; jb 1f; 1: nop|rdgsbase R".split(
    "|",
  ),
];

function statement(random: Random): string {
  const operand = (step: number) =>
    `${step * random.below(120 / step)}(%rbx${random.chance(30) ? ",%r14,8" : ""})`;
  return random
    .pick(STATEMENTS)
    .replace(/\b[MARE]\b/g, (what) =>
      what === "M"
        ? operand(1)
        : what === "A"
          ? `${16 * random.below(8)}(%rbx)`
          : `%${random.pick(REGISTERS[what === "R" ? 8 : 4])}`,
    );
}

const FUNCTIONS = `f: push %rbp; mov %rsp, %rbp; mov %rax, -8(%rsp); pop %rbp; ret
  g: call f; xchg %rax, (%rbx); ret
  h: mov 8(%rsp), %rdx; ret $8`;

/** Random statements, in a loop that r15 counts. */
async function program(random: Random, statements: number): Promise<Uint8Array> {
  const body = Array.from({ length: statements }, () => statement(random)).join("\n");
  const source = `${body}\n dec %r15; jnz start\n vmcall\n${FUNCTIONS}`;
  const image = link([await assemble("random.S", `start: ${source}`)], { text: TEXT });
  return image.segments[0]!.bytes;
}

function begin(guest: Guest, code: Uint8Array, seed: number, iterations: number): void {
  const random = new Random().restart(seed, 1);
  const word = () => (BigInt(random.word() >>> 0) << 32n) | BigInt(random.word() >>> 0);
  const { memory } = guest.machine;
  memory.write(TEXT, code);
  const names = ["rax", "rdx", "rbp", "r8", "r9", "r10", "r13"] as const;
  const registers = Object.fromEntries(names.map((name) => [name, word()]));
  restart(guest, {
    ...registers,
    rbx: toWord(POINTER),
    r14: random.below(8),
    r15: iterations,
    rsp: toWord(STACK_TOP) - 64n,
  });
  guest.vcpu.gsBase = toWord(DATA);
  memory.write(offset(TEXT, 0x3000), Uint8Array.of(0xc3)); // for a call through memory
  memory.writeWord(offset(DATA, 8), toWord(offset(TEXT, 0x3000)));
}

const programs: Uint8Array[] = [];
beforeAll(async () => {
  for (let seed = 1; seed <= 12; seed++) programs.push(await program(new Random().restart(seed, 0), 40));
});

/** Data and stack; as text, which is compared at once. */
const whole = ({ machine: { memory } }: Guest): string =>
  [memory.read(DATA, DATA_PAGES * PAGE_SIZE), memory.read(STACK, 16384)]
    .map((bytes) => Buffer.from(bytes).toString("latin1"))
    .join();

test("says of every instruction what it was, read, wrote, and where it went", () => {
  const met = { branch: 0, call: 0, return: 0, read: 0, write: 0 };
  for (const [seed, code] of programs.entries()) {
    const [traced, stepped] = [makeGuest("90"), makeGuest("90")];
    for (const guest of [traced, stepped]) begin(guest, code, seed, 6);
    const record = new TraceRecord();
    traced.machine.trace(ALL, record);
    const { instructions } = traced.vcpu;
    expect(traced.vcpu.run({ budget: 5000 }).kind).toBe("hypercall");
    const groups = byInstruction(record);
    expect(groups.length).toBe(traced.vcpu.instructions - instructions);
    for (const [n, [first, ...rest]] of groups.entries()) {
      const expected = stepExpecting(stepped.machine, stepped.vcpu)!;
      const { ip, length, flow, to } = expected;
      const where = `program ${seed}, instruction ${n} at ${ip - TEXT}`;
      expect(first, where).toEqual({ kind: "instruction", vcpu: 0, ip, length });
      expect(tracedBytes(rest, "read"), where).toEqual(expected.reads);
      expect(tracedBytes(rest, "write"), where).toEqual(expected.writes);
      let accessed = 0;
      for (const event of rest) {
        expect([event.ip, event.vcpu], where).toEqual([ip, 0]);
        if (event.kind !== "read" && event.kind !== "write") continue;
        accessed += event.size;
        met[event.kind]++;
      }
      expect(accessed, where).toBe(expected.accessed);
      const flows = rest.filter(({ kind }) => kind !== "read" && kind !== "write");
      if (flow === "none") expect(flows, where).toEqual([]);
      else if (flow === "branch") {
        expect(flows, where).toMatchObject([{ kind: "branch", to }]);
        if (expected.taken !== undefined) expect(flows, where).toMatchObject([{ taken: expected.taken }]);
      } else {
        const slot = flow === "call" ? expected.after : expected.before;
        expect(flows, where).toEqual([{ kind: flow, vcpu: 0, ip, to, slot }]);
      }
      if (flow !== "none") met[flow]++;
    }
  }
  for (const count of Object.values(met)) expect(count).toBeGreaterThan(100);
});

test("its writes make of memory as it was memory as it is", () => {
  for (const [seed, code] of programs.entries()) {
    const [traced, copy] = [makeGuest("90"), makeGuest("90")];
    for (const guest of [traced, copy]) begin(guest, code, seed, 20);
    const record = new TraceRecord();
    traced.machine.trace({ accesses: true }, record);
    traced.vcpu.run({ budget: 20_000 });
    expect(whole(copy)).not.toEqual(whole(traced));
    replay(copy.machine, record);
    expect(whole(copy)).toEqual(whole(traced));
  }
});

test("kinds are told apart: each alone is what it is among all", () => {
  const names: Record<keyof TraceKinds, TraceEvent["kind"][]> = {
    instructions: ["instruction"],
    accesses: ["read", "write"],
    branches: ["branch"],
    calls: ["call", "return"],
    exceptions: ["delivery"],
  };
  const tracesOf = (kinds: TraceKinds): TraceEvent[] => {
    const guest = makeGuest("90");
    begin(guest, programs[0]!, 0, 30);
    const events: TraceEvent[] = [];
    guest.machine.trace(kinds, (event) => events.push(event));
    guest.vcpu.run({ budget: 20_000 });
    return events;
  };
  const all = tracesOf(ALL);
  expect(all.length).toBeGreaterThan(4096); // more than the buffer holds
  for (const [name, kinds] of Object.entries(names))
    expect(tracesOf({ [name]: true })).toEqual(all.filter(({ kind }) => kinds.includes(kind)));
  expect(tracesOf({})).toEqual([]);
});

describe("changes nothing", () => {
  /** The state, with all memory and the count of instructions. */
  const copyOf = (guest: Guest) => [
    stateOf(guest),
    whole(guest),
    guest.vcpu.instructions,
    guest.machine.hash(),
  ];

  test.each([{ recordCalls: false }, { recordCalls: true }])(
    "switched on and off between runs, $recordCalls",
    (options) => {
      let regions = 0;
      for (const [seed, code] of programs.slice(0, 6).entries()) {
        const [traced, plain] = [makeGuest("90", options), makeGuest("90", options)];
        for (const guest of [traced, plain]) begin(guest, code, seed, 400);
        const random = new Random().restart(seed, 2);
        for (let n = 0; n < 8; n++) {
          const tracing = n % 4 === 2;
          const budget = 1 + random.below(tracing ? 500 : 8000);
          const before = traced.vcpu.instructions;
          let told = 0;
          const count = ({ kind }: TraceEvent) => {
            if (kind === "instruction") told++;
          };
          const trace = tracing ? traced.machine.trace(ALL, count) : undefined;
          const exits = [traced, plain].map(({ vcpu }) => vcpu.run({ budget }));
          expect(exits[0]).toEqual(exits[1]);
          expect(copyOf(traced)).toEqual(copyOf(plain));
          expect(traced.machine.trueStack(offset(STACK, 8))).toEqual(
            plain.machine.trueStack(offset(STACK, 8)),
          );
          trace?.stop();
          expect(told).toBe(tracing ? traced.vcpu.instructions - before : 0);
        }
        regions += traced.machine.regions.activeCount;
      }
      expect(regions).toBeGreaterThan(10);
    },
  );

  test("nor is a block left out that was compiled and never executed", () => {
    const guest = makeGuest(loopOf("48 85 db 74 02 90 90")); // test %rbx,%rbx; je over two nops
    restart(guest, { rcx: 10_000 });
    guest.vcpu.run({ budget: 10_000 });
    expect(guest.machine.regions.find(offset(TEXT, 5))).toBeDefined();
    const record = new TraceRecord();
    guest.machine.trace({ instructions: true }, record);
    guest.vcpu.set("rbx", 1n);
    guest.vcpu.run({ budget: 600 });
    expect(record.length).toBe(600);
  });

  test("snapshots that are taken and restored meanwhile", () => {
    const [traced, plain] = [makeGuest("90"), makeGuest("90")];
    for (const guest of [traced, plain]) begin(guest, programs[1]!, 1, 50);
    const events: TraceEvent[] = [];
    traced.machine.trace({ instructions: true }, (event) => events.push(event));
    const results = [traced, plain].map((guest) => {
      const { machine, vcpu } = guest;
      vcpu.run({ budget: 700 });
      const snapshot = machine.snapshot();
      vcpu.run({ budget: 500 });
      const then = copyOf(guest);
      machine.restore(snapshot);
      vcpu.run({ budget: 500 });
      expect(copyOf(guest)).toEqual(then);
      return then;
    });
    expect(results[0]).toEqual(results[1]);
    expect(events.length).toBe(1700);
    expect(events.slice(700, 1200)).toEqual(events.slice(1200));
  });

  test("of the code that is made while nothing is traced", () => {
    const made = (trace: boolean): Uint8Array[] => {
      const modules: Uint8Array[] = [];
      const { Module } = WebAssembly;
      vi.stubGlobal("WebAssembly", {
        ...Object.fromEntries(
          Object.getOwnPropertyNames(WebAssembly).map((name) => [name, Reflect.get(WebAssembly, name)]),
        ),
        Module: class {
          constructor(bytes: Uint8Array<ArrayBuffer>) {
            modules.push(bytes.slice());
            // biome-ignore lint/correctness/noConstructorReturn: it stands in for the real one
            return new Module(bytes);
          }
        },
      });
      try {
        const guest = makeGuest("90");
        begin(guest, programs[2]!, 2, 300);
        if (trace) guest.machine.trace(ALL, () => {}).stop();
        guest.vcpu.run({ budget: 20_000 });
        expect(guest.machine.regions.activeCount).toBeGreaterThan(0);
      } finally {
        vi.unstubAllGlobals();
      }
      return modules;
    };
    const plain = made(false);
    expect(plain.length).toBeGreaterThan(5);
    expect(made(true)).toEqual(plain);
  });
});

describe("an instruction that faults", () => {
  const run = (
    code: string,
    registers: Record<string, bigint | number>,
    step = false,
  ): TraceEvent["kind"][] => {
    const guest = makeGuest(code);
    restart(guest, registers);
    const kinds: TraceEvent["kind"][] = [];
    guest.machine.trace(ALL, ({ kind }) => kinds.push(kind));
    const exit = step ? guest.vcpu.step() : guest.vcpu.run();
    expect(exit?.kind).toBe("fault");
    return kinds;
  };
  const unmapped = 0x1000;

  test.each([false, true])("leaves nothing, whatever it had done (stepped: %s)", (step) => {
    expect(run("a6", { rsi: toWord(DATA), rdi: unmapped }, step)).toEqual([]); // cmpsb
    expect(run("ff 33", { rbx: toWord(DATA), rsp: unmapped }, step)).toEqual([]); // push (%rbx)
    expect(run("f7 33", { rbx: toWord(STACK) }, step)).toEqual([]); // div, by zero
  });

  test("of a repeated one: what iterations before it did is told", () => {
    const registers = { rcx: 3 };
    const end = offset(DATA, DATA_PAGES * PAGE_SIZE - 2);
    expect(run("f3 aa", { ...registers, rdi: toWord(end) })).toEqual([
      "instruction",
      "write",
      "instruction",
      "write",
    ]);
  });
});

test("an access in a window, across pages or to code, has its own address and value", () => {
  // mov %rax,(%rbx); mov (%rbx),%rdx; movb $0x90,(%rsi), which is the vmcall behind it; nop…
  const guest = makeGuest("48 89 03 48 8b 13 c6 06 f4 90 90 90 0f 01 c1");
  const at = offset(DATA, PAGE_SIZE - 3);
  restart(guest, { rax: 0x1122334455667788n, rbx: toWord(at), rsi: toWord(offset(TEXT, 11)) });
  const events: TraceEvent[] = [];
  guest.machine.trace({ accesses: true }, (event) => events.push(event));
  expect(guest.vcpu.run().kind).toBe("halt");
  const common = { vcpu: 0, address: at, size: 8, value: 0x1122334455667788n };
  expect(events).toEqual([
    { kind: "write", ip: TEXT, ...common },
    { kind: "read", ip: offset(TEXT, 3), ...common },
    { kind: "write", ip: offset(TEXT, 6), vcpu: 0, address: offset(TEXT, 11), size: 1, value: 0xf4n },
  ]);
});

test("vCPUs are told apart, and their events come in the order in which they ran", () => {
  const { machine } = makeGuest(loopOf("90 90 90 90"), { vcpus: 3 });
  const seen: [number, Addr][] = [];
  machine.trace({ instructions: true }, ({ vcpu, ip }) => seen.push([vcpu, ip]));
  for (const vcpu of machine.vcpus) {
    vcpu.rip = TEXT;
    vcpu.set("rcx", 5n);
  }
  const expected = [2, 0, 1, 2, 0].flatMap((n) => {
    const vcpu = machine.vcpus[n]!;
    const start = vcpu.rip;
    vcpu.step();
    vcpu.run({ budget: 1 });
    return [start, offset(start, 1)].map((ip): [number, Addr] => [n, ip]);
  });
  expect(seen).toEqual(expected);
});

describe("a record", () => {
  const events = (machine: Machine, record: TraceRecord, budget: number): number[] => {
    const trace = machine.trace({ instructions: true }, record);
    machine.vcpus[0]!.run({ budget });
    trace.stop();
    return [...record].map(({ ip }) => ip - TEXT);
  };

  test.each([1, 100, 4095, 4096, 4097, 10_000])(
    "of %i events keeps the latest, and counts what it dropped",
    (limit) => {
      const guest = makeGuest(loopOf("90 90 90"));
      restart(guest, { rcx: 10_000 });
      const record = new TraceRecord(limit);
      const [all, few] = [20_003, 7];
      const ips = Array.from({ length: all + few }, (_, n) => [0, 1, 2, 3, 6][n % 5]!);
      expect(events(guest.machine, record, all)).toEqual(ips.slice(Math.max(0, all - limit), all));
      expect(record.dropped).toBe(Math.max(0, all - limit));
      expect(events(guest.machine, record, few)).toEqual(ips.slice(Math.max(0, all + few - limit)));
      expect([record.length, record.dropped]).toEqual([
        Math.min(limit, all + few),
        Math.max(0, all + few - limit),
      ]);
      record.clear();
      expect([[...record], record.length, record.dropped]).toEqual([[], 0, 0]);
      expect(events(guest.machine, record, 2).length).toBe(Math.min(limit, 2));
    },
  );

  test.each([0, -1, 1.5, Number.NaN])("of %d events is refused", (limit) => {
    expect(() => new TraceRecord(limit)).toThrow(/a trace cannot keep/);
  });
});

test("one trace at a time; to stop one twice does nothing", () => {
  const { machine } = makeGuest("90");
  const first = machine.trace(ALL, () => {});
  expect(() => machine.trace(ALL, () => {})).toThrow(/is being traced already/);
  first.stop();
  const second = machine.trace(ALL, () => {});
  first.stop();
  expect(machine.tracer).toBeDefined();
  second.stop();
  expect(machine.tracer).toBeUndefined();
});
