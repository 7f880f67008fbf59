// Random changes of who is called where, with four vCPUs calling all the while, against a simple model: nobody is missed, nobody is
// called twice or uncalled for, all are told the right site and caller, and one body runs. Nothing is left in the end.

import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Addr, offset } from "../../src/base/addr.ts";
import { hexBytes } from "../../src/base/bytes.ts";
import { Refusal } from "../../src/base/refuse.ts";
import type { TracedCall } from "../../src/ftrace/ftrace.ts";
import { Lab } from "../../src/lab.ts";
import type { CodeVisibility } from "../../src/machine/staleCode.ts";
import type { Vcpu } from "../../src/machine/vcpu.ts";
import { NO_GCC, partsWith } from "../kernel/compiled.ts";
import { chooser } from "../kernel/interleave.ts";
import {
  CALLS,
  type Caller,
  type Certainty,
  Checker,
  type Choose,
  DIRECTS,
  FIRST_OPS,
  mayBeFor,
  NOTE_WORDS,
  NOTES_SIZE,
  type Note,
  nameOf,
  source,
} from "./randomModel.ts";

const VCPUS = 4;
const MOST_CALLERS = 7;
const STRAND = "ftrace";

let folder: string;
let path: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "fentrylab-"));
  path = join(folder, "functions.S");
  writeFileSync(path, source());
});
afterAll(() => rmSync(folder, { recursive: true }));

/** A call that a vCPU is in. */
interface Flight {
  readonly index: number;
  readonly callers: Set<Caller>;
  /** Of whom, at which function, what is wanted has changed, or was not in effect yet when it began. */
  readonly open: Set<string>;
}

const pair = (caller: Caller, index: number) => `${caller.note} ${index}`;

class World {
  readonly lab: Lab;
  readonly counts = { calls: 0, changes: 0, refused: 0, either: 0, surely: 0 };
  private readonly choose: Choose;
  private readonly symbols = new Map<string, Addr>();
  private readonly flights = new Map<Vcpu, Flight | undefined>();
  private callers: Caller[] = [];
  /** Of those who were there, too, and may still be called. */
  private gone: Caller[] = [];
  private readonly open = new Set<string>();
  private nextNote = FIRST_OPS + DIRECTS;

  constructor(lab: Lab, choose: Choose) {
    this.lab = lab;
    this.choose = choose;
    lab.ftrace.poker.writer = "breakpoint";
  }

  /** One change, or call; then some of everybody's time. */
  step(): void {
    const action = this.choose(100);
    if (action < 50) this.call();
    else this.change(action);
    for (let n = this.choose(8); n > 0; n--) this.progress();
    // Now and then all that was asked for comes about, so that it is sure what happens.
    if (this.choose(25) === 0) while (this.isPending) this.progress();
  }

  private get isPending(): boolean {
    return this.lab.kernel.agenda.pending.some(({ strand }) => strand === STRAND);
  }

  /** Ends all calls, and everything that is to be done. */
  drain(): void {
    for (let n = 0; n < 100_000; n++) {
      const { agenda } = this.lab.kernel;
      if (agenda.isEmpty && [...this.flights.values()].every((flight) => flight === undefined)) return;
      this.progress();
    }
    const waits = this.lab.kernel.agenda.pending.map(({ what }) => what);
    expect.fail(`it does not come to an end: ${waits.join(", ")}`);
  }

  removeAll(): void {
    this.lab.ftrace.enabled = true;
    for (const caller of [...this.callers]) this.remove(caller);
  }

  private call(): void {
    const free = this.lab.machine.vcpus.filter((vcpu) => !this.flights.has(vcpu));
    if (free.length === 0) {
      this.progress();
      return;
    }
    this.settleOpen();
    const vcpu = free[this.choose(free.length)]!;
    const index = this.choose(CALLS.length);
    this.begin(vcpu, "drive", [BigInt(++this.counts.calls), BigInt(this.symbol(nameOf(index)))]);
    const callers = new Set([...this.callers, ...this.gone]);
    this.flights.set(vcpu, { index, callers, open: new Set(this.open) });
  }

  private begin(vcpu: Vcpu, name: string, args: readonly bigint[]): void {
    this.lab.begin(this.symbol(name), args, { vcpu, task: this.lab.kernel.tasks[vcpu.index]! });
  }

