// Random programs that write themselves and one another: what is asked and reported is what the definition says
// (crossModifyingModel.ts), what is executed are the bytes that were chosen, and with the newest it is a coherent machine.

import fc from "fast-check";
import { expect, test } from "vitest";
import { type Addr, addr, offset, PAGE_SIZE } from "../../src/base/addr.ts";
import { hexBytes } from "../../src/base/bytes.ts";
import type { Exit } from "../../src/machine/exit.ts";
import { Machine, type MachineOptions } from "../../src/machine/machine.ts";
import type { Snapshot } from "../../src/machine/snapshot.ts";
import { type ContestedByte, newest } from "../../src/machine/staleCode.ts";
import type { Vcpu } from "../../src/machine/vcpu.ts";
import { Mnemonic } from "../../src/x86/decode.ts";
import type { RegisterName } from "../../src/x86/register.ts";
import { Staleness, serialiseAll } from "./crossModifying.ts";
import { Model, type ModelState } from "./crossModifyingModel.ts";
import { DATA, RW, RWX, STACK, TEXT } from "./guest.ts";

const VCPUS = 3;
const TEXT_BYTES = 2 * PAGE_SIZE;
/**
 * The two pages of text again, the second one first: what follows a frame depends on the view. Code that runs in one
 * has data in the other.
 */
const VIEW = addr(0xffff_e000_0000_0000n);
/** Where code is: across the pages in either view, and within one. Instructions begin and are stored to in the middle. */
const SPOTS = [PAGE_SIZE - 32, TEXT_BYTES - 32, 0x1f8];
const SPOT_BYTES = 64;
const MIDDLE = 26;
const MIDDLE_BYTES = 9;

/** Bytes that make instructions of all lengths, some of which store to where rdi points; and cpuid. */
const BYTES = [
  0x90, 0xb8, 0x0f, 0x1f, 0x44, 0x00, 0xcc, 0xe8, 0x88, 0x17, 0xc0, 0x48, 0xf3, 0xaa, 0xa4, 0xa2,
];
const REGISTERS = ["rax", "rcx", "rdx", "rbx", "rsi", "rdi", "rbp"] as const;

/** With `apart`, the second view shows memory of its own. */
function makeMachine(options: MachineOptions, apart = false): Machine {
  const machine = new Machine({ vcpus: VCPUS, ...options });
  const { memory } = machine;
  memory.map(TEXT, TEXT_BYTES, RWX);
  if (apart) memory.map(VIEW, TEXT_BYTES, RWX);
  else {
    memory.alias(VIEW, offset(TEXT, PAGE_SIZE), PAGE_SIZE, RWX);
    memory.alias(offset(VIEW, PAGE_SIZE), TEXT, PAGE_SIZE, RWX);
  }
  memory.map(DATA, PAGE_SIZE, RW);
  memory.map(STACK, PAGE_SIZE, RW);
  memory.write(TEXT, new Uint8Array(TEXT_BYTES).fill(0x90));
  serialiseAll(machine);
  return machine;
}

/** Bytes of the spots are numbered on from one to the next. */
const PLACES = SPOTS.flatMap((spot) => Array.from({ length: SPOT_BYTES }, (_, n) => (spot + n) % TEXT_BYTES));
const placeOf = new Map(PLACES.map((within, n) => [within, n]));

function placeAt(at: Addr): number | undefined {
  if (at >= TEXT && at < TEXT + TEXT_BYTES) return placeOf.get(at - TEXT);
  if (at >= VIEW && at < VIEW + TEXT_BYTES) return placeOf.get((at - VIEW + PAGE_SIZE) % TEXT_BYTES);
  return undefined;
}

/** An address that shows the place, in the text or in its other view. */
function addressOf(place: number, other: boolean): Addr {
  const within = PLACES[place]!;
  return other ? offset(VIEW, (within + PAGE_SIZE) % TEXT_BYTES) : offset(TEXT, within);
}

function spotsOf({ memory }: Machine, other = false): Uint8Array {
  const text = memory.read(other ? VIEW : TEXT, TEXT_BYTES);
  return Uint8Array.from(PLACES, (_, place) => text[addressOf(place, other) - (other ? VIEW : TEXT)]!);
}

function setSpots({ memory }: Machine, other: boolean, text: Uint8Array): void {
  const half = SPOT_BYTES / 2; // where the pages meet
  for (let place = 0; place < text.length; place += half)
    memory.write(addressOf(place, other), text.subarray(place, place + half));
}

