// What walking stacks costs: `benchUnwind`.
//
// A loop over a redirected call, on the laboratory's kernel: frames per second for each walker, boundaries audited per
// second at rest and preempted. Beside it, where there is one, native Unicorn doing the same work at rest: step, read
// the registers, walk by the same walker over Unicorn's memory, compare with the truth that was recorded here.

import { cpus } from "node:os";
import { type Addr, PAGE_SIZE } from "../src/base/addr.ts";
import { bug } from "../src/base/refuse.ts";
import { Audit, type AuditOptions, type Workload } from "../src/explore/audit.ts";
import { Subject } from "../src/explore/subject.ts";
import { whereTo } from "../src/explore/truth.ts";
import { liveStart } from "../src/kernel/unwindContext.ts";
import { Lab } from "../src/lab.ts";
import type { Missing } from "../src/reference/reference.ts";
import { loadUnicorn, PROT, type Unicorn, type UnicornEngine } from "../src/reference/unicornLibrary.ts";
import { framePointerUnwinder } from "../src/unwind/framePointer.ts";
import { guessUnwinder } from "../src/unwind/guess.ts";
import { orcUnwinder } from "../src/unwind/orcWalker.ts";
import type { Start, UnwindContext, Unwinder } from "../src/unwind/walk.ts";
import { GPR } from "../src/x86/register.ts";
import { type Act, countSamples, type Progress, type Spread, sampleInTurns, spread } from "./spread.ts";

const WALKERS: readonly Unwinder[] = [orcUnwinder, framePointerUnwinder, guessUnwinder];
/** Calls in the loop: each some seventy instructions, half of them in the trampoline. */
const CALLS = 40n;
/** Where walkers are timed: in the handler, four frames deep. */
const DEEP = "klp_ftrace_handler";

export interface UnwindBenchOptions {
  /** Samples of everything; default 9. */
  readonly rounds?: number;
  /** How long a sample takes, at least; default 100. */
  readonly milliseconds?: number;
  /** Default: the one that is installed. */
  readonly unicorn?: Unicorn | Missing;
  readonly progress?: Progress;
}

export interface UnwindReport {
  readonly machine: { readonly node: string; readonly cpu: string; readonly rounds: number };
  readonly unicorn: { readonly version: string } | Missing;
  /** For each walker from the same place. */
  readonly framesPerSecond: Readonly<Record<string, Spread>>;
  /** With the ORC walker. */
  readonly boundariesPerSecond: { readonly atRest: Spread; readonly preempted: Spread };
  /** The same at rest with Unicorn, and how many times that is done here; absent where it is missing. */
  readonly peer?: { readonly atRest: Spread; readonly ratio: Spread };
}

/** Measures for some seconds. */
export async function benchUnwind(options: UnwindBenchOptions = {}): Promise<UnwindReport> {
  const { rounds = 9, milliseconds = 100, progress = () => {} } = options;
  const unicorn = options.unicorn ?? (await loadUnicorn());
  const bench = await Bench.open();
  const peer = "missing" in unicorn ? undefined : new UnicornBench(bench, unicorn.open());
  const acts: readonly Act[] = [
    ...WALKERS.map((walker) => ({ what: walker.name, once: () => bench.walk(walker) })),
    { what: "at rest", once: () => bench.audit({ atRest: true, preempted: false }) },
    { what: "preempted", once: () => bench.audit({ atRest: false, preempted: true }) },
    ...(peer === undefined ? [] : [{ what: "at rest in Unicorn", once: () => peer.audit() }]),
  ];
  const sampling = { rounds, milliseconds };
  try {
    let done = 0;
    const total = countSamples(acts.length, sampling);
    const samples = sampleInTurns(acts, sampling, (what) => progress(++done, total, what));
    const rates = samples.map((rounds) => rounds.map((perMillisecond) => 1000 * perMillisecond));
    const [atRest, preempted, peerAtRest] = rates
      .slice(WALKERS.length)
      .map((each) => each.map((rate) => rate * bench.boundaries));
    return {
      machine: { node: process.versions.node, cpu: cpus()[0]?.model ?? "unknown CPU", rounds },
      unicorn: "missing" in unicorn ? unicorn : { version: unicorn.version },
      framesPerSecond: Object.fromEntries(
        WALKERS.map((walker, n) => [
          walker.name,
          spread(rates[n]!.map((rate) => rate * bench.frames(walker))),
        ]),
      ),
      boundariesPerSecond: { atRest: spread(atRest!), preempted: spread(preempted!) },
      ...(peerAtRest === undefined
        ? {}
        : {
            peer: {
              atRest: spread(peerAtRest),
              ratio: spread(atRest!.map((rate, round) => rate / peerAtRest[round]!)),
            },
          }),
    };
  } finally {
    peer?.close();
  }
}

class Bench {
  readonly lab: Lab;
  readonly subject: Subject;
  /** In the workload. */
  boundaries = 0;
  private readonly workload: Workload;
  private readonly deep: { readonly context: UnwindContext; readonly start: Start };

  static async open(): Promise<Bench> {
    return new Bench(await Lab.open({ recordCalls: true }));
  }

  private constructor(lab: Lab) {
    this.lab = lab;
    const { machine, kernel, ftrace, unwinding } = lab;
    this.subject = new Subject({ machine, kernel, ftrace, unwinding });
    lab.redirect("leaf", lab.symbol("leaf_new").address).enable();
    this.workload = { name: "loop", begin: () => this.begin(), interrupted: false };
    const vcpu = this.begin();
    const exit = vcpu.run({ until: lab.symbol(DEEP).address });
    if (exit.kind !== "reached") bug("the redirected call does not reach its handler");
    this.deep = { context: kernel.unwindContextOf(vcpu, unwinding), start: liveStart(vcpu) };
  }