  /** A vCPU executes something, or the agenda goes on. */
  private progress(): void {
    const { machine, kernel } = this.lab;
    const strands = kernel.agenda.ready();
    const which = this.choose(VCPUS + strands.length);
    const strand = strands[which - VCPUS];
    if (strand !== undefined) {
      kernel.agenda.step(strand);
      return;
    }
    const vcpu = machine.vcpus[which]!;
    if (!this.flights.has(vcpu)) {
      this.begin(vcpu, "wait_a_little", []);
      this.flights.set(vcpu, undefined);
    }
    if (this.choose(100) === 0) kernel.nmi(which);
    const exit = kernel.run(vcpu, { budget: 1 + this.choose(this.choose(4) === 0 ? 400 : 40) });
    if (exit.kind === "budget") return;
    if (exit.kind === "panic" || !kernel.returned(exit))
      expect.fail(exit.kind === "panic" ? exit.text : this.lab.describe(exit));
    const flight = this.flights.get(vcpu);
    this.flights.delete(vcpu);
    if (flight !== undefined) this.land(vcpu, flight);
  }

  private land(vcpu: Vcpu, { index, callers, open }: Flight): void {
    const certainty = (caller: Caller, at: number): Certainty => {
      if (open.has(pair(caller, at))) {
        this.counts.either++;
        return "either";
      }
      this.counts.surely++;
      return this.isWanted(caller, at) ? "called" : "not called";
    };
    const notes = this.takeNotes(vcpu);
    const wrong = new Checker(notes, [...callers], certainty, (name) => this.symbol(name)).check(index);
    if (wrong !== undefined) expect.fail(`call ${this.counts.calls}, of ${nameOf(index)}: ${wrong}`);
  }

  private isWanted(caller: Caller, index: number): boolean {
    return this.lab.ftrace.enabled && caller.registered && caller.wants.has(index);
  }

  private takeNotes({ index }: Vcpu): Note[] {
    const { memory } = this.lab.machine;
    const cursor = offset(this.symbol("cursors"), 8 * index);
    const from = offset(this.symbol("notes"), NOTES_SIZE * index);
    const size = memory.readNumber(cursor)!;
    const word = (at: number) => memory.readNumber(offset(from, at)) as Addr;
    const notes: Note[] = [];
    for (let at = 0; at < size; at += 8 * NOTE_WORDS)
      notes.push({ who: word(at), ip: word(at + 8), parent: word(at + 16) });
    memory.writeWord(cursor, 0n);
    return notes;
  }

  /** What a handler in TypeScript does: the same as those in guest code. */
  private note({ ip, parentIp, regs }: TracedCall, who: number): void {
    const { memory } = this.lab.machine;
    const vcpu = this.lab.machine.vcpus.find(
      (one) => this.flights.get(one) !== undefined && this.isIn(one, regs.at),
    );
    if (vcpu === undefined) expect.fail("a handler is called by nobody");
    const cursor = offset(this.symbol("cursors"), 8 * vcpu.index);
    const at = memory.readNumber(cursor)!;
    const from = offset(this.symbol("notes"), NOTES_SIZE * vcpu.index + at);
    for (const [n, word] of [who, ip, parentIp, regs.getNumber("di")].entries())
      memory.writeWord(offset(from, 8 * n), BigInt.asUintN(64, BigInt(word)));
    memory.writeWord(cursor, BigInt(at + 8 * NOTE_WORDS));
  }

  private isIn(vcpu: Vcpu, at: Addr): boolean {
    const stack = this.lab.kernel.current(vcpu)?.stack;
    return stack !== undefined && at >= stack.low && at < stack.high;
  }

  // ---- Changes.

  private change(action: number): void {
    this.settleOpen();
    this.counts.changes++;
    const caller = this.callers[this.choose(Math.max(1, this.callers.length))];
    if (caller === undefined || (action < 62 && this.callers.length < MOST_CALLERS)) this.add();
    else if (action < 70) this.remove(caller);
    else if (action < 78) this.enable(caller);
    else if (action < 86) this.disable(caller);
    else if (action < 96) this.filter(caller);
    else if (action < 99) this.settle(caller);
    else this.alter([...this.callers], () => (this.lab.ftrace.enabled = !this.lab.ftrace.enabled));
  }

