// What the orders of writes, grace periods and the stack check are there for: with one of them left out, a task that is stopped at the
// right instruction while a transition goes on gets to run what it must not. With all of them, none does, wherever it is stopped.

import { beforeAll, describe, expect, test } from "vitest";
import type { Task } from "../../src/kernel/kernel.ts";
import { THREAD_FLAG, VECTORS } from "../../src/kernel/layout.ts";
import type { LivepatchOptions, Order } from "../../src/livepatch/options.ts";
import { ORDERS } from "../../src/livepatch/options.ts";
import type { Patch, PatchSpec } from "../../src/livepatch/patch.ts";
import { Universe } from "../../src/livepatch/universe.ts";
import type { Snapshot } from "../../src/machine/snapshot.ts";
import type { Vcpu } from "../../src/machine/vcpu.ts";
import { framePointerUnwinder } from "../../src/unwind/framePointer.ts";
import { orcUnwinder } from "../../src/unwind/orcWalker.ts";
import { Userland } from "../kernel/userland.ts";

/** Reads without end. */
const PROGRAM = `
.bss
	.balign 8
buffer:
	.skip 64
.text
program reader
1:	xor %edi, %edi
	lea buffer(%rip), %rsi
	mov $1, %edx
	sys NR_read
	jmp 1b
done reader
`;
/** Instructions of one round of it, and some more, with a site that calls a handler. */
const ROUND = 400;
const MOST_STEPS = 160;
const INT3 = 0xcc;

let userland: Userland;
let reader: Task;
let vcpu: Vcpu;
let other: Vcpu;
let spec: PatchSpec;
/** In the middle of its rounds, before any patch, and with one enabled. */
let before: Snapshot;
let enabled: Snapshot;
let patch: Patch;

beforeAll(async () => {
  userland = await Userland.open(PROGRAM, { vcpus: 2, recordCalls: true });
  const { lab } = userland;
  await lab.loadModule("copy", ["asm/read.S"]);
  const copy = lab.code.images.find(({ name }) => name === "copy")!;
  spec = {
    name: "fix",
    objects: [{ functions: [{ name: "vfs_read", replacement: copy.symbol("vfs_read").address }] }],
  };
  reader = userland.start("reader", 1n);
  userland.run(3_000);
  [vcpu, other] = lab.machine.vcpus as [Vcpu, Vcpu];
  expect(lab.kernel.current(vcpu)).toBe(reader);
  lab.kernel.agenda.live = true;
  before = lab.machine.snapshot();
  patch = lab.livepatch.enable(spec);
  finish();
  expect(lab.livepatch.transition).toBeUndefined();
  expect(patch.enabled).toBe(true);
  enabled = lab.machine.snapshot();
});

function universe(): Universe {
  const { kernel, livepatch, code, modules } = userland.lab;
  return new Universe({ kernel, livepatch, code, modules: () => modules.loaded });
}

/** All that a sweep does with the machine, one after another: what is found can be had again from that alone. */
type Deed =
  | { readonly execute: number; readonly instructions: number }
  | { readonly step: string }
  | { readonly clock: number }
  | { readonly ask: () => void }
  /** The reader is preempted for the idle task; or gets its CPU again. */
  | { readonly schedule: "away" | "back" }
  | { readonly look: Universe };

let trace: Deed[] = [];
/** What the last look has found. */
let wrong: string | undefined;

function perform(deed: Deed): void {
  trace.push(deed);
  const { kernel, livepatch } = userland.lab;
  if ("execute" in deed) executeOn(userland.lab.machine.vcpus[deed.execute]!, deed.instructions);
  else if ("step" in deed) kernel.agenda.step(deed.step);
  else if ("clock" in deed) kernel.clock = deed.clock;
  else if ("ask" in deed) deed.ask();
  else if ("look" in deed) wrong = deed.look.check();
  else if (deed.schedule === "away") {
    livepatch.tasks.setFlag(reader, THREAD_FLAG.TIF_NEED_RESCHED, true);
    kernel.setNext(vcpu, kernel.cpus[0]!.idle);
  } else {
    kernel.setNext(vcpu, reader);
    kernel.interrupt(0, VECTORS.TIMER_VECTOR);
  }
}

/** The first thing that does not hold. */
function check(look: Universe): string | undefined {
  perform({ look });
  return wrong;
}

const execute = (on: Vcpu, instructions: number) => perform({ execute: on.index, instructions });