type Command =
  | { readonly kind: "step" | "serialise"; readonly vcpu: number }
  | { readonly kind: "run"; readonly vcpu: number; readonly budget: number }
  | {
      readonly kind: "go";
      readonly vcpu: number;
      readonly place: number;
      readonly other: boolean;
      readonly rdi: number;
    }
  | {
      readonly kind: "store";
      readonly by: number | undefined;
      readonly place: number;
      readonly other: boolean;
      readonly bytes: readonly number[];
    }
  | { readonly kind: "snapshot" | "restore" };

const vcpu = fc.nat({ max: VCPUS - 1 });
const place = fc
  .tuple(fc.nat({ max: SPOTS.length - 1 }), fc.nat({ max: MIDDLE_BYTES - 1 }))
  .map(([spot, within]) => spot * SPOT_BYTES + MIDDLE + within);
const store: fc.Arbitrary<Command> = fc.record({
  kind: fc.constant("store" as const),
  by: fc.option(vcpu, { nil: undefined }),
  place,
  other: fc.boolean(),
  bytes: fc.array(fc.constantFrom(...BYTES), { minLength: 1, maxLength: 5 }),
});
const go: fc.Arbitrary<Command> = fc.record({
  kind: fc.constant("go" as const),
  vcpu,
  place,
  other: fc.boolean(),
  rdi: place,
});
const step = vcpu.map((n): Command => ({ kind: "step", vcpu: n }));
/** To a place, and an instruction or two from there. */
const visit = fc.tuple(go, fc.nat({ max: 2 })).map(([first, more]): Command[] => {
  const next: Command = { kind: "step", vcpu: first.kind === "go" ? first.vcpu : 0 };
  return [first, next, ...Array<Command>(more).fill(next)];
});
const serialise = vcpu.map((n): Command => ({ kind: "serialise", vcpu: n }));
const run = fc.record({ kind: fc.constant("run" as const), vcpu, budget: fc.constantFrom(1, 2, 5, 30) });
const still = fc.constantFrom<Command>({ kind: "snapshot" }, { kind: "restore" });

function history(...parts: [number, fc.Arbitrary<Command | Command[]>][]): fc.Arbitrary<Command[]> {
  const part = fc.oneof(...parts.map(([weight, arbitrary]) => ({ weight, arbitrary })));
  return fc.array(part, { minLength: 30, maxLength: 80 }).map((list) => list.flat());
}

/** What the machine itself does of a command; exits are told. */
function obey(command: Command, { memory, vcpus }: Machine): Exit | undefined {
  switch (command.kind) {
    case "serialise":
      return void vcpus[command.vcpu]!.serialise();
    case "step":
      return vcpus[command.vcpu]!.step();
    case "run":
      return vcpus[command.vcpu]!.run({ budget: command.budget });
    case "go": {
      const on = vcpus[command.vcpu]!;
      on.rip = addressOf(command.place, command.other);
      for (const [n, name] of REGISTERS.entries()) on.set(name, BigInt(0x101 * n));
      on.set("rcx", 3n);
      on.set("rsi", BigInt.asUintN(64, BigInt(DATA)));
      on.set("rdi", BigInt.asUintN(64, BigInt(addressOf(command.rdi, !command.other))));
      on.rsp = offset(STACK, PAGE_SIZE / 2);
      on.rflags = 2n;
      return undefined;
    }
    case "store": {
      const start = addressOf(command.place, command.other);
      const room = command.bytes.filter((_, n) => placeAt((start + n) as Addr) !== undefined);
      if (command.by === undefined) memory.write(start, Uint8Array.from(room));
      else vcpus[command.by]!.store(start, Uint8Array.from(room));
    }
  }
  return undefined;
}

interface State {
  readonly registers: Record<RegisterName, bigint>;
  readonly rip: Addr;
  readonly rflags: bigint;
  readonly data: string;
  readonly stack: string;
}

function stateOf({ memory }: Machine, on: Vcpu): State {
  const text = (at: Addr) => Buffer.from(memory.read(at, PAGE_SIZE)).toString("latin1");
  return { registers: on.registers(), rip: on.rip, rflags: on.rflags, data: text(DATA), stack: text(STACK) };
}

function setState({ memory }: Machine, on: Vcpu, { registers, rip, rflags, data, stack }: State): void {
  for (const [name, value] of Object.entries(registers)) on.set(name as RegisterName, value);
  on.rip = rip;
  on.rflags = rflags;
  memory.write(DATA, Buffer.from(data, "latin1"));
  memory.write(STACK, Buffer.from(stack, "latin1"));
}