  private add(): void {
    const { ftrace } = this.lab;
    const flag = () => this.choose(2) === 0;
    const kinds = ["guest", "guest", "typescript", "direct", "ipmodify"] as const;
    const kind = kinds[this.choose(kinds.length)]!;
    const slot = [0, 1].find(
      (n) => ![...this.callers, ...this.gone].some(({ note }) => note === FIRST_OPS + n),
    );
    if (kind === "direct" && slot === undefined) return;
    const note = kind === "direct" ? FIRST_OPS + slot! : this.nextNote++;
    const name = `${kind} ${note}`;
    const sharesIpmodify = kind === "direct" && flag();
    const options = { name, saveRegs: flag(), recursion: flag() };
    const wants = this.someFunctions(kind === "ipmodify" ? 1 : 3);
    const make = () => {
      switch (kind) {
        case "direct":
          this.lab.machine.memory.writeWord(this.symbol(`direct${slot}_note`), BigInt(note));
          return ftrace.makeDirect({ name, target: this.symbol(`direct${slot}`), sharesIpmodify });
        case "guest":
          return ftrace.makeOps({ ...options, handler: this.symbol("note_handler"), own: note });
        case "typescript":
          return ftrace.makeOps({ ...options, handler: (call) => this.note(call, note) });
        case "ipmodify":
          return ftrace.makeOps({ ...options, ipmodify: true, handler: (call) => this.goOn(call) });
      }
    };
    const caller: Caller = { ops: make(), note, kind, sharesIpmodify, wants, registered: false };
    ftrace.setFilter(caller.ops, this.patterns(wants));
    this.callers.push(caller);
    this.enable(caller);
  }

  /** Goes on at the other body. */
  private goOn({ ip, regs }: TracedCall): void {
    const index = CALLS.findIndex((_, n) => this.symbol(nameOf(n)) === ip);
    regs.set("ip", this.symbol(nameOf(index, "new")));
  }

  private remove(caller: Caller): void {
    this.disable(caller);
    this.lab.ftrace.release(caller.ops);
    this.callers = this.callers.filter((other) => other !== caller);
    this.gone.push(caller);
  }

  private enable(caller: Caller): void {
    if (caller.registered) return;
    this.expectRefusal(!mayBeFor(caller, caller.wants, this.callers), () =>
      this.alter([caller], () => {
        this.lab.ftrace.register(caller.ops);
        caller.registered = true;
      }),
    );
  }

  private disable(caller: Caller): void {
    if (!caller.registered) return;
    this.alter([caller], () => {
      this.lab.ftrace.unregister(caller.ops);
      caller.registered = false;
    });
  }

  private filter(caller: Caller): void {
    const wants = this.someFunctions(caller.kind === "ipmodify" ? 1 : 3);
    // What is settled is settled for the one function that it is for.
    if (caller.kind === "ipmodify") this.alter([caller], () => this.lab.ftrace.settle(caller.ops, undefined));
    const refused = caller.registered && !mayBeFor(caller, wants, this.callers);
    this.expectRefusal(refused, () =>
      this.alter([caller], () => {
        this.lab.ftrace.setFilter(caller.ops, this.patterns(wants));
        caller.wants = wants;
      }),
    );
  }

  /** Its site jumps to where its handler would go on, or does not any more. */
  private settle(caller: Caller): void {
    if (caller.kind !== "ipmodify") return;
    const [index] = caller.wants;
    const to = this.choose(2) === 0 ? this.symbol(nameOf(index!, "new")) : undefined;
    this.lab.ftrace.settle(caller.ops, to);
  }

  private expectRefusal(refused: boolean, act: () => void): void {
    if (refused) {
      this.counts.refused++;
      expect(act).toThrow(Refusal);
    } else {
      act();
    }
  }

  /** Changes what is wanted of `callers`: where that differs, it is open from now on what happens. */
  private alter(callers: readonly Caller[], act: () => void): void {
    const pairs = callers.flatMap((caller) => CALLS.map((_, index) => ({ caller, index })));
    // Whoever comes while the switch is being turned off may still be called, with those who were there.
    const told = () =>
      pairs.map(({ caller, index }) => [
        this.lab.ftrace.enabled,
        caller.registered && caller.wants.has(index),
      ]);
    const before = told();
    act();
    const after = told();
    for (const [n, { caller, index }] of pairs.entries()) {
      if (after[n]!.every((is, k) => is === before[n]![k])) continue;
      this.open.add(pair(caller, index));
      for (const flight of this.flights.values()) {
        flight?.open.add(pair(caller, index));
        flight?.callers.add(caller);
      }
    }
  }

  /** Once everything that was asked for is done, nothing is open for calls to come. */
  private settleOpen(): void {
    if (this.isPending) return;
    this.open.clear();
    this.gone = this.gone.filter((caller) =>
      [...this.flights.values()].some((flight) => flight?.callers.has(caller)),
    );
  }

  private someFunctions(most: number): ReadonlySet<number> {
    return new Set(Array.from({ length: 1 + this.choose(most) }, () => this.choose(CALLS.length)));
  }