function executeOn(on: Vcpu, instructions: number): void {
  const { kernel } = userland.lab;
  if (kernel.cpus[on.index]!.struct.getNumber("halted") !== 0) return;
  const exit = kernel.run(on, { budget: instructions });
  if (exit.kind === "halt") kernel.cpus[on.index]!.struct.set("halted", on.careful ? 0 : 1);
  else if (exit.kind !== "budget")
    expect.fail(exit.kind === "panic" ? exit.text : userland.lab.describe(exit));
}

/** One step of any strand that is ready; time goes on to what is due. */
function step(): boolean {
  const { agenda } = userland.lab.kernel;
  const { kernel } = userland.lab;
  const [ready] = agenda.ready();
  if (ready === undefined) {
    const { due } = agenda;
    if (due !== undefined && due > kernel.clock) perform({ clock: due });
    return false;
  }
  perform({ step: ready });
  return true;
}

/** All that is to be done, everybody running meanwhile. */
function finish(): void {
  const { agenda } = userland.lab.kernel;
  for (let n = 0; n < 5_000 && !agenda.isEmpty; n++) {
    if (!step()) for (const one of [vcpu, other]) execute(one, 50);
  }
  expect(agenda.pending.map(({ what }) => what)).toEqual([]);
}

/** Up to `most` steps, while the reader stands still but for what he is waited for. */
function stepsWithout(most: number): number {
  let [done, idle] = [0, 0];
  while (done < most && idle < 2_000) {
    if (step()) {
      done++;
      idle = 0;
    } else {
      execute(other, 50);
      if (idle++ > 4) execute(vcpu, 1);
    }
  }
  return done;
}

/** The reader goes on for two rounds, looked at after each instruction. */
function goOn(look: Universe): string | undefined {
  for (let n = 0; n < 2 * ROUND; n++) {
    execute(vcpu, 1);
    if (check(look) !== undefined) return wrong;
  }
  return undefined;
}

interface Sweep {
  readonly from: () => Snapshot;
  readonly ask: () => void;
  /** Where the reader is stopped, and after how many steps it goes on. */
  readonly stops: readonly number[];
  readonly steps: readonly number[];
  /** Steps before it goes on to where it is stopped; of one that is preempted, behind that. */
  readonly lead?: number;
  /** It is preempted where it is stopped, and comes back when the steps are done. */
  readonly preempted?: boolean;
  /** Not before it is in the handler, where preemption is off: so it is preempted at the handler's end. */
  readonly inHandler?: boolean;
}

/** Lets the reader go on to the handler; false if it does not come there soon. */
function reachHandler(): boolean {
  const { kernel, code } = userland.lab;
  for (let n = 0; n < ROUND; n++) {
    const isThere = code.symbolAt(vcpu.rip)?.symbol.name === "klp_ftrace_handler";
    if (isThere && kernel.cpus[0]!.struct.getNumber("preempt_count") !== 0) return true;
    execute(vcpu, 1);
  }
  return false;
}

const range = (to: number, by = 1) => Array.from({ length: Math.ceil(to / by) }, (_, n) => n * by);

/** Everything that is found wrong, by where the reader was stopped and for how many steps. */
function sweep(
  options: LivepatchOptions,
  { from, ask, stops, steps, lead, preempted, inHandler }: Sweep,
): string | undefined {
  const { lab } = userland;
  const { machine } = lab;
  for (const stop of stops) {
    for (const count of steps) {
      machine.restore(from());
      lab.livepatch.options = { retryEvery: 1000, ...options };
      trace = [];
      const look = universe();
      check(look);
      if (lead !== undefined && preempted !== true) {
        perform({ ask });
        stepsWithout(lead);
      }
      execute(vcpu, stop);
      if (lead === undefined || preempted === true) perform({ ask });
      if (preempted === true) {
        stepsWithout(lead ?? 0);
        if (inHandler === true && !reachHandler()) continue;
        perform({ schedule: "away" });
        for (let n = 0; n < 200 && reader.onCpu; n++) execute(vcpu, 5);
      }
      const done = stepsWithout(count);
      if (preempted === true) perform({ schedule: "back" });
      const found = check(look) ?? goOn(look);
      if (found !== undefined) {
        expect([found, machine.hash()]).toEqual(again(from()));
        return `stopped at ${stop}, ${done} steps: ${found}`;
      }
      if (done < count) break;
    }
  }
  return undefined;
}

