// Traces of what TypeScript executes: system instructions, and deliveries with all that they read and write.

import { describe, expect, test } from "vitest";
import { type Addr, offset, toWord } from "../../src/base/addr.ts";
import { fetch } from "../../src/machine/code.ts";
import { type TraceEvent, type TraceKinds, TraceRecord } from "../../src/machine/trace.ts";
import { Mnemonic } from "../../src/x86/decode.ts";
import { Random } from "../fuzz/random.ts";
import { type EntryKernel, entryKernel, OPS, SCRIPT_BYTES, STACKS, VECTOR } from "./entryKernel.ts";
import {
  ENTRY_STACK_TOP,
  GDT,
  IDT,
  KERNEL_DATA,
  KERNEL_STACK_TOP,
  resetToUser,
  SELECTOR,
  setGate,
  systemGuest,
  TSS,
  USER_TEXT,
} from "./systemGuest.ts";
import { replay } from "./traceModel.ts";

const ALL: TraceKinds = { instructions: true, accesses: true, branches: true, calls: true, exceptions: true };

/** What is in all memory that the kernel writes. */
const memoryOf = ({ machine: { memory } }: EntryKernel): string =>
  [[KERNEL_DATA, offset(KERNEL_DATA, 0x1000)] as const, ...STACKS]
    .map(([low, high]) => Buffer.from(memory.read(low, high - low)).toString("latin1"))
    .join();

/** Steps an untraced kernel once: the instructions and deliveries, as a trace has them. */
function stepped({ machine, vcpu }: EntryKernel): object[] {
  const { rip, instructions } = vcpu;
  const fetched = fetch(machine.memory, rip);
  vcpu.step();
  if (fetched.kind !== "instruction") return expect.fail("nothing to execute");
  const { next, mnemonic, length } = fetched.instruction;
  const retired = vcpu.instructions > instructions;
  const delivered = !retired || mnemonic === Mnemonic.Int || mnemonic === Mnemonic.Int3;
  return [
    ...(retired ? [{ kind: "instruction", ip: rip, length }] : []),
    ...(delivered ? [{ kind: "delivery", ip: retired ? next : rip, to: vcpu.rip }] : []),
  ];
}

test("of a kernel's entries and exits: the order of everything, and writes that make the memory there is", async () => {
  const seen = { delivery: 0, return: 0, syscalls: 0 };
  for (let seed = 1; seed <= 4; seed++) {
    const random = new Random().restart(seed, 7);
    const script = Uint8Array.from({ length: SCRIPT_BYTES }, () => random.below(OPS.length + 8));
    const options = { script, softwareStack: 2, breakpointStack: 0 };
    const [traced, plain, copy] = [
      await entryKernel(options),
      await entryKernel(options),
      await entryKernel(options),
    ];
    const record = new TraceRecord();
    traced.machine.trace(ALL, record);
    const expected: object[] = [];
    for (let n = 0; n < 40; n++) {
      const nmi = random.chance(20) && traced.vcpu.system.getWord("nmiBlocked") === 0n;
      for (const { vcpu } of [traced, plain]) {
        if (nmi) vcpu.nmi();
        else vcpu.interrupt(VECTOR.irq);
      }
      traced.vcpu.run({ budget: 1 + random.below(500) });
      while (plain.vcpu.instructions < traced.vcpu.instructions || plain.vcpu.rip !== traced.vcpu.rip)
        expected.push(...stepped(plain));
    }
    expect(traced.machine.hash()).toBe(plain.machine.hash());
    expect(traced.machine.trueChain(traced.vcpu.rsp)).toEqual(plain.machine.trueChain(plain.vcpu.rsp));
    const events = [...record];
    const order = events.filter(({ kind }) => kind === "instruction" || kind === "delivery");
    expect(order).toMatchObject(expected);
    expect(order.length).toBe(expected.length);
    replay(copy.machine, events);
    expect(memoryOf(copy) === memoryOf(traced)).toBe(true);
    const entry = traced.at("sys_entry");
    for (const event of events) {
      const { kind } = event;
      if (kind === "delivery" || kind === "return") seen[kind]++;
      if (event.kind === "branch" && event.to === entry) seen.syscalls++;
    }
  }
  for (const count of Object.values(seen)) expect(count).toBeGreaterThan(10);
});

