// This engine with a batch of cases, held against what the processor did with them, in place.
//
// Nothing is made per case but for faults: registers and flags are copied and compared as words where the vCPU has
// them (src/x86/state.ts). That is faster than asking the vCPU, and says no more than "different": the report asks again,
// through the engine's public face.

import { Mnemonic } from "iced-x86";
import { type Addr, addr, PAGE_SIZE } from "../../src/base/addr.ts";
import { bug } from "../../src/base/refuse.ts";
import { type Exit, PAGE_FAULT } from "../../src/machine/exit.ts";
import type { HostAddress } from "../../src/machine/host.ts";
import { Machine } from "../../src/machine/machine.ts";
import type { Vcpu } from "../../src/machine/vcpu.ts";
import { STATE } from "../../src/x86/state.ts";
import {
  CODE,
  CODE_PAGE,
  DATA,
  DATA_SIZE,
  FILL,
  FLAG_MASK,
  FS_BASE,
  GS_BASE,
  RFLAGS_BASE,
} from "../x86/cases-model.ts";
import {
  type Batch,
  FRAME_INDEX,
  FRAME_RFLAGS,
  FRAME_RIP,
  gatherFlags,
  STATES,
  spreadFlags,
} from "./batch.ts";
import { OUTCOME_WORDS, type Outcomes } from "./bulkOracle.ts";
import { type FuzzInstruction, undefinedFlags } from "./instruction.ts";

/** "regions" compiles every instruction once, and runs all its states in what was made. */
export type EngineKind = "stepped" | "regions";

/** Told of every case that differs, with its index in the batch. */
export type OnDifference = (index: number) => void;
/** Told of every case, and whether the processor raised a fault. */
export type OnCase = (instruction: FuzzInstruction, faulted: boolean) => void;

const LIMIT = 10_000;
/** An engine that throws is a difference; one that does so all the time is no use. */
const MOST_THROWN = 100;
const CODE_BYTES = 16;
const INT3 = 0xcc;
const FRAME_ERROR = 19;
const FRAME_VECTOR = 20;
const FRAME_CR2 = 22;
const SIGNAL = OUTCOME_WORDS - 2;
const SIGVTALRM = 26;
const VECTORS: Readonly<Record<string, number>> = {
  "#DE": 0,
  "#BP": 3,
  "#UD": 6,
  "#SS": 12,
  "#GP": 13,
  "#PF": 14,
};
const BREAKPOINT = 3;
const PAGE_FAULT_VECTOR = 14;
const ZERO_FLAG = 0x40;
const RCX = 1;

const code = addr(CODE);

export class BulkEngine {
  private readonly kind: EngineKind;
  private machine!: Machine;
  private vcpu!: Vcpu;
  private cpu!: HostAddress;
  /** What the flags' words hold for each combination, seven words each: carry, result, x, system flags. */
  private readonly flagWords = new Int32Array(128 * 7);
  private pages!: readonly HostAddress[];
  /** What the window has to hold. */
  private readonly expected = new Uint8Array(DATA_SIZE).fill(FILL);
  private readonly own = new Uint8Array(CODE_BYTES);
  private current: FuzzInstruction | undefined;
  private thrown = 0;

  constructor(kind: EngineKind) {
    this.kind = kind;
    this.renew();
  }

  /** A new machine, with the window and the code page as they are between cases. */
  private renew(): void {
    this.current = undefined;
    this.expected.fill(FILL);
    const machine = new Machine();
    this.machine = machine;
    machine.memory.map(addr(DATA), DATA_SIZE, { write: true, execute: false, user: false });
    machine.memory.map(addr(CODE_PAGE), PAGE_SIZE, { write: true, execute: true, user: false });
    machine.memory.write(addr(DATA), this.expected);
    machine.memory.write(addr(CODE_PAGE), new Uint8Array(PAGE_SIZE).fill(INT3));
    this.pages = [DATA, DATA + PAGE_SIZE].map((at) => machine.memory.find(addr(at))!.frame.at);
    this.vcpu = machine.vcpus[0]!;
    this.vcpu.gsBase = BigInt(GS_BASE);
    this.vcpu.fsBase = BigInt(FS_BASE);
    this.cpu = findState(machine);
    this.learnFlags();
  }

  /** Runs the cases that have an outcome; of one instruction in `every`. */
  compare(batch: Batch, outcomes: Outcomes, every: number, onDifference: OnDifference, onCase: OnCase): void {
    for (let n = 0; n < outcomes.count; n++) {
      if (Math.floor(batch.numbers[n]! / STATES) % every !== 0) continue;
      const instruction = batch.instructions[n]!;
      if (instruction !== this.current) this.place(instruction);
      const start = batch.starts[n]! + 2;
      this.load(batch, n, start);
      const exit = this.execute();
      const at = outcomes.starts[n]!;
      const same = this.isSame(batch.words, start, outcomes.words, at, instruction, exit);
      const faulted = outcomes.words[at + 2 * FRAME_VECTOR] !== BREAKPOINT;
      const clean = this.sameWindow(batch, n, outcomes.words, at);
      const loose = faulted && instruction.mnemonic === Mnemonic.Enter;
      if (!same || !(clean || loose)) onDifference(n);
      this.restore(batch, n, outcomes.words, at, clean, instruction);
      onCase(instruction, faulted);
    }
  }

