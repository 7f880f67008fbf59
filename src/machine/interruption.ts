// What comes between instructions: interrupts that are due, single-step traps, breakpoints.
//
// While nothing of the kind is possible (`careful` is false) code runs at full speed and none of this is asked.

import { type Addr, PAGE_SIZE } from "../base/addr.ts";
import { refuse } from "../base/refuse.ts";
import { Mnemonic } from "../x86/decode.ts";
import { FLAG } from "../x86/register.ts";
import { EMPTY_RIP, STATE } from "../x86/state.ts";
import type { Fault } from "./exit.ts";
import type { RegisterFile } from "./registerFile.ts";
import { type Event, VECTOR } from "./system/exception.ts";

/** Bits of dr6: which breakpoint, single step. */
const DR6_STEP = 1n << 14n;
/** dr7: the enable bits of breakpoint n are at 2n, its kind at 16 + 4n, its length at 18 + 4n. */
const ENABLED = 3n;
const KIND = { execute: 0n, write: 1n, access: 3n } as const;
const LENGTHS = [1, 2, 8, 4] as const;

/** A data breakpoint. */
interface Watch {
  readonly bit: bigint;
  readonly at: number;
  readonly size: number;
  readonly writesOnly: boolean;
}

/** What an instruction began with, for `after`. */
interface Start {
  readonly rip: Addr;
  stepping: boolean;
  resuming: boolean;
  readonly interruptible: boolean;
}

// `look` is asked after every restored snapshot: numbers, not bigints.
const IF = Number(FLAG.IF);
const TF_OR_RF = Number(FLAG.TF | FLAG.RF);

export class Interruption {
  /** True if the next instruction must be executed with `due`, `before` and `after` around it. */
  careful = false;
  private readonly registers: RegisterFile;
  private start: Start | undefined;
  /** The data breakpoints that dr7 has; empty nearly always. */
  private watches: readonly Watch[] = [];
  /** Bits of dr6 for those that the instruction under way has met. */
  private met = 0n;

  constructor(registers: RegisterFile) {
    this.registers = registers;
  }

  /** Whether the guest has an interrupt table. */
  get hasTable(): boolean {
    return this.registers.getWord("idtLimit") !== 0n;
  }

  request(vector: number): void {
    if (!Number.isInteger(vector) || vector < 0 || vector > 255) refuse("vector", { vector });
    this.setRequested(vector, true);
    this.look();
  }

  requestNmi(): void {
    this.registers.setWord("nmiRequested", 1n);
    this.look();
  }

  /** To be called whenever flags, debug registers or requests may have changed otherwise than by lifted code. */
  look(): void {
    const { registers } = this;
    const flags = registers.low(STATE.systemFlags);
    const requested = registers.low(STATE.attention) !== 0;
    const waiting = (requested && (flags & IF) !== 0) || registers.low(STATE.nmiRequested) !== 0;
    const breakpoints = (registers.low(STATE.dr + 8 * 7) & 0xff) !== 0;
    if (breakpoints || this.watches.length > 0) this.watches = breakpoints ? this.dataBreakpoints() : [];
    const trap = registers.low(STATE.pendingTraps) !== 0;
    this.careful = waiting || trap || (flags & TF_OR_RF) !== 0 || breakpoints;
  }

  /** The interrupt to deliver now, instead of the next instruction. */
  due(): Event | undefined {
    const { registers } = this;
    if (this.shadowed) return undefined;
    if (registers.getWord("nmiRequested") !== 0n && registers.getWord("nmiBlocked") === 0n) {
      registers.setWord("nmiRequested", 0n);
      return { vector: VECTOR.NMI, source: "nonmaskable" };
    }
    if ((registers.low(STATE.systemFlags) & IF) === 0) return undefined;
    const vector = this.highestRequested();
    if (vector === undefined) return undefined;
    this.setRequested(vector, false);
    return { vector, source: "external" };
  }

  /** Whether an interrupt that is waiting would end a halt. */
  get wakes(): boolean {
    const { registers } = this;
    if (registers.low(STATE.nmiRequested) !== 0 && registers.low(STATE.nmiBlocked) === 0) return true;
    return (registers.low(STATE.systemFlags) & IF) !== 0 && this.highestRequested() !== undefined;
  }

  /** A trap of the instruction before, which stopped the machine or loaded ss. */
  pending(): Fault | undefined {
    const { registers } = this;
    const traps = registers.getWord("pendingTraps");
    if (traps === 0n || this.shadowed) return undefined;
    registers.setWord("pendingTraps", 0n);
    this.noteStatus(traps);
    return { vector: "#DB", trap: true };
  }

  /** The instruction breakpoint at rip, unless RF says that it was met already. */
  before(): Fault | undefined {
    const { registers } = this;
    const flags = registers.low(STATE.systemFlags);
    this.start = {
      rip: registers.rip,
      stepping: (flags & Number(FLAG.TF)) !== 0,
      resuming: (flags & Number(FLAG.RF)) !== 0,
      interruptible: (flags & IF) !== 0,
    };
    this.met = 0n;
    if (this.start.resuming) return undefined;
    const rip = BigInt.asUintN(64, BigInt(registers.rip));
    const hit = this.breakpoints(KIND.execute).filter((n) => registers.getWord("dr", n) === rip);
    if (hit.length === 0) return undefined;
    this.noteStatus(hit.reduce((bits, n) => bits | (1n << BigInt(n)), 0n));
    return { vector: "#DB", trap: false };
  }