test("of exceptions alone, while code runs in regions", async () => {
  const script = Uint8Array.from({ length: SCRIPT_BYTES }, (_, n) => [7, 1, 10, 9, 255][n % 5]!);
  const deliveries: TraceEvent[][] = [];
  for (const kinds of [ALL, { exceptions: true }]) {
    const { machine, vcpu } = await entryKernel({ script });
    const events: TraceEvent[] = [];
    machine.trace(kinds, (event) => events.push(event));
    vcpu.run({ budget: 60_000 });
    deliveries.push(events.filter(({ kind }) => kind === "delivery"));
    if (kinds !== ALL) expect(events).toEqual(deliveries.at(-1));
    expect(machine.regions.activeCount > 0).toBe(kinds !== ALL);
  }
  expect(deliveries[0]!.length).toBeGreaterThan(1000);
  expect(deliveries[1]).toEqual(deliveries[0]);
});

const traceOf = async (
  sources: Parameters<typeof systemGuest>[0],
  prepare: (guest: Awaited<ReturnType<typeof systemGuest>>) => void = () => {},
  steps = 1,
) => {
  const guest = await systemGuest(sources);
  prepare(guest);
  const events: TraceEvent[] = [];
  guest.machine.trace(ALL, (event) => events.push(event));
  const exits = Array.from({ length: steps }, () => guest.vcpu.step());
  return { ...guest, events, exits };
};

test("a delivery from user mode: itself, then what the CPU reads and pushes", async () => {
  const { events, at, vcpu } = await traceOf({ user: "ud2" }, resetToUser);
  const ip = at("user");
  const gate = offset(IDT, 16 * 6);
  const code = offset(GDT, SELECTOR.kernelCode);
  const frame = offset(ENTRY_STACK_TOP, -40);
  expect(events[0]).toEqual({
    kind: "delivery",
    vcpu: 0,
    ip,
    vector: 6,
    source: "fault",
    errorCode: undefined,
    to: at("vector6"),
  });
  const accesses = events
    .slice(1)
    .map((event) =>
      event.kind === "read" || event.kind === "write" ? [event.kind, event.address, event.size] : event,
    );
  expect(accesses).toEqual([
    ["read", gate, 8],
    ["read", offset(gate, 8), 8],
    ["read", code, 8],
    ["read", offset(TSS, 4), 8],
    ...[0, 1, 2, 3, 4].map((n) => ["write", offset(frame, 8 * n), 8]),
  ]);
  expect(events.at(-5)).toMatchObject({ ip, value: toWord(ip) });
  expect(events.at(-1)).toMatchObject({ ip, value: BigInt(SELECTOR.userData) });
  expect(vcpu.rsp).toBe(frame);
});

test("an error code, and an interrupt from outside", async () => {
  const unmapped = await traceOf({ kernel: "mov 0x1000, %eax" });
  expect(unmapped.events[0]).toMatchObject({ kind: "delivery", vector: 14, source: "fault", errorCode: 0 });
  const outside = await traceOf({ kernel: "nop" }, ({ vcpu }) => vcpu.nmi());
  expect(outside.events[0]).toMatchObject({
    kind: "delivery",
    vector: 2,
    source: "nonmaskable",
    ip: outside.at("kernel"),
  });
});

test("system instructions: what they access, and where they lead", async () => {
  const { events, at, exits } = await traceOf(
    { kernel: "sgdt 0x10(%rsp)\n mov %cr0, %rax\n pushq $0x10\n pushq $to\n lretq\n to: vmcall\n.globl to" },
    ({ vcpu }) => {
      vcpu.rsp = offset(KERNEL_STACK_TOP, -64);
    },
    6,
  );
  expect(exits.at(-1)).toMatchObject({ kind: "hypercall" });
  const kinds = events.map((event) =>
    event.kind === "read" || event.kind === "write" ? `${event.kind} ${event.size}` : event.kind,
  );
  expect(kinds).toEqual([
    ...["instruction", "write 8", "write 2"], // sgdt
    "instruction",
    ...["instruction", "write 8", "instruction", "write 8"],
    ...["instruction", "read 8", "read 8", "read 8", "read 8", "return"], // its words, the descriptors
    "instruction",
  ]);
  expect(events.find(({ kind }) => kind === "return")).toMatchObject({
    to: at("to"),
    slot: offset(KERNEL_STACK_TOP, -80),
  });
});