  // ---- Before.

  private place(instruction: FuzzInstruction): void {
    this.own.fill(INT3).set(instruction.bytes);
    this.machine.memory.write(code, this.own);
    if (this.kind === "regions") this.machine.regions.compile(code);
    this.current = instruction;
  }

  private load(batch: Batch, n: number, start: number): void {
    const { words } = batch;
    const { i32, u8 } = this.machine.host;
    const gpr = (this.cpu + STATE.gpr) >> 2;
    for (let r = 0; r < 16; r++) {
      const from = start + 2 * FRAME_INDEX[r]!;
      i32[gpr + 2 * r] = words[from]!;
      i32[gpr + 2 * r + 1] = words[from + 1]!;
    }
    this.vcpu.rip = code;
    const flags = 7 * gatherFlags(words[start + 2 * FRAME_RFLAGS]!);
    for (let w = 0; w < 7; w++) i32[this.flagWord(w)] = this.flagWords[flags + w]!;
    const patches = batch.patchStart(n);
    for (let p = patches, end = patches + batch.patchCount(n); p < end; p++) {
      const offset = words[p]! >>> 8;
      const byte = words[p]! & 0xff;
      u8[this.pages[offset >> 12]! + (offset & 0xfff)] = byte;
      this.expected[offset] = byte;
    }
  }

  /** How it stopped; undefined if the case has simply come to an int3. An engine that throws did not stop at all. */
  private execute(): Exit | undefined {
    try {
      return this.kind === "stepped" ? this.step() : this.vcpu.run({ budget: LIMIT });
    } catch (error) {
      if (++this.thrown > MOST_THROWN) throw error;
      this.renew();
      return { kind: "budget", ip: code };
    }
  }

  /** Until the instruction has retired (undefined) or stopped for good. */
  private step(): Exit | undefined {
    const { vcpu } = this;
    for (let n = 0; n < LIMIT; n++) {
      const exit = vcpu.step();
      if (exit !== undefined) return exit;
      const { rip } = vcpu;
      // The page is int3 but for the case's bytes: no need to execute one.
      if (rip !== code && rip >= CODE_PAGE && rip < CODE_PAGE + PAGE_SIZE) return undefined;
    }
    return { kind: "budget", ip: vcpu.rip };
  }

  // ---- After.

  private isSame(
    before: Int32Array,
    start: number,
    words: Int32Array,
    at: number,
    instruction: FuzzInstruction,
    exit: Exit | undefined,
  ): boolean {
    if (words[at + SIGNAL] === SIGVTALRM) return false;
    const vector = words[at + 2 * FRAME_VECTOR]!;
    const rip = words[at + 2 * FRAME_RIP]! >>> 0;
    const ended = vector === BREAKPOINT && words[at + 2 * FRAME_RIP + 1] === 0;
    const behind = ended && !(rip - 1 >= CODE && rip - 1 < CODE + instruction.bytes.length);
    if (!(behind ? this.endedAt(exit, rip - 1) : this.sameFault(exit, words, at, vector))) return false;
    let unknown = 0;
    if (behind) {
      const cl = before[start + 2 * FRAME_INDEX[RCX]!]! & 0xff;
      unknown = undefinedFlags(instruction, cl);
    }
    const flags = words[at + 2 * FRAME_RFLAGS]!;
    if (((flags ^ this.flags()) & FLAG_MASK & ~unknown) !== 0) return false;
    const { i32 } = this.machine.host;
    const gpr = (this.cpu + STATE.gpr) >> 2;
    for (let r = 0; r < 16; r++) {
      const to = at + 2 * FRAME_INDEX[r]!;
      if (words[to] !== i32[gpr + 2 * r]) return false;
      if (words[to + 1] !== i32[gpr + 2 * r + 1]) {
        if (!(behind && instruction.scanDestination === r && flags & ZERO_FLAG)) return false;
      }
    }
    return true;
  }

  /** True if execution came to the int3 at `at`, and nothing else happened. */
  private endedAt(exit: Exit | undefined, at: number): boolean {
    if (exit === undefined) return this.vcpu.rip === at;
    return exit.kind === "fault" && exit.fault.vector === "#BP" && exit.ip === at;
  }