/** What the trace comes to from its beginning: what is wrong, and the machine's hash. */
function again(from: Snapshot): readonly [string | undefined, bigint] {
  const deeds = [...trace];
  userland.lab.machine.restore(from);
  const look = universe();
  wrong = undefined;
  for (const deed of deeds) {
    expect(wrong).toBeUndefined();
    perform("look" in deed ? { look } : deed);
  }
  return [wrong, userland.lab.machine.hash()];
}

const enabling: Pick<Sweep, "from" | "ask"> = {
  from: () => before,
  ask: () => {
    userland.lab.livepatch.enable(spec);
  },
};
const disabling: Pick<Sweep, "from" | "ask"> = {
  from: () => enabled,
  ask: () => userland.lab.livepatch.disable(patch),
};
const STOPS = range(ROUND, 160);
const STEPS = range(MOST_STEPS);

describe("in the order that they have", () => {
  test.each([
    ["enabling", enabling],
    ["disabling", disabling],
  ])("%s a patch lets nobody run what he must not", (_, way) => {
    expect(sweep({}, { ...way, stops: STOPS, steps: range(MOST_STEPS, 4) })).toBeUndefined();
  });
});

test("a patch that is disabled while its site is being made a jump lets nobody either", () => {
  const { lab } = userland;
  lab.machine.restore(before);
  lab.livepatch.options = { retryEvery: 1000 };
  lab.livepatch.enable(spec);
  const isBeingWritten = () =>
    lab.ftrace.records.some(({ ip }) => lab.machine.memory.read(ip, 1)[0] === INT3);
  for (let n = 0; lab.livepatch.transition !== undefined || !isBeingWritten(); n++) {
    expect(n).toBeLessThan(1000);
    if (!step()) for (const one of [vcpu, other]) execute(one, 50);
  }
  const settling = lab.machine.snapshot();
  const from = () => settling;
  const ask = () => lab.livepatch.disable(lab.livepatch.patch(spec.name));
  expect(sweep({}, { from, ask, stops: STOPS, steps: range(MOST_STEPS, 2) })).toBeUndefined();
});

describe("turned round, it is noticed of", () => {
  const WAYS: Readonly<Record<Order, Pick<Sweep, "from" | "ask">>> = {
    "target-before-pending": enabling,
    // A function that is on no stack yet is in nobody's way.
    "states-before-transition": disabling,
    "transition-before-stack": enabling,
    "transition-before-pending": disabling,
  };
  test.each(Object.keys(ORDERS) as Order[])("%s", (order) => {
    expect(sweep({ weakened: [order] }, { ...WAYS[order], stops: STOPS, steps: STEPS })).toBeDefined();
  });
});

/** So many that nobody but the reader is waited for. */
const LEAD = 150;

describe("where the reader is stopped in the middle of a transition that then goes on as far as it can", () => {
  const everywhere = { stops: range(2 * ROUND, 1), steps: [2 * MOST_STEPS], lead: LEAD };
  const preempted = { ...everywhere, stops: range(ROUND, 2), preempted: true };

  test.each([
    ["enabling", enabling],
    ["disabling", disabling],
  ])("nothing is wrong when %s", (_, way) => {
    expect(sweep({}, { ...way, ...everywhere, stops: range(2 * ROUND, 7) })).toBeUndefined();
    expect(sweep({}, { ...way, ...preempted, stops: range(ROUND, 7) })).toBeUndefined();
  });

  test("a missing grace period is noticed", () => {
    expect(sweep({ weakened: ["grace-period"] }, { ...enabling, ...everywhere })).toMatch(
      /without a patch state/,
    );
  });

  const inHandler = { ...preempted, inHandler: true };

  // The one finds the traced function by its return address, the other in a frame that the trampoline has made.
  test.each([
    ["ORC", orcUnwinder],
    ["frame pointers", framePointerUnwinder],
  ])("what is pending in a trampoline is found in a walk by %s", (_, unwinder) => {
    expect(sweep({ unwinder }, { ...disabling, ...inHandler, stops: range(ROUND, 9) })).toBeUndefined();
  });

  test("so is a stack check that does not look at that, as upstream's", () => {
    expect(sweep({ weakened: ["pending-ip"] }, { ...disabling, ...inHandler })).toMatch(
      /is gone|replacement/,
    );
  });

  test("and one that passes over what was interrupted", () => {
    expect(sweep({ weakened: ["interrupted-frame"] }, { ...disabling, ...preempted })).toMatch(
      /is gone|replacement/,
    );
  });
});
