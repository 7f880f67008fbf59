// Text that is rewritten while everybody might run: in phases, each undone where something else is found than should be.

import { beforeEach, describe, expect, test } from "vitest";
import { type Addr, offset } from "../../src/base/addr.ts";
import { hexBytes } from "../../src/base/bytes.ts";
import { BP_PATCHING_DESC } from "../../src/ftrace/layout.ts";
import { callBytes, NOP5, SITE_SIZE } from "../../src/ftrace/site.ts";
import type { PokeFailure, TextPoke, Writer } from "../../src/ftrace/textPoke.ts";
import { TEXT_ALIAS } from "../../src/image/layout.ts";
import { Lab } from "../../src/lab.ts";
import { StructView } from "../../src/machine/struct.ts";

const FUNCTIONS = ["leaf", "tail", "loop"];
const STRAND = "poke";

let lab: Lab;
let sites: readonly Addr[];
beforeEach(async () => {
  lab = await Lab.open({ vcpus: 2 });
  sites = FUNCTIONS.map((name) => lab.symbol(name).address);
});

const text = () => sites.map((ip) => hexBytes(lab.machine.memory.read(ip, SITE_SIZE)));
const calls = () => sites.map((ip) => hexBytes(callBytes(ip, lab.symbol("ftrace_caller").address)));
const nops = () => sites.map(() => hexBytes(NOP5));

const batch = (): TextPoke[] =>
  sites.map((ip) => ({ ip, old: NOP5, new: callBytes(ip, lab.symbol("ftrace_caller").address) }));

/** Begins to write the batch, to be gone on with by `next`. */
function begin(writer: Writer = "breakpoint") {
  const { agenda } = lab.kernel;
  const ends: (PokeFailure | undefined)[] = [];
  lab.ftrace.poker.writer = writer;
  agenda.live = true;
  agenda.add(
    STRAND,
    lab.ftrace.poker.steps(batch(), (failure) => {
      ends.push(failure);
      return [];
    }),
  );
  return ends;
}

/** Goes on by one step: what it was; undefined at the end. Waiting for CPUs, it lets all serialise. */
function next(): string | undefined {
  const { agenda } = lab.kernel;
  const what = agenda.pending.find(({ strand }) => strand === STRAND)?.what;
  if (what === undefined) return undefined;
  if (!agenda.ready().includes(STRAND))
    for (const { struct } of lab.kernel.cpus) struct.set("sync_done", struct.getNumber("sync_wanted"));
  agenda.step(STRAND);
  return what;
}

function finish(): string[] {
  const steps: string[] = [];
  for (let what = next(); what !== undefined; what = next()) steps.push(what);
  return steps;
}

test("a batch is written in three phases, all CPUs serialising behind each", () => {
  const ends = begin();
  const phases = finish().map((what) => what.replace(/ at \w+.*/, ""));
  const serialise = ["have every CPU serialise", "wait until every CPU has serialised"];
  const each = (what: string) => FUNCTIONS.map(() => `write ${what}`);
  expect(phases).toEqual([
    "describe what is going to be written",
    ...each("int3"),
    ...serialise,
    ...each("the tail"),
    ...serialise,
    ...each("the first byte"),
    ...serialise,
    "let go of the description",
    "wait for breakpoint handlers",
  ]);
  expect(text()).toEqual(calls());
  expect(ends).toEqual([undefined]);
});

test("no step leaves anything in text but the old instruction, an int3, or the new one", () => {
  begin();
  do
    for (const [n, bytes] of text().entries())
      expect(bytes.startsWith("cc ") || bytes === nops()[n] || bytes === calls()[n], bytes).toBe(true);
  while (next() !== undefined);
});

test.each(["whole", "halves", "tail-first"] as const)(
  "the naive writer %s comes to the same in the end",
  (writer) => {
    const ends = begin(writer);
    finish();
    expect(text()).toEqual(calls());
    expect(ends).toEqual([undefined]);
  },
);

test("the alias that text is written by is there for no longer than the write", () => {
  begin();
  do expect(lab.machine.memory.isMapped(TEXT_ALIAS, 1)).toBe(false);
  while (next() !== undefined);
  expect(text()).toEqual(calls());
});

test("nothing that a CPU executes because of a breakpoint can be traced", () => {
  begin();
  while (!text().every((bytes) => bytes.startsWith("cc "))) next();
  const vcpu = lab.begin(lab.symbol("leaf").address, [1n]);
  const executed = new Set<string>();
  do executed.add(lab.code.symbolAt(vcpu.rip)!.symbol.name);
  while (vcpu.step() === undefined);
  expect([...executed]).toEqual(
    expect.arrayContaining(["asm_exc_int3", "do_exception", "poke_int3_handler"]),
  );
  const traceable = new Set(lab.ftrace.records.map(({ symbol }) => symbol));
  expect([...executed].filter((name) => traceable.has(name))).toEqual(["leaf"]);
});

describe("something else is found than should be", () => {
  const PHASES = [
    { name: "before anything is written", steps: 0, byte: 3 },
    { name: "between the breakpoints", steps: 2, byte: 0 },
    { name: "before the tails", steps: 6, byte: 2 },
    { name: "between the tails", steps: 7, byte: 4 },
    { name: "before the first bytes", steps: 11, byte: 0 },
    { name: "between the first bytes", steps: 12, byte: 0 },
  ];

  test.for(PHASES)("$name: what was written is undone, and it is told", ({ steps, byte }) => {
    const { memory } = lab.machine;
    const ends = begin();
    for (let n = 0; n < steps; n++) expect(next()).toBeDefined();
    // The last of the batch, which is always yet to come.
    const at = offset(sites.at(-1)!, byte);
    const [found] = memory.read(at, 1);
    memory.write(at, Uint8Array.of(found! ^ 0x55));
    const undone = finish();
    expect(ends.length).toBe(1);
    expect(ends[0]).toMatchObject({ ip: sites.at(-1) });
    expect(hexBytes(ends[0]!.found)).not.toBe(hexBytes(ends[0]!.expected));
    // All but what somebody else wrote; that too, if the first byte was an int3 already.
    expect(text().slice(0, -1)).toEqual(nops().slice(0, -1));
    const desc = new StructView(memory, BP_PATCHING_DESC, lab.symbol("bp_desc").address);
    expect(desc.getNumber("refs")).toBe(0);
    if (steps > 0) expect(undone.some((what) => what.startsWith("undo"))).toBe(true);
  });
});
