// Stacks of the laboratory, corrupted: no walk of one claims to be reliable unless it is right all the same, and every one
// ends. What cannot be told is kept out by corruption.ts, which says what that is.

import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { type Addr, addr, hex, offset } from "../../src/base/addr.ts";
import { Subject } from "../../src/explore/subject.ts";
import { whereTo } from "../../src/explore/truth.ts";
import type { FtraceOps } from "../../src/ftrace/ftrace.ts";
import type { Task } from "../../src/kernel/kernel.ts";
import { VECTORS } from "../../src/kernel/layout.ts";
import { liveStart } from "../../src/kernel/unwindContext.ts";
import { Lab } from "../../src/lab.ts";
import { NMI_COPY } from "../../src/machine/ptRegs.ts";
import type { Snapshot } from "../../src/machine/snapshot.ts";
import type { Vcpu } from "../../src/machine/vcpu.ts";
import { framePointerUnwinder } from "../../src/unwind/framePointer.ts";
import { guessUnwinder } from "../../src/unwind/guess.ts";
import { orcUnwinder } from "../../src/unwind/orcWalker.ts";
import { HARDWARE_FRAME_SIZE, isBeginning } from "../../src/unwind/savedRegisters.ts";
import {
  MAX_ENTRIES,
  type Start,
  type UnwindContext,
  type Unwinder,
  type Walk,
} from "../../src/unwind/walk.ts";
import { decode, MAX_LENGTH, Mnemonic } from "../../src/x86/decode.ts";
import { chooser } from "../kernel/interleave.ts";
import { Corruption, type Landmarks } from "./corruption.ts";
import { WatchedContext } from "./watchedContext.ts";

const UNWINDERS = [orcUnwinder, framePointerUnwinder, guessUnwinder];
/** Of every frame, no more than its address, two registers and what the hardware saved are read, twice at most. */
const MOST_READS = 12 * MAX_ENTRIES;
/** The guessing walker reads every word of at most three stacks. */
const GUESSED_READS = 3 * 2048 + MOST_READS;

/** ip, cs, flags, sp, ss. */
const USER_FRAME = [0x401000n, 0x33n, 0x202n, 0x7fff_f000n, 0x2bn];

let lab: Lab;
let subject: Subject;
let folder: string;
/** By unwinder. */
let landmarksOf: Readonly<Record<string, Landmarks>>;
let hooks: readonly FtraceOps[];

beforeAll(async () => {
  lab = await Lab.open({ recordCalls: true });
  folder = mkdtempSync(join(tmpdir(), "fentrylab-"));
  const source = join(folder, "deep.S");
  // void deep(long n): n calls of itself, then a nap; the odd ones without a frame pointer
  writeFileSync(
    source,
    `.include "macros.inc"
     .text
     traced deep
	test %rdi, %rdi
	jnz 1f
	jmp nap
     1:	test $1, %dil
	jnz 2f
	frame_begin
	push %rbx
	sub $24, %rsp
	dec %rdi
	call deep
	add $24, %rsp
	pop %rbx
	frame_end
	ret
     2:	push %r15
	dec %rdi
	call deep
	pop %r15
	ret
     done deep
     # the same with frame pointers throughout
     traced deep_framed
	frame_begin
	test %rdi, %rdi
	jnz 1f
	call nap
	jmp 2f
     1:	dec %rdi
	push %rdi
	push %rdi
	call deep_framed
	add $16, %rsp
     2:	frame_end
	ret
     done deep_framed`,
  );
  await lab.loadModule("deep", [source]);
  const { machine, kernel, ftrace } = lab;
  subject = new Subject({ machine, kernel, ftrace, unwinding: lab.unwinding });
  const at = (name: string) => lab.symbol(name).address;
  const { address, size } = lab.image.segments.find(({ execute }) => execute)!;
  const outside = [offset(address, -1), offset(address, size), at("read_buffer"), addr(0x401000)];
  const replaced = [at("return_to_handler"), at("rethook_trampoline")];
  const ends = [
    offset(at("lab_call"), 4),
    at("lab_call"),
    behindCall("ret_from_kthread", 2),
    at("ret_from_kthread"),
  ];
  const starts = [at("ret_from_kthread"), at("ret_from_fork")];
  landmarksOf = {
    orc: { ends, unknown: [...replaced, offset(at("return_to_handler"), 9)], starts, outside },
    // Any address of code is one of a caller's to them.
    frame: { ends: [], unknown: replaced, starts, outside },
    guess: { ends, unknown: replaced, starts, outside },
  };
  hooks = ["return_to_handler", "rethook_trampoline"].map((name) =>
    ftrace.makeOps({ name, handler: at("return_hook_handler"), own: at(name) }),
  );
});
/** Where the n-th call in a function returns to. */
function behindCall(name: string, n: number): Addr {
  const { address, size } = lab.symbol(name);
  for (let [at, calls] = [address, 0]; at < address + size; ) {
    const decoded = decode(lab.machine.memory.read(at, MAX_LENGTH), at);
    if (decoded.kind !== "instruction") break;
    at = decoded.instruction.next;
    if (decoded.instruction.mnemonic === Mnemonic.Call && ++calls === n) return at;
  }
  throw new Error(`${name} has no ${n} calls`);
}

