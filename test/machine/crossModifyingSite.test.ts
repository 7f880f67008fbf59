// A call site rewritten by one CPU while another runs through it: every order of events, every choice of bytes.

import { describe, expect, test } from "vitest";
import { offset, PAGE_SIZE } from "../../src/base/addr.ts";
import { hexBytes, sameBytes } from "../../src/base/bytes.ts";
import type { Exit } from "../../src/machine/exit.ts";
import type { Vcpu } from "../../src/machine/vcpu.ts";
import { decode } from "../../src/x86/decode.ts";
import {
  bytes,
  type Choose,
  everyChoice,
  type StaleGuest,
  serialiseAll,
  staleGuest,
} from "./crossModifying.ts";
import { RX, setRegisters, TEXT } from "./guest.ts";

const NOP = bytes("0f 1f 44 00 00");
/** No byte of it is the NOP's. */
const CALL = bytes("e8 77 66 55 04");
const SITE = TEXT;
const AFTER = offset(SITE, NOP.length);
const TARGET = offset(AFTER, 0x04556677);

/** What the writing CPU does, in order: stores at distances from the site, or has all CPUs serialise. */
type Phase = "serialise" | { readonly at: number; readonly stored: Uint8Array };
const store = (at: number, stored: Uint8Array): Phase => ({ at, stored });

const AT_ONCE = [store(0, CALL)];
const HALVES = [store(0, CALL.subarray(0, 2)), store(2, CALL.subarray(2))];
const TAIL_FIRST = [store(1, CALL.subarray(1)), store(0, CALL.subarray(0, 1))];
const BREAKPOINT = [store(0, bytes("cc")), store(1, CALL.subarray(1)), store(0, CALL.subarray(0, 1))];
const withSerialising = (phases: readonly Phase[]) =>
  phases.flatMap((phase) => [phase, "serialise" as const]);

interface Seen {
  /** What the reader executed at the site that was there as a whole: `nop`, `int3`, `call`, or another. */
  readonly whole: Set<string>;
  /** The bytes of what was mixed. */
  readonly mixed: Set<string>;
}

function makeSite(): StaleGuest {
  const guest = staleGuest("0f 1f 44 00 00 0f 01 c1"); // the site; vmcall
  const { memory } = guest.machine;
  memory.map(TARGET, PAGE_SIZE, RX);
  memory.write(TARGET, bytes("c3"));
  serialiseAll(guest.machine);
  guest.code.answer = "stop";
  return guest;
}

/** Two passes through the site, with the writer's phases anywhere between the reader's instructions. */
function explore(phases: readonly Phase[], from = NOP): Seen {
  const seen: Seen = { whole: new Set(), mixed: new Set() };
  const { machine, code } = makeSite();
  machine.memory.write(SITE, from);
  serialiseAll(machine);
  const [writer, reader] = machine.vcpus as [Vcpu, Vcpu];
  setRegisters({ machine, vcpu: reader }, {});
  const begin = machine.snapshot();

  const twice = (choose: Choose) => {
    machine.restore(begin);
    code.by = ({ versions }) => choose(versions.length);
    for (let done = 0, passes = 0; passes < 2; ) {
      while (done < phases.length && choose(2) === 1) {
        const phase = phases[done++]!;
        if (phase === "serialise") serialiseAll(machine);
        else writer.store(offset(SITE, phase.at), phase.stored);
      }
      const at = reader.rip;
      const exit = reader.step();
      if (exit?.kind === "mixed") {
        expect(reader.rip).toBe(at);
        seen.mixed.add(hexBytes(exit.fetch.bytes));
        return;
      }
      if (at === SITE) {
        seen.whole.add(whatHappened(reader, exit));
        reader.rip = reader.rip === TARGET ? TARGET : AFTER; // as the handler of a NOP
      } else if (exit?.kind === "hypercall") {
        passes++;
        reader.rip = TEXT;
      } else expect(exit).toBeUndefined();
    }
  };
  expect(everyChoice(twice)).toBeGreaterThan(2 ** phases.length);
  return seen;
}