test("a system instruction that faults leaves nothing of what it had read", async () => {
  const { events } = await traceOf(
    { kernel: `pushq $${SELECTOR.kernelData}\n pushq $0\n lretq` },
    () => {},
    3,
  );
  const delivery = events.findIndex(({ kind }) => kind === "delivery");
  expect(events[delivery]).toMatchObject({ vector: 13, errorCode: SELECTOR.kernelData });
  expect(events.slice(0, delivery).map(({ kind }) => kind)).toEqual([
    "instruction",
    "write",
    "instruction",
    "write",
  ]);
  expect(events[delivery + 1]).toMatchObject({ kind: "read", address: offset(IDT, 16 * 13) });
});

test("enter that nests: each push and each read; of one that faults, the pushes that were done", async () => {
  const top = offset(KERNEL_STACK_TOP, -64);
  for (const room of [16, 0x7000]) {
    const { events, exits, machine } = await traceOf({ kernel: `enter $${room}, $3` }, ({ vcpu }) => {
      vcpu.rsp = top;
      vcpu.set("rbp", toWord(offset(KERNEL_DATA, 0x100)));
      vcpu.system.setWord("idtLimit", 0n);
    });
    const accesses = events.map((event) =>
      event.kind === "instruction" ? event.kind : [event.kind, "address" in event ? event.address : 0],
    );
    const pushes = [1, 2, 3, 4].map((n) => ["write", offset(top, -8 * n)]);
    const reads = [1, 2].map((n) => ["read", offset(KERNEL_DATA, 0x100 - 8 * n)]);
    const faults = room > 16;
    expect(exits[0]?.kind).toBe(faults ? "fault" : undefined);
    expect(accesses).toEqual(
      faults ? pushes : ["instruction", pushes[0], reads[0], pushes[1], reads[1], pushes[2], pushes[3]],
    );
    expect(events.at(-1)).toMatchObject({ value: machine.memory.readWord(offset(top, -32)) });
  }
});

describe("a software interrupt", () => {
  const kinds = (events: readonly TraceEvent[]) =>
    events
      .filter(({ kind }) => kind !== "read" && kind !== "write")
      .map((event) => (event.kind === "delivery" ? [event.vector, event.ip] : [event.kind, event.ip]));
  const user = "nop\n soft: int3\n int $60\n nop\n.globl soft";

  test.each([
    ["int3", 0, 3],
    ["int n", 1, 60],
  ])("%s that is delivered has retired; one that is not has left nothing", async (_, skip, vector) => {
    for (const dpl of [3, 0]) {
      const { events, at } = await traceOf({ user }, (guest) => {
        resetToUser(guest);
        guest.vcpu.rip = offset(guest.at("soft"), skip);
        setGate(guest, vector, { handler: guest.at(`vector${vector}`), dpl });
      });
      const ip: Addr = offset(at("soft"), skip);
      const next = offset(ip, skip === 0 ? 1 : 2);
      expect(kinds(events)).toEqual(
        dpl === 3
          ? [
              ["instruction", ip],
              [vector, next],
            ]
          : [[13, ip]],
      );
    }
  });
});

test("a delivery that ends the processor leaves nothing", async () => {
  const { events, exits } = await traceOf({ kernel: "int3" }, ({ vcpu }) =>
    vcpu.system.setWord("idtLimit", 15n),
  );
  expect([events, exits[0]?.kind]).toEqual([[], "shutdown"]);
});

test("deliveries without end, as the handler cannot be fetched, are all told", async () => {
  const guest = await systemGuest({ kernel: "mov 0x1000, %eax" });
  setGate(guest, 14, { handler: 0x2000n, ist: 1 });
  const kinds = { delivery: 0, read: 0, write: 0 };
  guest.machine.trace(ALL, ({ kind }) => {
    if (!(kind in kinds)) expect.fail(kind);
    kinds[kind as keyof typeof kinds]++;
  });
  // Whatever lies behind the buffer, it is not overrun.
  const { memory } = guest.machine;
  memory.map(offset(USER_TEXT, 0x10000), 0x10000, { write: true, execute: false, user: false });
  expect(guest.vcpu.run({ budget: 2000 }).kind).toBe("budget");
  expect(memory.read(offset(USER_TEXT, 0x10000), 0x10000).every((byte) => byte === 0)).toBe(true);
  expect(kinds).toEqual({ delivery: 2000, read: 4 * 2000, write: 6 * 2000 });
});

test("with no interrupt table, what would be delivered is none", async () => {
  const { events, exits } = await traceOf({ kernel: "int $50" }, ({ vcpu }) =>
    vcpu.system.setWord("idtLimit", 0n),
  );
  expect([events.map(({ kind }) => kind), exits[0]?.kind]).toEqual([["instruction"], "interrupt"]);
});
