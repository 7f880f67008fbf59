// This engine with a batch of cases, held against what another made of them, in place.
//
// It says no more than in what they differ: the report asks again, through the engine's public face.

import { Mnemonic } from "iced-x86";
import type { Addr } from "../../src/base/addr.ts";
import { type Exit, type Fault, PAGE_FAULT } from "../../src/machine/exit.ts";
import { CODE, FLAG_MASK } from "../x86/cases-model.ts";
import { type Batch, FRAME_INDEX, FRAME_RFLAGS, FRAME_RIP } from "./batch.ts";
import { BulkMachine, type EngineKind } from "./bulkMachine.ts";
import type { FuzzCode } from "./code.ts";
import {
  ADDRESS_UNKNOWN,
  BREAKPOINT,
  EXCEPTIONS,
  OUTCOME,
  OUTCOME_WORDS,
  type Outcomes,
  SIGVTALRM,
  SOME_EXCEPTION,
  VECTORS,
} from "./outcomes.ts";

/** In what two outcomes differ. */
export interface Aspects {
  /** The fault that it ended with, or that there was one. */
  readonly stop: boolean;
  readonly rip: boolean;
  /** A bit for each register by number; and for those of them whose lower halves differ. */
  readonly registers: number;
  readonly lowHalves: number;
  /** Bits of rflags. */
  readonly flags: number;
  readonly memory: boolean;
  /** The engine's fault, if there was one. */
  readonly fault: Fault | undefined;
}

/** Told of every case that differs, with its index in the batch. */
export type OnDifference = (index: number, aspects: Aspects) => void;

const ZERO_FLAG = 0x40;
const RCX = 1;
const KINDS = PAGE_FAULT.write | PAGE_FAULT.fetch;

export class BulkEngine {
  private readonly machine: BulkMachine;
  /** Flags that the manual leaves undefined are compared, too, and how many instructions retired. */
  private readonly strict: boolean;
  /** Whether the window held what it had to. */
  private clean = true;

  constructor(kind: EngineKind, strict: boolean) {
    this.machine = new BulkMachine(kind);
    this.strict = strict;
  }

  get formCount(): number {
    return this.machine.formCount;
  }

  /** Runs the cases that have an outcome, and that `takes` says; how many those were. */
  compare(
    batch: Batch,
    outcomes: Outcomes,
    takes: (index: number) => boolean,
    onDifference: OnDifference,
  ): number {
    let ran = 0;
    for (let n = 0; n < outcomes.count; n++) {
      if (!takes(n)) continue;
      ran++;
      const exit = this.machine.run(batch, n);
      const at = outcomes.starts[n]!;
      const aspects = this.differs(batch, n, outcomes.words, at, exit);
      if (aspects !== undefined) onDifference(n, aspects);
      const changes = at + OUTCOME_WORDS;
      const changed = outcomes.words.subarray(changes, changes + outcomes.words[at + OUTCOME.changes]!);
      this.machine.restore(batch, n, this.clean ? changed : undefined);
    }
    return ran;
  }

  private differs(
    batch: Batch,
    n: number,
    words: Int32Array,
    at: number,
    exit: Exit | undefined,
  ): Aspects | undefined {
    const code = batch.codes[n]!;
    const fault = faultOf(code, words, at);
    const ours = this.ownFault(code, exit);
    const stop =
      words[at + OUTCOME.signal] === SIGVTALRM ||
      (exit !== undefined && exit.kind !== "fault") ||
      (this.strict && words[at + OUTCOME.retired] !== this.machine.instructions) ||
      !(fault === undefined ? ours === undefined : this.sameFault(code, ours, words, at));
    const rip = !this.sameRip(exit, ours, fault, words, at);
    const before = batch.starts[n]! + 2;
    const cl = batch.words[before + 2 * FRAME_INDEX[RCX]!]! & 0xff;
    const unknown = this.strict ? 0 : code.undefinedFlags(cl, fault);
    const flags = (words[at + 2 * FRAME_RFLAGS]! ^ this.machine.flags()) & FLAG_MASK & ~unknown;
    const { registers, lowHalves } = this.differingRegisters(code, fault, words, at);
    this.clean = this.sameWindow(code, words, at);
    const memory = !this.clean && !(this.isLoose(code) && fault !== undefined);
    return stop || rip || flags !== 0 || registers !== 0 || memory
      ? { stop, rip, registers, lowHalves, flags, memory, fault: ours }
      : undefined;
  }