const SERIALISING: readonly Mnemonic[] = [Mnemonic.Cpuid, Mnemonic.Lldt, Mnemonic.Ltr];

interface Saved {
  readonly snapshot: Snapshot;
  readonly views: ModelState;
  readonly hash: bigint;
}

/** A machine under the eyes of the model, and a coherent one that is given what was chosen. */
class Watched {
  readonly counts = { contested: 0, stale: 0, mixed: 0, crossing: 0, own: 0 };
  private readonly staleness = new Staleness();
  private readonly machine = makeMachine({ code: this.staleness });
  private readonly plain = makeMachine({ vcpus: 1 }, true);
  private readonly model = new Model(spotsOf(this.machine), VCPUS);
  private readonly begin = this.save();
  private saved: Saved | undefined;

  constructor() {
    const { memory, vcpus } = this.machine;
    const write = memory.write.bind(memory);
    memory.write = (start, bytes, by) => {
      const stores = [...bytes].flatMap((value, n) => {
        const at = placeAt((start + n) as Addr);
        return at === undefined ? [] : [{ at, value }];
      });
      const index = vcpus.findIndex(({ cpu }) => cpu === by);
      if (stores.length > 0) this.model.store(stores, index < 0 ? undefined : index);
      write(start, bytes, by);
    };
  }

  /** From the beginning. */
  follow(history: readonly Command[], random: () => number): void {
    this.staleness.by = ({ versions }) => random() % versions.length;
    this.restore(this.begin);
    for (const command of history) this.obey(command);
    this.saved?.snapshot.dispose();
    this.saved = undefined;
  }

  private save(): Saved {
    const { machine, model } = this;
    return { snapshot: machine.snapshot(), views: model.views, hash: machine.hash() };
  }

  private restore({ snapshot, views, hash }: Saved): void {
    this.machine.restore(snapshot);
    this.model.views = views;
    expect(this.machine.hash()).toBe(hash);
  }

  private obey(command: Command): void {
    if (command.kind === "step") this.step(command.vcpu);
    else obey(command, this.machine);
    if (command.kind === "serialise") this.model.serialise(command.vcpu);
    if (command.kind === "snapshot") {
      this.saved?.snapshot.dispose();
      this.saved = this.save();
    }
    if (command.kind === "restore" && this.saved !== undefined) this.restore(this.saved);
    expect(hexBytes(spotsOf(this.machine))).toBe(hexBytes(this.model.text));
  }

  private step(index: number): void {
    const { machine, model, staleness } = this;
    const on = machine.vcpus[index]!;
    const { rip } = on;
    // Outside of the spots nothing is known of what may be fetched.
    if (placeAt(rip) === undefined || placeAt((rip + 14) as Addr) === undefined) return;
    const before = stateOf(machine, on);
    const { views } = model;
    const asked: (ContestedByte & { readonly choice: number })[] = [];
    const random = staleness.by;
    staleness.by = (byte) => {
      const choice = random(byte);
      asked.push({ ...byte, choice });
      return choice;
    };
    staleness.reports.length = 0;
    const exit = on.step();
    staleness.by = random;

    const { views: later, text: textAfter } = model;
    model.views = views;
    const text = model.text.slice();
    let questions = 0;
    const fetched = model.fetch(
      index,
      rip,
      (n) => placeAt((rip + n) as Addr),
      (at, versions) => {
        const question = asked[questions++]!;
        expect(placeAt(question.at)).toBe(at);
        expect(question).toMatchObject({ vcpu: index, ip: rip, versions });
        text[at] = versions[question.choice]!;
        return text[at];
      },
    );
    expect(asked.length).toBe(questions);
    const expected = fetched?.instants && { bytes: fetched.bytes, instants: fetched.instants };
    expect(staleness.reports.map(({ bytes, instants }) => ({ bytes, instants }))).toEqual(
      expected === undefined ? [] : [expected],
    );
    if (questions > 0) {
      this.counts.contested++;
      if (hexBytes(text) !== hexBytes(model.text)) this.counts.stale++;
      if (expected !== undefined) this.counts.mixed++;
      if (Math.floor(rip / PAGE_SIZE) < Math.floor((rip + fetched!.bytes.length - 1) / PAGE_SIZE))
        this.counts.crossing++;
      if (views[index]!.own.some((n) => n > 0)) this.counts.own++;
    }
    this.compare(on, before, text, exit, textAfter);
    model.views = later;
    if (exit === undefined && fetched?.instruction && SERIALISING.includes(fetched.instruction.mnemonic))
      model.serialise(index);
  }