/** The state that every test begins in. */
let fresh: Snapshot;
beforeAll(() => {
  fresh = lab.machine.snapshot();
});
beforeEach(() => lab.machine.restore(fresh));
afterAll(() => rmSync(folder, { recursive: true }));

/** One stack to corrupt: how its walk begins, which may be read from the stack itself. */
interface Subjected {
  readonly name: string;
  readonly context: UnwindContext;
  readonly start: () => Start;
  /** Words that `start` reads. */
  readonly read: readonly Addr[];
  readonly sp: Addr;
}

interface Tally {
  corruptions: number;
  reliable: number;
  unharmed: number;
  stacks: number;
  soundStacks: number;
}

const tally: Record<string, Tally> = Object.fromEntries(
  UNWINDERS.map(({ name }) => [
    name,
    { corruptions: 0, reliable: 0, unharmed: 0, stacks: 0, soundStacks: 0 },
  ]),
);

function sameFrames(walk: Walk, expected: readonly { slot: Addr; to: Addr | undefined }[]): boolean {
  return (
    walk.frames.length === expected.length &&
    walk.frames.every(({ slot, address }, n) => slot === expected[n]!.slot && address === expected[n]!.to)
  );
}

/** Corrupts every word that `unwinder` goes by, in every way, one at a time; then many at once, `rounds` times. */
function corrupt(
  unwinder: Unwinder,
  stack: Subjected,
  choose: (limit: number) => number,
  rounds: number,
): void {
  const { memory } = lab.machine;
  // An NMI's entry code has copied its frame: that is what walks go by.
  const truth = lab.machine
    .trueChain(stack.sp)
    .map((frame) =>
      frame.kind === "interrupt" && frame.vector === VECTORS.NMI_VECTOR
        ? { ...frame, slot: offset(frame.slot, -NMI_COPY) }
        : frame,
    );
  const expected = truth.map((frame) => ({ slot: frame.slot, to: whereTo(frame, subject) }));
  const most = unwinder === guessUnwinder ? GUESSED_READS : MOST_READS;
  const count = tally[unwinder.name]!;
  const watched = new WatchedContext(stack.context);
  const sound = unwinder.walk(watched, stack.start());
  expect(watched.reads, stack.name).toBeLessThanOrEqual(most);
  count.stacks++;
  if (sound.doubt === null) {
    if (!sameFrames(sound, expected)) expect.fail(`${unwinder.name} is wrong of ${stack.name} as it is`);
    count.soundStacks++;
  }
  const { rules } = watched;
  const { context } = stack;
  const landmarks = landmarksOf[unwinder.name]!;
  const corruption = new Corruption({
    ...{ memory, context, truth, rules, landmarks, choose },
    switchedOut: stack.start().from === "switched-out",
  });

  const judge = (what: () => string) => {
    count.corruptions++;
    const watched = new WatchedContext(context);
    const walk = unwinder.walk(watched, stack.start());
    if (watched.reads > most) expect.fail(`${watched.reads} reads: ${stack.name}, ${what()}`);
    if (walk.doubt !== null) return;
    count.reliable++;
    if (sameFrames(walk, expected)) count.unharmed++;
    else {
      const found = walk.frames.map(({ slot, address }) => `${hex(slot)} ${lab.code.describe(address)}`);
      const real = expected.map(({ slot, to }) => `${hex(slot)} ${to && lab.code.describe(to)}`);
      expect.fail(
        `${unwinder.name}: ${stack.name}, ${what()}\nfound\n${found.join("\n")}\ntrue\n${real.join("\n")}`,
      );
    }
  };

  const words = [...new Set([...watched.words, ...stack.read])].filter((at) => memory.isMapped(at, 8));
  // The guessing walker reads them all: those of the true frames will do.
  const chosen = unwinder === guessUnwinder ? truth.map(({ slot }) => slot) : words;
  for (const at of chosen) {
    const before = memory.readWord(at);
    for (const value of corruption.values(at)) {
      memory.writeWord(at, value);
      judge(
        () => `${corruption.role(at)} at ${hex(at)}: ${before.toString(16)} became ${value.toString(16)}`,
      );
    }
    memory.writeWord(at, before);
  }
  // Registers of user mode, whole, where kernel code was interrupted within a stack.
  for (const { kind, slot } of truth) {
    const onOwnStack = context.stackAt(slot)?.kind === "exception";
    if (kind === "call" || onOwnStack || isBeginning(context, offset(slot, HARDWARE_FRAME_SIZE))) continue;
    const before = memory.read(slot, HARDWARE_FRAME_SIZE);
    for (const [n, word] of USER_FRAME.entries()) memory.writeWord(offset(slot, 8 * n), word);
    judge(() => `registers of user mode at ${hex(slot)}`);
    memory.write(slot, before);
  }
  for (let round = 0; round < rounds && words.length > 0; round++) {
    const from = words[choose(words.length)]!;
    const hit = round % 2 === 0 ? words.filter(() => choose(3) === 0) : wordsFrom(from, 1 + choose(40));
    const before = hit.map((at) => memory.readWord(at));
    for (const [n, at] of hit.entries()) {
      const garbage = corruption.garbage(before[n]!);
      // Swept over with one word, or each another.
      const word = round % 4 === 1 ? 0n : garbage[choose(garbage.length)]!;
      memory.writeWord(at, word);
    }
    judge(() => `${hit.length} words from ${hex(hit[0] ?? from)}`);
    for (const [n, at] of hit.entries()) memory.writeWord(at, before[n]!);
  }
}