  begin() {
    return this.lab.begin(this.lab.symbol("loop").address, [CALLS]);
  }

  walk(walker: Unwinder): void {
    const { context, start } = this.deep;
    walker.walk(context, start);
  }

  /** What one walk finds. */
  frames(walker: Unwinder): number {
    const { context, start } = this.deep;
    return walker.walk(context, start).frames.length;
  }

  /** Audits the whole workload. The walkers are timed where the vCPU stands: that state is kept. */
  audit(options: AuditOptions): void {
    const audit = new Audit(this.subject, orcUnwinder, options);
    const before = this.lab.machine.snapshot();
    audit.run(this.workload);
    this.lab.machine.restore(before);
    before.dispose();
    this.boundaries = audit.findings.boundaries;
    if (audit.findings.total.reliableWrong > 0) bug("the audit found a violation");
  }
}

/** The loop's boundaries in Unicorn. */
class UnicornBench {
  private readonly engine: UnicornEngine;
  private readonly bench: Bench;
  private readonly context: UnwindContext;
  /** Per boundary: the slots and addresses of the live frames, as they were recorded. */
  private readonly truth: (readonly (readonly [Addr, Addr | undefined])[])[] = [];
  private readonly registers: Record<string, bigint>;
  private readonly pages: { readonly at: Addr; readonly bytes: Uint8Array }[];

  constructor(bench: Bench, engine: UnicornEngine) {
    this.bench = bench;
    this.engine = engine;
    const { lab, subject } = bench;
    const { machine } = lab;
    const before = machine.snapshot();
    const vcpu = bench.begin();
    this.registers = { ...vcpu.registers(), rip: BigInt(vcpu.rip), rflags: vcpu.rflags };
    this.pages = [...machine.memory.entries()].map(([at]) => ({
      at,
      bytes: machine.memory.read(at, PAGE_SIZE),
    }));
    for (const { at } of this.pages) engine.mapMemory(at, PAGE_SIZE, PROT.ALL);
    engine.writeBase("gs", vcpu.gsBase);
    do {
      const frames = machine.trueChain(vcpu.rsp);
      this.truth.push(frames.map((frame) => [frame.slot, whereTo(frame, subject)]));
    } while (vcpu.step() === undefined);
    machine.restore(before);
    before.dispose();
    const own = lab.kernel.unwindContextOf(machine.vcpus[0]!, lab.unwinding);
    this.context = {
      read: (at) => (own.stackAt(at) === undefined ? undefined : this.word(at)),
      stackAt: (at) => own.stackAt(at),
      isText: (at) => own.isText(at),
      isTrampoline: (at) => own.isTrampoline(at),
      isFunctionStart: (at) => own.isFunctionStart(at),
      recover: (address) => address,
      orc: own.orc,
    };
  }

  audit(): void {
    const { engine, truth } = this;
    for (const { at, bytes } of this.pages) engine.writeMemory(at, bytes);
    for (const name of [...GPR, "rip", "rflags"] as const) engine.regWrite(name, this.registers[name]!);
    for (const expected of truth) {
      const ip = engine.ip();
      this.check(ip, expected);
      engine.step(ip);
    }
  }

  close(): void {
    this.engine.close();
  }

  private check(ip: Addr, expected: readonly (readonly [Addr, Addr | undefined])[]): void {
    const register = (name: "rsp" | "rbp") => Number(BigInt.asIntN(64, this.engine.regRead(name)));
    const start: Start = {
      from: "live",
      ip,
      sp: register("rsp") as Addr,
      bp: register("rbp"),
      register: () => Number.NaN,
    };
    const { frames } = orcUnwinder.walk(this.context, start);
    const right =
      frames.length === expected.length &&
      frames.every(({ slot, address }, n) => slot === expected[n]![0] && address === expected[n]![1]);
    if (!right) bug(`the walk over Unicorn's memory is wrong at ${this.bench.lab.code.describe(ip)}`);
  }

  private word(at: Addr): number {
    const bytes = this.engine.readMemory(at, 8);
    const view = new DataView(bytes.buffer, bytes.byteOffset, 8);
    return view.getInt32(4, true) * 2 ** 32 + view.getUint32(0, true);
  }
}

/** The report for a terminal. */
export function renderUnwindReport(report: UnwindReport): string {
  const { machine, unicorn, framesPerSecond, boundariesPerSecond, peer } = report;
  const line = (what: string, { median, min, max }: Spread, unit: number, name: string) => {
    const [middle, low, high] = [median, min, max].map((value) => (value / unit).toFixed(2));
    return `${what.padEnd(30)}${middle!.padStart(9)} ${name.padEnd(4)}${low}..${high}`;
  };
  return [
    `Node ${machine.node}, ${machine.cpu}, ${"missing" in unicorn ? `no Unicorn: ${unicorn.missing}` : `Unicorn ${unicorn.version}`}`,
    `Medians of ${machine.rounds} rounds and the range, per second.`,
    "",
    ...Object.entries(framesPerSecond).map(([name, rate]) => line(`frames, ${name}`, rate, 1e6, "M")),
    line("boundaries at rest", boundariesPerSecond.atRest, 1e3, "k"),
    line("boundaries preempted", boundariesPerSecond.preempted, 1e3, "k"),
    ...(peer === undefined
      ? []
      : [
          line("boundaries at rest, Unicorn", peer.atRest, 1e3, "k"),
          line("  times that here", peer.ratio, 1, "x"),
        ]),
    "",
  ].join("\n");
}