/** What was at the site, by what it did. */
function whatHappened(reader: Vcpu, exit: Exit | undefined): string {
  if (exit?.kind === "fault" && exit.fault.vector === "#BP") return "int3";
  if (exit === undefined && reader.rip === AFTER) return "nop";
  return exit === undefined && reader.rip === TARGET ? "call" : "another";
}

/** What could be fetched of a site, by no rule but this: each byte was there at some instant. */
function tornOf(instants: readonly Uint8Array[]): string[] {
  const torn = new Set<string>();
  everyChoice((choose) => {
    const fetched = NOP.map((_, n) => instants[choose(instants.length)]![n]!);
    const length = [1, 2, 3, 4, 5].find(
      (size) => decode(fetched.subarray(0, size), SITE).kind !== "truncated",
    )!;
    const prefix = fetched.subarray(0, length);
    if (!instants.some((instant) => sameBytes(instant.subarray(0, length), prefix)))
      torn.add(hexBytes(prefix));
  });
  return [...torn].sort();
}

/** What is at the site after each store. */
function instantsOf(phases: readonly Phase[]): Uint8Array[] {
  const instants = [NOP];
  for (const phase of phases) {
    if (phase === "serialise") continue;
    const next = instants.at(-1)!.slice();
    next.set(phase.stored, phase.at);
    instants.push(next);
  }
  return instants;
}

describe("the breakpoint protocol", () => {
  test("with all CPUs serialised between its phases: the old whole, the int3, or the new whole", () => {
    const seen = explore(withSerialising(BREAKPOINT));
    expect(seen.mixed).toEqual(new Set());
    expect(seen.whole).toEqual(new Set(["nop", "int3", "call"]));
  });

  test("and back", () => {
    const back = [store(0, bytes("cc")), store(1, NOP.subarray(1)), store(0, NOP.subarray(0, 1))];
    const seen = explore(withSerialising(back), CALL);
    expect(seen.mixed).toEqual(new Set());
    expect(seen.whole).toEqual(new Set(["nop", "int3", "call"]));
  });

  test.each([0, 1])("leaves out the serialising after phase %i, and bytes are mixed", (left) => {
    const phases = withSerialising(BREAKPOINT).filter((_, n) => n !== 2 * left + 1);
    const instants = instantsOf(phases);
    const expected = tornOf(left === 0 ? instants.slice(0, 3) : instants.slice(1));
    expect(expected.length).toBeGreaterThan(0);
    expect([...explore(phases).mixed].sort()).toEqual(expected);
  });

  test("without any serialising: old heads on new tails, new heads on old tails", () => {
    const { mixed, whole } = explore(BREAKPOINT);
    expect([...mixed].sort()).toEqual(tornOf(instantsOf(BREAKPOINT)));
    expect(mixed).toContain("0f 1f 66 55");
    expect(mixed).toContain("e8 1f 44 00 00");
    expect(whole).toEqual(new Set(["nop", "int3", "call"]));
  });
});

describe("naive writers mix bytes", () => {
  test.each([
    ["all five at once", AT_ONCE],
    ["in two halves", HALVES],
    ["the tail first", TAIL_FIRST],
    ["in two halves, serialised between", withSerialising(HALVES)],
    ["the tail first, serialised between", withSerialising(TAIL_FIRST)],
  ])("%s", (_, phases) => {
    const instants = instantsOf(phases);
    const expected = phases.includes("serialise")
      ? [...new Set(instants.slice(1).flatMap((instant, n) => tornOf([instants[n]!, instant])))].sort()
      : tornOf(instants);
    expect(expected.length).toBeGreaterThan(0);
    expect([...explore(phases).mixed].sort()).toEqual(expected);
  });

  test("of the five at once, these", () => {
    const tails = tornOf(instantsOf(AT_ONCE));
    expect(tails.filter((torn) => torn.startsWith("e8"))).toHaveLength(15);
    expect(tails).toEqual(
      expect.arrayContaining(["0f 77", "0f 1f 44 00 04", "0f 1f 44 55 00", "0f 1f 66 00"]),
    );
  });
});
