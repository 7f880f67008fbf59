// One call site that is rewritten while every vCPU calls through it: a system small enough to explore.
//
// Each vCPU calls poked() (asm/explore/poked.S) so many times, and then only takes interrupts; the poker takes its
// steps meanwhile. Who goes next, and which version of a contested byte is fetched, is asked of a chooser. Wrong is, at
// once: bytes executed at the site that are not the whole old instruction, int3, or the whole new one; a call that does not
// execute its body once, or comes back with something else; a handler that is not called once for each call that was
// executed or emulated, and for no other; an exception; somebody who waits for ever; text that is not what was wanted.

import { type Addr, offset } from "./base/addr.ts";
import { hexBytes } from "./base/bytes.ts";
import type { Chooser } from "./base/chooser.ts";
import { packagePath } from "./base/file.ts";
import { bug } from "./base/refuse.ts";
import type { Advance, Explorable } from "./explore/explore.ts";
import { Fetches } from "./explore/fetches.ts";
import { Locality } from "./explore/locality.ts";
import type { PokeSettings } from "./explore/settings.ts";
import { NOP5, SITE_SIZE } from "./ftrace/site.ts";
import type { PokeFailure, TextPoke } from "./ftrace/textPoke.ts";
import { Lab, type LabOptions } from "./lab.ts";
import type { Step } from "./machine/agenda.ts";
import { visibleBytes } from "./machine/contest.ts";
import type { Exit } from "./machine/exit.ts";
import { Kept } from "./machine/kept.ts";
import type { Machine } from "./machine/machine.ts";
import type { Snapshot } from "./machine/snapshot.ts";
import type { Vcpu } from "./machine/vcpu.ts";
import { type Fetched, PokeJudge } from "./pokeJudge.ts";
import { MAX_LENGTH, Mnemonic, printInstruction } from "./x86/decode.ts";

export type PokeDone = (failure?: PokeFailure) => readonly Step[];

export interface PokeOptions extends Pick<LabOptions, "edit" | "parts"> {
  /** The poker's steps, in place of the ones of `settings.writer`. */
  readonly steps?: (lab: Lab, poke: TextPoke, done: PokeDone) => readonly Step[];
  /** False: vCPUs go on instruction by instruction, not in blocks (explore/locality.ts). Default true. */
  readonly blocks?: boolean;
  /** False: what lies below the stack pointer stays there, and tells states apart. Default true. */
  readonly scrub?: boolean;
}

/** What a step of somebody's was. */
export interface PokeEvent {
  /** A vCPU's number. */
  readonly actor: number | "poker";
  readonly what: string;
  /** That the vCPU executed. */
  readonly instructions: number;
}

/** Where the poker is. */
interface Progress {
  /** Steps of each strand that were taken. A strand's are a fixed sequence, so that this says what comes next. */
  readonly taken: ReadonlyMap<string, number>;
  readonly failure: PokeFailure | undefined;
}

const SOURCE = "asm/explore/poked.S";
/** The poker's strand on the agenda: what it does may put steps on others. */
const STRAND = "poke";
const VMCALL_SIZE = 3;
/** A block that has not ended after so many instructions is not going to. */
const LONGEST_BLOCK = 10_000;
/** Below the stack pointer, as far as an interrupt or an exception can have left something; and at the top of a stack. */
const SCRUBBED = 2048;
const ON: Advance = { kind: "on" };

export class PokedSite implements Explorable {
  readonly lab: Lab;
  readonly machine: Machine;
  readonly settings: PokeSettings;
  readonly locality: Locality;
  /** Told of every step; and of every fetch at the site, by how many steps the poker had taken. */
  onStep: ((event: PokeEvent) => void) | undefined;
  onFetch: ((fetched: Fetched, vcpu: number, position: number) => void) | undefined;
  private readonly options: PokeOptions;
  private readonly fetches: Fetches;
  private readonly judge: PokeJudge;
  private readonly progress: Kept<Progress>;
  private readonly start: Snapshot;
  /** Addresses: the site, and where vCPUs pass. */
  private readonly site: Addr;
  private readonly call: Uint8Array;
  private readonly callReturns: Addr;
  private readonly isDoneAt: Addr;
  private readonly interruptEntry: Addr;

  static async open(settings: PokeSettings, options: PokeOptions = {}): Promise<PokedSite> {
    const { edit, parts } = options;
    const code = new Fetches();
    const lab = await Lab.open({
      ...{ vcpus: settings.vcpus, objects: [packagePath(SOURCE)], code },
      ...(edit === undefined ? {} : { edit }),
      ...(parts === undefined ? {} : { parts }),
    });
    return new PokedSite(lab, code, settings, options);
  }