  /**
   * Notes the traps behind an instruction that retired: that it began with TF set, or met a data breakpoint.
   * `repeats` says that it is a repeated one that goes on.
   */
  after(repeats: boolean): void {
    const { registers, start } = this;
    if (start === undefined) return;
    const flags = registers.rflags;
    // RF lasts for one instruction with all its iterations.
    if (repeats) registers.rflags = flags | FLAG.RF;
    else if (start.resuming) registers.rflags = flags & ~FLAG.RF;
    const shadow = registers.getWord("shadow");
    if (shadow === BigInt.asUintN(64, BigInt(start.rip))) registers.setWord("shadow", EMPTY_RIP);
    // A load of ss, unlike sti, puts off debug traps as well, and its own single step for good.
    const loadedStack = this.shadowed && start.interruptible === ((flags & FLAG.IF) !== 0n);
    let traps = this.met;
    this.forgetStep();
    if (start.stepping && !loadedStack) traps |= DR6_STEP;
    if (traps !== 0n) registers.setWord("pendingTraps", registers.getWord("pendingTraps") | traps);
    this.look();
  }

  /** Of a system instruction under way: what it does to the flags that traps depend on. */
  executed(mnemonic: Mnemonic): void {
    const { start } = this;
    if (start === undefined) return;
    // RF is what iretq has loaded; and these two trap by TF as they leave it.
    if (mnemonic === Mnemonic.Iretq || mnemonic === Mnemonic.Iretd) start.resuming = false;
    if (mnemonic === Mnemonic.Syscall || mnemonic === Mnemonic.Sysretq)
      start.stepping = (this.registers.low(STATE.systemFlags) & Number(FLAG.TF)) !== 0;
  }

  /** The instruction under way delivers an interrupt itself, which is not stepped into. */
  forgetStep(): void {
    this.start = undefined;
    this.met = 0n;
  }

  // ---- Data breakpoints.

  /** Whether an access to `page` may meet one. */
  isWatched(page: Addr): boolean {
    return this.watches.some(({ at, size }) => at < page + PAGE_SIZE && at + size > page);
  }

  /** An access was made, by an instruction that may still not retire. */
  accessed(at: Addr, size: number, write: boolean): void {
    for (const watch of this.watches) {
      const meets = watch.at < at + size && watch.at + watch.size > at;
      if (meets && (write || !watch.writesOnly)) this.met |= watch.bit;
    }
  }

  private dataBreakpoints(): Watch[] {
    const { registers } = this;
    const control = registers.getWord("dr", 7);
    const watch = (n: number): Watch => {
      const size = LENGTHS[Number((control >> BigInt(18 + 4 * n)) & 3n)]!;
      // What is below its length is not looked at (SDM vol. 3, 17.2.5).
      const at = BigInt.asIntN(64, registers.getWord("dr", n) & ~BigInt(size - 1));
      const kind = (control >> BigInt(16 + 4 * n)) & 3n;
      return { bit: 1n << BigInt(n), at: Number(at), size, writesOnly: kind === KIND.write };
    };
    return [...this.breakpoints(KIND.write), ...this.breakpoints(KIND.access)].map(watch);
  }

  /** Numbers of the enabled breakpoints of a kind. */
  private breakpoints(kind: bigint): number[] {
    const control = this.registers.getWord("dr", 7);
    if ((control & 0xffn) === 0n) return [];
    return [0, 1, 2, 3].filter(
      (n) => ((control >> BigInt(2 * n)) & ENABLED) !== 0n && ((control >> BigInt(16 + 4 * n)) & 3n) === kind,
    );
  }

  /** In the one instruction after sti or a load of ss. */
  private get shadowed(): boolean {
    return this.registers.getWord("shadow") === BigInt.asUintN(64, BigInt(this.registers.rip));
  }

  /** The highest vector has the highest priority (SDM vol. 3, 10.8.3). */
  private highestRequested(): number | undefined {
    for (let word = 3; word >= 0; word--) {
      const bits = this.registers.getWord("requested", word);
      if (bits !== 0n) return 64 * word + bits.toString(2).length - 1;
    }
    return undefined;
  }

  private setRequested(vector: number, on: boolean): void {
    const word = Math.floor(vector / 64);
    const bit = 1n << BigInt(vector % 64);
    const bits = this.registers.getWord("requested", word);
    this.registers.setWord("requested", on ? bits | bit : bits & ~bit, word);
    this.registers.setLow(STATE.attention, this.highestRequested() === undefined ? 0 : 1);
  }

  private noteStatus(bits: bigint): void {
    this.registers.setWord("dr", this.registers.getWord("dr", 6) | bits, 6);
  }
}