  private patterns(wants: ReadonlySet<number>): string[] {
    return [...wants].map((index) => nameOf(index));
  }

  private symbol(name: string): Addr {
    const known = this.symbols.get(name) ?? this.lab.symbol(name).address;
    this.symbols.set(name, known);
    return known;
  }
}

interface Options {
  readonly code?: CodeVisibility;
  readonly parts?: ReadonlyMap<string, Uint8Array>;
}

async function open(options: Options): Promise<Lab> {
  const lab = await Lab.open({ vcpus: VCPUS, ...options });
  await lab.loadModule("functions", [path]);
  for (const vcpu of lab.machine.vcpus) vcpu.serialise();
  return lab;
}

/** Everything that text can tell. */
function textOf(lab: Lab): string {
  return lab.code.images
    .flatMap(({ segments }) => segments.filter(({ execute }) => execute))
    .map(({ address, size }) => hexBytes(lab.machine.memory.read(address, size)))
    .join();
}

async function runSeed(seed: number, steps: number, options: Options = {}): Promise<World["counts"]> {
  const lab = await open(options);
  try {
    const before = textOf(lab);
    const world = new World(lab, chooser(seed));
    lab.kernel.agenda.live = true;
    while (world.counts.calls + world.counts.changes < steps) world.step();
    world.drain();
    world.removeAll();
    world.drain();
    expect(textOf(lab)).toBe(before);
    expect(lab.code.ranges.filter(({ kind }) => kind === "trampoline")).toEqual([]);
    expect(lab.ftrace.registered).toEqual([]);
    return world.counts;
  } finally {
    lab.dispose();
  }
}

describe("while four vCPUs call", () => {
  test("a hundred thousand changes and calls: who is called, with what, and what runs is as the model says", async () => {
    const total = { calls: 0, changes: 0, refused: 0, either: 0, surely: 0 };
    for (let seed = 1; seed <= 10; seed++) {
      const counts = await runSeed(seed, 10_000);
      for (const key of Object.keys(total) as (keyof typeof total)[]) total[key] += counts[key];
    }
    expect(total.calls + total.changes).toBeGreaterThanOrEqual(100_000);
    expect(total.calls).toBeGreaterThan(30_000);
    expect(total.refused).toBeGreaterThan(500);
    expect(Math.min(total.either, total.surely)).toBeGreaterThan(100_000);
  }, 400_000); // a minute and a half, where nothing else runs

  test("and see what they like of text until they serialise", async () => {
    const choose = chooser(77);
    let contested = 0;
    const code: CodeVisibility = {
      kind: "stale-until-serialised",
      choose: ({ versions }) => {
        contested++;
        return choose(versions.length);
      },
      mixed: ({ text }) => expect.fail(`torn: ${text}`),
    };
    await runSeed(11, 2_000, { code });
    expect(contested).toBeGreaterThan(20);
  });
});

/** Each of what takes part in a call, in guest code, done wrong. */
const DEFECTS = [
  {
    name: "the list function calls whoever is registered",
    before: "if (hash_contains_ip(READ_ONCE(ops->hash), ip))",
    after: "if (ip)",
    found: /was called$/,
  },
  {
    name: "the list function goes to the first ops only",
    before: "ops; ops = READ_ONCE(ops->next))",
    after: "ops; ops = NULL)",
    found: /was not called$/,
  },
  {
    name: "a breakpoint where a call is being written is a NOP",
    before: "regs->sp -= 8;\n\t\t\t*(u64 *)regs->sp = next;\n\t\t\tregs->ip = poke->target;",
    after: "regs->ip = next;",
    found: /was not called$/,
  },
  {
    name: "a breakpoint's call returns to the site",
    before: "*(u64 *)regs->sp = next;",
    after: "*(u64 *)regs->sp = next - 1;",
    found: /exception_handler/,
  },
  {
    name: "a guard is not let go of",
    before:
      "return;\n\t((ftrace_func_t)ops->func)(ip, parent_ip, ops, regs);\n\tftrace_test_recursion_unlock(self, bit);",
    after:
      "return;\n\t((ftrace_func_t)ops->func)(ip, parent_ip, ops, regs);\n\tftrace_test_recursion_unlock(self, 0);",
    found: /was not called$/,
  },
];

describe.skipIf(NO_GCC !== undefined)("the model notices that", () => {
  test.for(DEFECTS)("$name", async ({ before, after, found }) => {
    const parts = partsWith({ file: "kernel/ftrace.c", before, after });
    await expect(runSeed(1, 3_000, { parts })).rejects.toThrow(found);
  });
});