  private constructor(lab: Lab, fetches: Fetches, settings: PokeSettings, options: PokeOptions) {
    const { machine, kernel, ftrace } = lab;
    const at = (name: string) => lab.symbol(name).address;
    this.lab = lab;
    this.machine = machine;
    this.fetches = fetches;
    this.settings = settings;
    this.options = options;
    this.callReturns = at("poked_returned");
    this.isDoneAt = offset(at("lab_call_return"), VMCALL_SIZE);
    this.interruptEntry = at("asm_sysvec_call_function");
    // A trampoline, and the call of it, as an ops makes them; whether the site has it is up to us from here on.
    const record = ftrace.siteOf(at("poked"), "poked");
    this.site = record.ip;
    ftrace.enable(record, ftrace.makeOps({ name: "poked", handler: at("poked_handler") }));
    this.call = machine.memory.read(this.site, SITE_SIZE);
    const on: TextPoke = { ip: this.site, old: NOP5, new: this.call };
    const off: TextPoke = { ip: this.site, old: this.call, new: NOP5 };
    if (settings.way !== "off")
      kernel.agenda.add(
        STRAND,
        ftrace.poker.steps([off], () => []),
      );
    for (const vcpu of machine.vcpus) {
      kernel.begin(vcpu, kernel.tasks[vcpu.index]!, at("poked_caller"), [BigInt(settings.calls)]);
      vcpu.serialise();
    }
    const ownWord = (counts: Addr, n: number) => ({
      low: offset(counts, 8 * n),
      high: offset(counts, 8 * n + 8),
    });
    this.locality = new Locality({
      kernel,
      contested: { low: this.site, high: offset(this.site, SITE_SIZE) },
      own: (n) => [ownWord(at("poked_bodies"), n), ownWord(at("poked_handled"), n)],
    });
    this.judge = new PokeJudge({ lab, site: this.site, call: this.call });
    this.progress = new Kept<Progress>(machine.keeper, { taken: new Map(), failure: undefined });
    kernel.agenda.live = true;
    kernel.agenda.add(STRAND, this.steps({ on: [on], off: [off], both: [on, off] }[settings.way]));
    this.start = machine.snapshot();
  }

  /** Puts everything back to where nobody has done anything yet. */
  begin(): void {
    this.machine.restore(this.start);
  }

  key(): string {
    const strands = [...this.progress.value.taken].sort().join();
    return `${this.machine.hash().toString(36)} ${strands} ${this.judge.key()}`;
  }

  advance(chooser: Chooser): Advance {
    const able = this.able();
    const [first] = able;
    this.fetches.chooser = chooser;
    let wrong: string | undefined;
    if (first === undefined) {
      wrong = this.judge.atEnd(this.settings.calls, this.settings.way === "on" ? this.call : NOP5);
      if (wrong === undefined) return { kind: "over" };
    } else {
      const actor = able.length > 1 ? able[chooser.choose("vcpu", able.length)]! : first;
      wrong = typeof actor === "string" ? this.poke(actor) : this.execute(this.machine.vcpus[actor]!);
    }
    return wrong === undefined ? ON : { kind: "wrong", what: wrong };
  }

  /** What each vCPU may fetch at the site, byte by byte, by when it was there last: what memory has is the last. */
  visible(): readonly (readonly number[])[][] {
    const { memory, vcpus } = this.machine;
    return vcpus.map(({ log }) => visibleBytes(memory, log ?? bug("a coherent vCPU"), this.site, SITE_SIZE));
  }

  /** Who can go on: vCPUs that have not done all their calls, or have an interrupt to take; strands that need not wait. */
  private able(): readonly (number | string)[] {
    const able: (number | string)[] = [];
    for (const vcpu of this.machine.vcpus)
      if (vcpu.rip !== this.isDoneAt || vcpu.careful) able.push(vcpu.index);
    return [...able, ...this.lab.kernel.agenda.ready()];
  }

  // ---- The poker.

  /** Steps that make one poke after the other. */
  private steps([poke, ...rest]: readonly TextPoke[]): readonly Step[] {
    if (poke === undefined) return [];
    const { poker } = this.lab.ftrace;
    const { steps = (_, one, done) => poker.steps([one], done) } = this.options;
    poker.writer = this.settings.writer;
    return steps(this.lab, poke, (failure) => {
      this.progress.value = { ...this.progress.value, failure };
      return failure === undefined ? this.steps(rest) : [];
    });
  }

