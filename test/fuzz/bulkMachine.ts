// This engine with cases by the ten thousand: a machine in which case after case is put, run and taken out again.
//
// Nothing is made per case but for faults: registers and flags are copied as words where the vCPU has them
// (src/x86/state.ts), which is faster than asking the vCPU.

import { addr, PAGE_SIZE } from "../../src/base/addr.ts";
import { bug } from "../../src/base/refuse.ts";
import type { Exit } from "../../src/machine/exit.ts";
import type { HostAddress } from "../../src/machine/host.ts";
import { Machine } from "../../src/machine/machine.ts";
import type { Vcpu } from "../../src/machine/vcpu.ts";
import { STATE } from "../../src/x86/state.ts";
import { CODE, CODE_PAGE, DATA, DATA_SIZE, FILL, FS_BASE, GS_BASE, RFLAGS_BASE } from "../x86/cases-model.ts";
import { OWN_SIZE } from "./address.ts";
import { type Batch, FRAME_INDEX, FRAME_RFLAGS, gatherFlags, spreadFlags } from "./batch.ts";
import type { FuzzCode } from "./code.ts";

/** "regions" compiles every code once, and runs all its states in what was made. */
export type EngineKind = "stepped" | "regions";

const LIMIT = 100_000;
/** An engine that throws is a difference; one that does so all the time is no use. */
const MOST_THROWN = 100;
const INT3 = 0xcc;
const ZERO_FLAG = 0x40;

const code = addr(CODE);

export class BulkMachine {
  /** What the window has to hold. */
  readonly expected = new Uint8Array(DATA_SIZE).fill(FILL);
  vcpu!: Vcpu;
  private readonly kind: EngineKind;
  private machine!: Machine;
  private cpu!: HostAddress;
  /** What the flags' words hold for each combination, seven words each: carry, result, x, system flags. */
  private readonly flagWords = new Int32Array(128 * 7);
  private pages!: readonly HostAddress[];
  private readonly own = new Uint8Array(OWN_SIZE);
  private current: FuzzCode | undefined;
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

  /** How many step functions were compiled. */
  get formCount(): number {
    return this.machine.interpreter.formCount;
  }

  /** Instructions retired by the last case. */
  instructions = 0;

  /** Puts case `n` in and runs it: how it stopped; undefined if stepping has simply come to an int3. */
  run(batch: Batch, n: number): Exit | undefined {
    const running = batch.codes[n]!;
    if (running !== this.current) this.place(running);
    this.load(batch, n);
    const before = this.vcpu.instructions;
    const exit = this.execute(running);
    this.instructions = this.vcpu.instructions - before;
    return exit;
  }

  private place(placed: FuzzCode): void {
    const last = this.current?.bytes.length ?? OWN_SIZE;
    const { length } = placed.bytes;
    this.own.fill(INT3, 0, Math.max(last, length));
    this.own.set(placed.bytes);
    this.machine.memory.write(code, this.own.subarray(0, Math.max(last, length)));
    if (this.kind === "regions") this.machine.regions.compile(code);
    this.current = placed;
  }

  private load(batch: Batch, n: number): void {
    const { words } = batch;
    const start = batch.starts[n]! + 2;
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

  /** An engine that throws did not stop at all. */
  private execute(running: FuzzCode): Exit | undefined {
    try {
      return this.kind === "stepped" ? this.step(running) : this.vcpu.run({ budget: LIMIT });
    } catch (error) {
      if (++this.thrown > MOST_THROWN) throw error;
      this.renew();
      return { kind: "budget", ip: code };
    }
  }

  /** Until it has retired (undefined) or stopped for good. */
  private step({ bytes }: FuzzCode): Exit | undefined {
    const { vcpu } = this;
    for (let n = 0; n < LIMIT; n++) {
      const exit = vcpu.step();
      if (exit !== undefined) return exit;
      const { rip } = vcpu;
      if (rip >= CODE && rip < CODE + bytes.length) continue;
      // The page is int3 but for the case's bytes: no need to execute one.
      if (rip >= CODE_PAGE && rip < CODE_PAGE + PAGE_SIZE) return undefined;
    }
    return { kind: "budget", ip: vcpu.rip };
  }

  // ---- What it has come to.

  /** The registers by number, low half then high half: words of `i32`, from here. */
  get registers(): number {
    return (this.cpu + STATE.gpr) >> 2;
  }

  /** The host's memory in words. */
  get i32(): Int32Array {
    return this.machine.host.i32;
  }

  /** The flags of a case, as bits of rflags. */
  flags(): number {
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

  /** Whether the window holds what is expected. */
  isExpected(): boolean {
    const { u8 } = this.machine.host;
    return this.pages.every(
      (page, p) =>
        Buffer.compare(
          u8.subarray(page, page + PAGE_SIZE),
          this.expected.subarray(p * PAGE_SIZE, (p + 1) * PAGE_SIZE),
        ) === 0,
    );
  }

  /** The byte of the window at `offset`. */
  byteAt(offset: number): number {
    return this.machine.host.u8[this.pages[offset >> 12]! + (offset & 0xfff)]!;
  }

  /**
   * Puts the window back, and the code page if the case may have written there. Of the window, what the case named and
   * the bytes of `changes`, as outcomes have them, or all of it.
   */
  restore(batch: Batch, n: number, changes: Int32Array | undefined): void {
    const { u8 } = this.machine.host;
    const { expected, pages } = this;
    const put = (offset: number) => {
      u8[pages[offset >> 12]! + (offset & 0xfff)] = FILL;
      expected[offset] = FILL;
    };
    if (changes === undefined) {
      expected.fill(FILL);
      for (const page of pages) u8.fill(FILL, page, page + PAGE_SIZE);
    } else for (const change of changes) put(change >>> 8);
    const patches = batch.patchStart(n);
    for (let p = patches, end = patches + batch.patchCount(n); p < end; p++) put(batch.words[p]! >>> 8);
    if (batch.writesCode[n] === 0) return;
    this.machine.memory.write(addr(CODE_PAGE), new Uint8Array(PAGE_SIZE).fill(INT3));
    this.current = undefined;
  }

  // ---- Flags, in the form that src/x86/state.ts describes.

  private flagWord(n: number): number {
    return (this.cpu + FLAG_FIELDS[n]!) >> 2;
  }

  private learnFlags(): void {
    for (let bits = 0; bits < 128; bits++) {
      this.vcpu.rflags = BigInt(RFLAGS_BASE | spreadFlags(bits));
      for (let w = 0; w < 7; w++) this.flagWords[7 * bits + w] = this.machine.host.i32[this.flagWord(w)]!;
    }
  }
}

const FLAG_FIELDS = [
  ...[STATE.carry, STATE.result, STATE.result + 4, STATE.x, STATE.x + 4],
  ...[STATE.systemFlags, STATE.systemFlags + 4],
] as const;

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