  private sameFault(exit: Exit | undefined, words: Int32Array, at: number, vector: number): boolean {
    if (exit?.kind !== "fault" || !sameAddress(this.vcpu.rip, words, at + 2 * FRAME_RIP)) return false;
    // Which of its many accesses an enter tries first, and what it has pushed when one faults, is nowhere said.
    if (this.current?.mnemonic === Mnemonic.Enter) return true;
    if (VECTORS[exit.fault.vector] !== vector) return false;
    if (vector !== PAGE_FAULT_VECTOR || exit.fault.vector !== "#PF") return true;
    const { address, errorCode } = exit.fault;
    const kinds = PAGE_FAULT.write | PAGE_FAULT.fetch;
    return (
      sameAddress(address, words, at + 2 * FRAME_CR2) &&
      ((errorCode ^ words[at + 2 * FRAME_ERROR]!) & kinds) === 0
    );
  }

  private sameWindow(batch: Batch, n: number, words: Int32Array, at: number): boolean {
    const { expected } = this;
    const changes = words[at + OUTCOME_WORDS - 1]!;
    for (let c = 0; c < changes; c++) {
      const change = words[at + OUTCOME_WORDS + c]!;
      expected[change >>> 8] = change & 0xff;
    }
    // Without a write on either side there is nothing to look at that the case did not patch itself.
    if (changes === 0 && !batch.instructions[n]!.accesses.some(({ write }) => write)) return true;
    const { u8 } = this.machine.host;
    return this.pages.every(
      (page, p) =>
        Buffer.compare(
          u8.subarray(page, page + PAGE_SIZE),
          expected.subarray(p * PAGE_SIZE, (p + 1) * PAGE_SIZE),
        ) === 0,
    );
  }

  /** Puts the window back, and the code page if the case may have written there. */
  private restore(
    batch: Batch,
    n: number,
    words: Int32Array,
    at: number,
    clean: boolean,
    instruction: FuzzInstruction,
  ): void {
    const { u8 } = this.machine.host;
    const { expected, pages } = this;
    if (!clean) {
      expected.fill(FILL);
      for (const page of pages) u8.fill(FILL, page, page + PAGE_SIZE);
    }
    const put = (offset: number) => {
      u8[pages[offset >> 12]! + (offset & 0xfff)] = FILL;
      expected[offset] = FILL;
    };
    const patches = batch.patchStart(n);
    for (let p = patches, end = patches + batch.patchCount(n); p < end; p++) put(batch.words[p]! >>> 8);
    const changes = at + OUTCOME_WORDS;
    for (let c = changes, end = changes + words[at + OUTCOME_WORDS - 1]!; c < end; c++) put(words[c]! >>> 8);
    if (batch.writesCode[n] === 0) return;
    this.machine.memory.write(addr(CODE_PAGE), new Uint8Array(PAGE_SIZE).fill(INT3));
    this.place(instruction);
  }

  // ---- Flags, in the form that src/x86/state.ts describes.

  private flagWord(n: number): number {
    const field = FLAG_FIELDS[n]!;
    return (this.cpu + field) >> 2;
  }

  private learnFlags(): void {
    for (let bits = 0; bits < 128; bits++) {
      this.vcpu.rflags = BigInt(RFLAGS_BASE | spreadFlags(bits));
      for (let w = 0; w < 7; w++) this.flagWords[7 * bits + w] = this.machine.host.i32[this.flagWord(w)]!;
    }
  }

  private flags(): number {
    const { i32 } = this.machine.host;
    const carry = i32[this.flagWord(0)]!;
    const low = i32[this.flagWord(1)]!;
    const high = i32[this.flagWord(2)]!;
    const xLow = i32[this.flagWord(3)]!;
    const xHigh = i32[this.flagWord(4)]!;
    let parity = (low ^ (xLow >>> 8)) & 0xff;
    parity ^= parity >> 4;
    parity ^= parity >> 2;
    parity ^= parity >> 1;
    return (
      i32[this.flagWord(5)]! |
      carry |
      (~parity & 1 ? 4 : 0) |
      ((xLow ^ low) & 0x10) |
      ((low | high) === 0 ? ZERO_FLAG : 0) |
      ((high >>> 31) ^ ((xHigh >>> 30) & 1) ? 0x80 : 0) |
      (carry ^ ((xHigh ^ high) >>> 31) ? 0x800 : 0)
    );
  }
}

const FLAG_FIELDS = [
  ...[STATE.carry, STATE.result, STATE.result + 4, STATE.x, STATE.x + 4],
  ...[STATE.systemFlags, STATE.systemFlags + 4],
] as const;

function sameAddress(at: Addr, words: Int32Array, word: number): boolean {
  return ((at % 2 ** 32) | 0) === words[word] && (Math.floor(at / 2 ** 32) | 0) === words[word + 1];
}

/** Where the vCPU's state is in the host's memory: where a register shows up that nothing else holds. */
function findState(machine: Machine): HostAddress {
  const vcpu = machine.vcpus[0]!;
  const { i64 } = machine.host;
  const found = (mark: bigint) => {
    vcpu.set("rax", mark);
    return i64.indexOf(mark);
  };
  const first = found(0x0123_4567_89ab_cdefn);
  const second = found(0x0fed_cba9_8765_4321n);
  if (first < 0 || first !== second) bug("rax is not where it was");
  return 8 * first - STATE.gpr;
}
