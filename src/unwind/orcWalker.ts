// The ORC walker: each frame by the rule that holds for its address.
//
// The address of a call's return is looked up one byte before, as it may lie past the last instruction of its
// function (Linux arch/x86/kernel/unwind_orc.c). Two kinds of address are looked up as they are: of an interrupted
// instruction, and of a function's start that a trampoline returns to, or a new task.

import type { Addr } from "../base/addr.ts";
import { PT_REGS } from "../machine/ptRegs.ts";
import type { CfaRegister, OrcRule } from "./orc/entry.ts";
import { HARDWARE_FRAME, HARDWARE_FRAME_SIZE, interrupted, isBeginning } from "./savedRegisters.ts";
import {
  type Doubt,
  type ExtraRegister,
  StackCursor,
  type Start,
  Trace,
  type UnwindContext,
  type Unwinder,
  type Walk,
} from "./walk.ts";

export const orcUnwinder: Unwinder = {
  name: "orc",
  walk: (context, start) => new OrcWalk(context).from(start),
};

const SAVED = PT_REGS.fields;

/** One walk. Every decision is a method of its own, so that others can decide otherwise. */
export class OrcWalk {
  protected readonly context: UnwindContext;
  protected readonly trace = new Trace();
  protected readonly cursor: StackCursor;
  protected ip!: Addr;
  /** `ip` is where execution is, not where a call returns to. */
  protected exact = false;
  protected sp!: Addr;
  protected bp = Number.NaN;
  /** Where the registers were saved that the code at `ip` has; its address for a pt_regs in memory. */
  protected registers: Addr | ((name: ExtraRegister) => number) | undefined;

  constructor(context: UnwindContext) {
    this.context = context;
    this.cursor = new StackCursor(context);
  }

  from(start: Start): Walk {
    switch (start.from) {
      case "live":
        this.ip = start.ip;
        this.exact = true;
        this.sp = start.sp;
        this.bp = start.bp;
        this.registers = start.register;
        return this.follow();
      case "switched-out":
        this.bp = start.bp;
        this.sp = (start.slot + 8) as Addr;
        // A frame below that is none.
        if (!this.moveTo(start.slot, 8)) return this.trace.end();
        return this.arrive("return", start.ip, start.slot) ? this.follow() : this.trace.end();
      case "unstarted":
        this.ip = start.ip;
        this.exact = true;
        this.sp = start.sp;
        return this.follow();
      case "registers":
        return this.cross(start.regs, HARDWARE_FRAME) ? this.follow() : this.trace.end();
    }
  }

  private follow(): Walk {
    for (;;) {
      const rule = this.context.orc.find(this.lookupAddress());
      if (rule === undefined) return this.trace.end("no-orc", this.ip);
      const last = this.last(rule);
      if (last !== undefined) return last;
      if (!this.unwind(rule)) return this.trace.end();
    }
  }

  /** Which address the rule is looked up for. */
  protected lookupAddress(): Addr {
    const before = (this.ip - 1) as Addr;
    if (this.exact) return this.ip;
    // No call ends there: a new task "returns" to where it begins.
    const rule = this.context.orc.find(before);
    const isCall = rule !== undefined && rule.type !== "UNDEFINED";
    return isCall || !this.context.isFunctionStart(this.ip) ? before : this.ip;
  }

  /** How the walk ends at a rule without a frame. */
  protected last(rule: OrcRule): Walk | undefined {
    switch (rule.type) {
      case "UNDEFINED":
        return this.trace.end("orc-undefined", this.ip);
      case "END_6_1":
        return this.trace.end("orc-ambiguous-end", this.ip);
      case "END_OF_STACK":
        return isBeginning(this.context, this.sp) ? this.trace.end() : this.trace.end("early-end", this.ip);
      default:
        return undefined;
    }
  }

  /** To the caller's frame; false if the walk ends. */
  protected unwind(rule: OrcRule): boolean {
    const cfa = this.cfa(rule.cfa.register, rule.cfa.offset);
    if (cfa === undefined) return false;
    if (rule.type === "REGS") return this.cross(cfa, HARDWARE_FRAME);
    const bp = this.callersBp(rule, cfa);
    if (bp === undefined) return false;
    this.bp = bp;
    if (rule.type === "REGS_PARTIAL") return this.cross(cfa, 0);
    const slot = (cfa - 8) as Addr;
    if (!this.moveTo(slot, 8)) return false;
    this.sp = cfa;
    this.registers = undefined;
    return this.arrive("return", this.context.read(slot)!, slot);
  }