function wordsFrom(from: Addr, count: number): Addr[] {
  return Array.from({ length: count }, (_, n) => offset(from, 8 * n)).filter((at) =>
    lab.machine.memory.isMapped(at, 8),
  );
}

function ofCpu(name: string, vcpu: Vcpu): Subjected {
  const start = liveStart(vcpu);
  return {
    name: `${name} at ${lab.code.describe(vcpu.rip)}`,
    context: subject.contextOfCpu(vcpu),
    start: () => start,
    read: [],
    sp: vcpu.rsp,
  };
}

function ofTask(name: string, task: Task): Subjected {
  const { kernel } = lab;
  const start = kernel.startOf(task)!;
  const slot = start.from === "switched-out" ? start.slot : start.sp;
  return {
    name: `${name}, switched out`,
    context: kernel.unwindContext(task, lab.unwinding),
    start: () => kernel.startOf(task)!,
    read: start.from === "switched-out" ? [slot, offset(slot, -8)] : [],
    sp: slot,
  };
}

/** Turns every site on for as long as `act` runs. */
function withSites(ops: FtraceOps | undefined, act: () => void): void {
  if (ops !== undefined) lab.ftrace.register(ops);
  try {
    act();
  } finally {
    if (ops !== undefined) lab.ftrace.unregister(ops);
  }
}

function everyUnwinder(
  stack: Subjected,
  choose: (limit: number) => number,
  rounds = 30,
  unwinders: readonly Unwinder[] = UNWINDERS,
): void {
  for (const unwinder of unwinders) corrupt(unwinder, stack, choose, rounds);
}