  private differingRegisters(
    code: FuzzCode,
    fault: number | undefined,
    words: Int32Array,
    at: number,
  ): { registers: number; lowHalves: number } {
    const { i32, registers: own } = this.machine;
    let registers = 0;
    let lowHalves = 0;
    for (let r = 0; r < 16; r++) {
      const to = at + 2 * FRAME_INDEX[r]!;
      const low = words[to] === i32[own + 2 * r];
      const high = words[to + 1] === i32[own + 2 * r + 1];
      if (low && high) continue;
      const scanned =
        fault === undefined && code.scanDestination === r && words[at + 2 * FRAME_RFLAGS]! & ZERO_FLAG;
      if (low && scanned && !this.strict) continue;
      registers |= 1 << r;
      if (!low) lowHalves |= 1 << r;
    }
    return { registers, lowHalves };
  }

  /** The engine's fault; undefined if it came to an int3 that is not the case's own. */
  private ownFault({ bytes }: FuzzCode, exit: Exit | undefined): Fault | undefined {
    if (exit?.kind !== "fault") return undefined;
    const own = exit.ip >= CODE && exit.ip < CODE + bytes.length;
    return exit.fault.vector === "#BP" && !own ? undefined : exit.fault;
  }

  /** Where it is next; or is, if that is an int3 that is not the case's own. */
  private sameRip(
    exit: Exit | undefined,
    ours: Fault | undefined,
    fault: number | undefined,
    words: Int32Array,
    at: number,
  ): boolean {
    const { rip } = this.machine.vcpu;
    if (fault !== undefined) return sameAddress(rip, words, at + 2 * FRAME_RIP);
    const behindInt3 = exit !== undefined && ours === undefined;
    return rip - (behindInt3 ? 1 : 0) === (words[at + 2 * FRAME_RIP]! >>> 0) - 1;
  }

  private sameFault(code: FuzzCode, ours: Fault | undefined, words: Int32Array, at: number): boolean {
    if (ours === undefined) return false;
    if (this.isLoose(code)) return true;
    const vector = words[at + OUTCOME.vector]!;
    if (vector === SOME_EXCEPTION) return EXCEPTIONS.includes(ours.vector);
    if (VECTORS[ours.vector] !== vector) return false;
    if (ours.vector !== "#PF") return true;
    const error = words[at + OUTCOME.error]!;
    const known = (error & ADDRESS_UNKNOWN) === 0;
    return (
      ((ours.errorCode ^ error) & KINDS) === 0 &&
      (!known || sameAddress(ours.address, words, at + OUTCOME.cr2))
    );
  }

  /** Which of its many accesses an enter tries first, and what it has pushed when one faults, is nowhere said. */
  private isLoose({ mnemonic }: FuzzCode): boolean {
    return mnemonic === Mnemonic.Enter && !this.strict;
  }

  private sameWindow(code: FuzzCode, words: Int32Array, at: number): boolean {
    const { machine } = this;
    const changes = words[at + OUTCOME.changes]!;
    for (let c = at + OUTCOME_WORDS, end = c + changes; c < end; c++)
      machine.expected[words[c]! >>> 8] = words[c]! & 0xff;
    // Without a write on either side there is nothing to look at that the case did not patch itself.
    if (changes === 0 && !code.accesses.some(({ write }) => write)) return true;
    return machine.isExpected();
  }
}

/** Where the instruction that raised a fault is, from the case's first byte; undefined if it came to an int3 that is not its own. */
export function faultOf({ bytes }: FuzzCode, words: Int32Array, at: number): number | undefined {
  const rip = (words[at + 2 * FRAME_RIP]! >>> 0) - CODE;
  const near = words[at + 2 * FRAME_RIP + 1] === 0;
  const ended = words[at + OUTCOME.vector] === BREAKPOINT && near;
  return ended && !(rip - 1 >= 0 && rip - 1 < bytes.length) ? undefined : near ? rip : -1;
}

function sameAddress(at: Addr, words: Int32Array, word: number): boolean {
  return ((at % 2 ** 32) | 0) === words[word] && (Math.floor(at / 2 ** 32) | 0) === words[word + 1];
}