  private poke(strand: string): string | undefined {
    const { agenda } = this.lab.kernel;
    const next = agenda.pending.find((pending) => pending.strand === strand);
    agenda.step(strand);
    const { taken, failure } = this.progress.value;
    this.progress.value = { taken: new Map([...taken, [strand, (taken.get(strand) ?? 0) + 1]]), failure };
    this.onStep?.({ actor: "poker", what: next?.what ?? "nothing", instructions: 0 });
    if (failure === undefined) return undefined;
    return `the poker finds ${hexBytes(failure.found)} where ${hexBytes(failure.expected)} should be`;
  }

  // ---- vCPUs.

  /** One block, or one instruction. */
  private execute(vcpu: Vcpu): string | undefined {
    const before = vcpu.instructions;
    for (let n = 0; n < LONGEST_BLOCK; n++) {
      const { rip, careful } = vcpu;
      const mnemonic = this.locality.next(vcpu)?.mnemonic;
      const local = this.locality.isLocal(vcpu);
      this.fetches.begin();
      const exit = vcpu.step();
      const interrupted = careful && vcpu.rip === this.interruptEntry;
      const executed = interrupted ? undefined : { rip, mnemonic };
      const wrong = this.wrongWith(vcpu, exit, executed);
      if (executed?.mnemonic === Mnemonic.Iretq) this.scrub(vcpu);
      const ends = wrong !== undefined || exit !== undefined || !(local || interrupted);
      if (!ends && this.options.blocks !== false) continue;
      this.onStep?.({
        actor: vcpu.index,
        what: interrupted ? "takes the interrupt" : this.describe(rip),
        instructions: vcpu.instructions - before,
      });
      return wrong;
    }
    return `vCPU ${vcpu.index} goes round and round, near ${this.lab.code.describe(vcpu.rip)}`;
  }

  /** What is wrong behind an instruction, or behind an interrupt that came in its place. */
  private wrongWith(
    vcpu: Vcpu,
    exit: Exit | undefined,
    executed: { readonly rip: Addr; readonly mnemonic: Mnemonic | undefined } | undefined,
  ): string | undefined {
    const { judge, site } = this;
    const isSite = executed !== undefined && executed.rip >= site && executed.rip < site + SITE_SIZE;
    const torn = isSite ? this.fetched(vcpu, executed.rip, exit) : undefined;
    const wrong = torn ?? judge.exited(vcpu, exit) ?? judge.place(vcpu);
    if (wrong !== undefined) return wrong;
    const comesBack = executed?.mnemonic === Mnemonic.Ret && vcpu.rip === this.callReturns;
    return comesBack ? judge.returned(vcpu) : undefined;
  }

  private fetched(vcpu: Vcpu, rip: Addr, exit: Exit | undefined): string | undefined {
    const bytes =
      exit?.kind === "mixed"
        ? exit.fetch.bytes
        : this.fetches.bytesAt(rip, this.machine.memory.read(rip, SITE_SIZE));
    const what = this.judge.classify(bytes, rip - this.site);
    this.onFetch?.(what, vcpu.index, this.progress.value.taken.get(STRAND) ?? 0);
    return this.judge.fetched(vcpu, rip, bytes, what);
  }

  private describe(rip: Addr): string {
    const bytes = this.fetches.bytesAt(rip, this.machine.memory.read(rip, MAX_LENGTH));
    return `${this.lab.code.describe(rip)}: ${printInstruction(bytes, rip)}`;
  }

  /**
   * Nothing is below the stack pointer, nor on a stack that is not in use, but what is left of calls and exceptions that are
   * over, and that nobody reads. It would tell states apart that go on in the same way.
   */
  private scrub(vcpu: Vcpu): void {
    if (this.options.scrub === false) return;
    const { memory } = this.machine;
    const { irqStack } = this.lab.kernel.cpus[vcpu.index]!;
    const stack = this.lab.kernel.current(vcpu)?.stack;
    if (stack === undefined || vcpu.rsp <= stack.low + SCRUBBED || vcpu.rsp > stack.high) return;
    memory.write(offset(vcpu.rsp, -SCRUBBED), new Uint8Array(SCRUBBED));
    memory.write(offset(irqStack.high, -SCRUBBED), new Uint8Array(SCRUBBED));
  }
}