describe("a task that sleeps", () => {
  const DEPTHS = [0, 1, 2, 5, 20];

  test.each(["deep", "deep_framed"])(
    "in %s, at several depths, its return addresses replaced or not",
    (name) => {
      const choose = chooser(1);
      for (const ops of [undefined, ...hooks]) {
        for (const depth of DEPTHS) {
          withSites(ops, () => {
            const vcpu = lab.begin(lab.symbol(name).address, [BigInt(depth)]);
            subject.idleNext(vcpu);
            expect(lab.kernel.run(vcpu, { budget: 100_000 })).toMatchObject({ kind: "halt" });
            const [task] = subject.switchedOut();
            // Frame pointers say nothing of functions that have none.
            const unwinders = name === "deep" ? UNWINDERS.filter(({ name }) => name !== "frame") : UNWINDERS;
            everyUnwinder(ofTask(`${name} ${depth}`, task!), choose, 30, unwinders);
            everyUnwinder(ofCpu("the idle task", vcpu), choose, 5);
            subject.switchTo(vcpu, task!);
            lab.finish(vcpu);
          });
        }
      }
    },
  );

  test("deeper than a trace is long, it is never reliable, harmed or not", () => {
    const choose = chooser(2);
    for (const depth of [94, 120]) {
      const vcpu = lab.begin(lab.symbol("deep").address, [BigInt(depth)]);
      subject.idleNext(vcpu);
      lab.kernel.run(vcpu, { budget: 100_000 });
      const [task] = subject.switchedOut();
      const stack = ofTask(`deep ${depth}`, task!);
      const { frames, doubt } = orcUnwinder.walk(stack.context, stack.start());
      expect([frames.length, doubt?.why ?? null]).toEqual(
        depth === 94 ? [98, null] : [MAX_ENTRIES, "too-deep"],
      );
      corrupt(orcUnwinder, stack, choose, 10);
      subject.switchTo(vcpu, task!);
      lab.finish(vcpu);
    }
  });

  test("that was never run", () => {
    const task = lab.kernel.createTask({ function: lab.symbol("leaf").address });
    everyUnwinder(ofTask("a new task", task), chooser(3));
  });
});

describe("between two instructions", () => {
  /** Steps `name`, and takes some of its boundaries; `visit` may leave anything behind, but for memory. */
  function some(
    name: string,
    args: bigint[],
    choose: (limit: number) => number,
    one: number,
    visit: (vcpu: Vcpu) => void,
  ) {
    const { machine } = lab;
    const vcpu = lab.begin(lab.symbol(name).address, args);
    for (let n = 0; n < 10_000; n++) {
      if (choose(one) === 0) {
        const before = machine.snapshot();
        visit(vcpu);
        machine.restore(before);
        before.dispose();
      }
      const exit = vcpu.step();
      if (exit === undefined || subject.skipException(vcpu, exit)) continue;
      return expect(lab.kernel.returned(exit)).toBe(true);
    }
  }

  const CALLS: readonly [string, ...bigint[]][] = [
    ["loop", 2n],
    ["sys_read", 2n, 0n, 1n],
    ["tail", 3n],
    ["fault_page"],
  ];

  test.each([0, 1, 2])("at rest, preempted, and from inside an NMI, with sites in state %i", (state) => {
    const choose = chooser(4 + state);
    withSites([undefined, ...hooks][state], () => {
      for (const [name, ...args] of CALLS) {
        some(name, args, choose, state === 0 ? 6 : 40, (vcpu) => {
          everyUnwinder(ofCpu(name, vcpu), choose, 10);
          const task = subject.preempt(vcpu);
          if (task !== undefined) everyUnwinder(ofTask(name, task), choose, 10);
          else if (subject.enterNmi(vcpu)) everyUnwinder(ofCpu(`an NMI in ${name}`, vcpu), choose, 10);
        });
      }
    });
  });

  test("on an interrupt's stack, and in an NMI there", () => {
    const choose = chooser(8);
    some("loop", [2n], choose, 12, (vcpu) => {
      const [timer] = subject.interrupts(vcpu);
      timer!.request();
      const from = vcpu.rip;
      vcpu.step();
      for (let n = 0; n < 1000 && vcpu.rip !== from; n++, vcpu.step()) {
        if (choose(10) !== 0) continue;
        everyUnwinder(ofCpu("an interrupt", vcpu), choose, 10);
        const before = lab.machine.snapshot();
        if (subject.enterNmi(vcpu)) everyUnwinder(ofCpu("an NMI in an interrupt", vcpu), choose, 10);
        lab.machine.restore(before);
        before.dispose();
      }
    });
  });
});

test("that was more than a hundred thousand corruptions, of stacks that were right, and hardly any did no harm", () => {
  const total = Object.values(tally).reduce((sum, { corruptions }) => sum + corruptions, 0);
  expect(total).toBeGreaterThan(100_000);
  expect(tally.orc!.corruptions).toBeGreaterThan(50_000);
  expect(tally.orc!.soundStacks).toBeGreaterThan(100);
  expect(tally.frame!.soundStacks).toBeGreaterThan(10);
  expect(tally.guess!.reliable).toBe(0);
});