  /** What happened is what happens where `chosen` is executed, and where data is what memory had. */
  private compare(
    on: Vcpu,
    before: State,
    chosen: Uint8Array,
    exit: Exit | undefined,
    after: Uint8Array,
  ): void {
    const { plain, model } = this;
    const twin = plain.vcpus[0]!;
    const other = before.rip < TEXT;
    setSpots(plain, other, chosen);
    setSpots(plain, !other, model.text);
    setState(plain, twin, before);
    expect(twin.step()).toEqual(exit);
    expect(stateOf(plain, twin)).toEqual(stateOf(this.machine, on));
    expect(hexBytes(spotsOf(plain, !other))).toBe(hexBytes(after));
  }
}

/** Numbers that depend on nothing but the seed. */
function stream(seed: number): () => number {
  let state = seed | 1;
  return () => {
    state = Math.imul(state ^ (state >>> 15), 0x2c1b3c6d) + 0x9e3779b9;
    return (state ^ (state >>> 13)) >>> 0;
  };
}

test("what is asked, reported and executed is what the definition says", () => {
  const watched = new Watched();
  fc.assert(
    fc.property(history([6, store], [8, visit], [1, serialise], [1, still]), fc.nat(), (list, seed) => {
      watched.follow(list, stream(seed));
    }),
    { seed: 5, numRuns: 80 },
  );
  for (const count of Object.values(watched.counts)) expect(count).toBeGreaterThan(50);
});

/** Does the same on all machines; they must have the same outcomes and states afterwards. */
function together(
  list: readonly Command[],
  machines: readonly Machine[],
  stepping: Machine | undefined,
): void {
  for (const command of list) {
    const exits = machines.map((machine) => {
      if (machine !== stepping || command.kind !== "run") return obey(command, machine);
      const on = machine.vcpus[command.vcpu]!;
      return stepsOf(on, command.budget);
    });
    const states = machines.map((machine) => machine.vcpus.map((on) => stateOf(machine, on)));
    for (const [n, machine] of machines.entries()) {
      expect(exits[n]).toEqual(exits[0]);
      expect(states[n]).toEqual(states[0]);
      expect(hexBytes(spotsOf(machine))).toBe(hexBytes(spotsOf(machines[0]!)));
    }
  }
}

/** What `run` with that budget does, one step at a time. */
function stepsOf(on: Vcpu, budget: number): Exit {
  const end = on.instructions + budget;
  while (on.instructions < end) {
    const exit = on.step();
    if (exit !== undefined) return exit;
  }
  return { kind: "budget", ip: on.rip };
}

const runs = history([4, store], [2, go], [4, run], [1, step], [1, serialise]);

test("a vCPU that always sees the newest is one of a coherent machine", () => {
  let asked = 0;
  const staleness = new Staleness();
  staleness.by = (byte) => {
    asked++;
    return newest(byte);
  };
  const machines = [makeMachine({}), makeMachine({ code: staleness })];
  const begin = machines.map((machine) => machine.snapshot());
  fc.assert(
    fc.property(runs, (list) => {
      begin.forEach((snapshot, n) => {
        machines[n]!.restore(snapshot);
      });
      together(list, machines, undefined);
      expect(staleness.reports).toEqual([]);
    }),
    { seed: 6, numRuns: 60 },
  );
  expect(asked).toBeGreaterThan(300);
});

test("stepping and running are asked the same, and do the same with the answers", () => {
  const make = () => {
    const staleness = new Staleness();
    const machine = makeMachine({ code: staleness });
    return { staleness, machine, begin: machine.snapshot() };
  };
  const [ran, stepped] = [make(), make()];
  fc.assert(
    fc.property(runs, fc.nat(), (list, seed) => {
      const asked = [ran, stepped].map(({ staleness, machine, begin }) => {
        const bytes: ContestedByte[] = [];
        const random = stream(seed);
        staleness.reports.length = 0;
        staleness.by = (byte) => {
          bytes.push(byte);
          return random() % byte.versions.length;
        };
        machine.restore(begin);
        return bytes;
      });
      together(list, [ran.machine, stepped.machine], stepped.machine);
      expect(asked[1]).toEqual(asked[0]);
      expect(stepped.staleness.reports).toEqual(ran.staleness.reports);
    }),
    { seed: 7, numRuns: 60 },
  );
});