  /** The anchor of the frame, or undefined with a doubt. */
  protected cfa(register: CfaRegister, offset: number): Addr | undefined {
    switch (register) {
      case "sp":
        return (this.sp + offset) as Addr;
      case "bp":
        return (this.bp + offset) as Addr;
      case "sp-indirect":
        return this.word(this.sp, offset);
      case "bp-indirect": {
        return this.word((this.bp + offset) as Addr, 0);
      }
      case "undefined":
        this.trace.suspect("orc-register", this.ip);
        return undefined;
      default: {
        const value = this.register(register);
        if (value === undefined) this.trace.suspect("orc-register", this.ip);
        return value === undefined ? undefined : ((value + offset) as Addr);
      }
    }
  }

  /** The word at `at` on the stack, plus `offset`. */
  private word(at: Addr, offset: number): Addr | undefined {
    if (!this.moveTo(at, 8)) return undefined;
    return (this.context.read(at)! + offset) as Addr;
  }

  private register(name: ExtraRegister): number | undefined {
    const { registers } = this;
    if (typeof registers === "function") return registers(name);
    return registers === undefined ? undefined : this.context.read((registers + SAVED[name].offset) as Addr);
  }

  /** What rbp was in the caller; undefined, with a doubt, if it should be on the stack and is not. */
  protected callersBp({ bp }: OrcRule, cfa: Addr): number | undefined {
    if (bp.register === "undefined") return this.bp;
    const at = ((bp.register === "prevsp" ? cfa : this.bp) + bp.offset) as Addr;
    const saved = (at & 7) === 0 ? this.context.read(at) : undefined;
    if (saved === undefined) this.trace.suspect("outside-stack", this.ip);
    return saved;
  }

  /** Past saved registers, of which the hardware's part begins `hardware` bytes from `at`; false if the walk ends. */
  protected cross(at: Addr, hardware: number): boolean {
    const size = hardware + HARDWARE_FRAME_SIZE;
    if (!this.moveTo(at, size)) return false;
    const frame = (at + hardware) as Addr;
    const what = this.interrupted(frame);
    if (what !== "kernel") {
      if (what !== "user") this.trace.suspect(what, at);
      return false;
    }
    const saved = (field: "ip" | "sp" | "bp") =>
      this.context.read((frame + SAVED[field].offset - HARDWARE_FRAME) as Addr)!;
    this.sp = saved("sp") as Addr;
    if (hardware === 0) {
      this.registers = undefined;
    } else {
      this.registers = at;
      this.bp = saved("bp");
    }
    return this.arrive("interrupted", saved("ip"), frame);
  }

  /** What the hardware's frame at `frame` says was interrupted. */
  protected interrupted(frame: Addr): ReturnType<typeof interrupted> {
    return interrupted(this.context, frame, this.cursor.current!);
  }

  /** Goes on from an address that was found in `slot`; false if that ends the walk. */
  protected arrive(kind: "return" | "interrupted", word: number, slot: Addr): boolean {
    const left = this.ip as Addr | undefined;
    const address = kind === "return" ? this.recovered(word, slot) : (word as Addr);
    if (address === undefined) {
      this.trace.suspect("return-replaced", slot);
      return false;
    }
    if (!this.context.isText(address)) {
      this.trace.suspect("not-text", slot);
      return false;
    }
    this.ip = address;
    this.exact = kind === "interrupted" || (left !== undefined && this.isRedirected(left, address));
    return this.trace.push(kind, address, slot);
  }

  /** What a return address was before it was replaced, if it was. */
  protected recovered(word: number, slot: Addr): Addr | undefined {
    return Number.isNaN(word) ? (word as Addr) : this.context.recover(word as Addr, slot);
  }

  /** Whether the code at `from`, a trampoline, returns to the start of a function and not behind its own call. */
  protected isRedirected(from: Addr, address: Addr): boolean {
    return this.context.isTrampoline(from) && this.context.isFunctionStart(address);
  }

  private moveTo(at: Addr, size: number): boolean {
    const why: Doubt | undefined = this.cursor.moveTo(at, size);
    if (why !== undefined) this.trace.suspect(why, this.ip ?? at);
    return why === undefined;
  }
}
