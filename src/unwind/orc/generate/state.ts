// What is known of registers and stack before an instruction, on every path to it, and the ORC rule that follows.
//
// Only what holds is kept: a register that may have changed is unknown, a word of the stack that may have been overwritten,
// or that rsp has gone past, is forgotten. Only saved registers are taken not to be written through unknown pointers.

import { PT_REGS } from "../../../machine/ptRegs.ts";
import { type Gpr, gprOf, RBP, RDI, RDX, RSP } from "../../../x86/register.ts";
import { type CfaRegister, frameless, type OrcRule, type OrcType } from "../entry.ts";
import { type Base, CALLERS_RBP, fromCfa, type Place, place, sameValue, type Value } from "./value.ts";

/** A word on the stack. */
interface Slot {
  readonly at: Place;
  readonly value: Value;
  /** Loaded into a register since it was written: no longer the only copy. */
  readonly reloaded: boolean;
  /** Written by a push. What a move writes may be a variable, which others may change. */
  readonly pushed: boolean;
}

/** As an ORC entry's type; `conflict` where paths of different types meet. */
export type StateType = OrcType | "conflict";

const R10 = gprOf("r10");
const R13 = gprOf("r13");
/** Registers that ORC can name besides rsp; the two that gcc keeps the cfa in while it aligns the stack come first. */
const ANCHORS: readonly (readonly [Gpr, CfaRegister])[] = [
  [R10, "r10"],
  [R13, "r13"],
  [RBP, "bp"],
  [RDI, "di"],
  [RDX, "dx"],
];
const { bp: SAVED_BP, ip: SAVED_IP } = PT_REGS.fields;
const LIMIT = 2 ** 15;

export class StackState {
  type: StateType;
  private readonly registers: (Value | undefined)[];
  private readonly slots: Map<string, Slot>;

  constructor(type: StateType, registers: (Value | undefined)[] = [], slots = new Map<string, Slot>()) {
    this.type = type;
    this.registers = registers;
    this.slots = slots;
  }

  copy(): StackState {
    return new StackState(this.type, [...this.registers], new Map(this.slots));
  }

  get(register: Gpr): Value | undefined {
    return this.registers[register];
  }

  set(register: Gpr, value: Value | undefined): void {
    this.registers[register] = value;
    if (register === RSP && value?.kind === "place") this.forgetBelow(value);
  }

  /** Nothing that counts from `base` is known any more. */
  forget(base: Base): void {
    for (const [n, value] of this.registers.entries())
      if (value?.kind === "place" && value.base === base) this.registers[n] = undefined;
    for (const [key, { at, value }] of this.slots)
      if (at.base === base || (value.kind === "place" && value.base === base)) this.slots.delete(key);
  }

  /** The word at `at`; `reload` if it goes into a register. */
  load(at: Place | undefined, reload: boolean): Value | undefined {
    const slot = at && this.slots.get(keyOf(at));
    if (slot === undefined) return undefined;
    if (reload) this.slots.set(keyOf(slot.at), { ...slot, reloaded: true });
    return slot.value;
  }

  /** Writes `size` bytes at `at`, of which something is known only if they are a word. */
  store(at: Place, size: number, value?: Value, pushed = false): void {
    for (const [key, slot] of this.slots) {
      const distance = slot.at.offset - at.offset;
      if (slot.at.base === at.base && distance > -8 && distance < size) this.slots.delete(key);
    }
    if (value !== undefined && size === 8) this.slots.set(keyOf(at), { at, value, reloaded: false, pushed });
  }

  /** Somebody wrote through a pointer of unknown value: to a variable, perhaps, but not to what was saved. */
  storeAnywhere(): void {
    for (const [key, { value, pushed }] of this.slots)
      if (!pushed && !sameValue(value, CALLERS_RBP) && fromCfa(value) !== 0) this.slots.delete(key);
  }

  /** What holds in this state and in `other`; this state itself if nothing is lost. */
  join(other: StackState): StackState {
    const joined = this.copy();
    let lost = false;
    if (this.type !== other.type && this.type !== "conflict") {
      joined.type = "conflict";
      lost = true;
    }
    for (const [n, value] of this.registers.entries()) {
      if (value === undefined || sameValue(value, other.registers[n])) continue;
      joined.registers[n] = undefined;
      lost = true;
    }
    for (const [key, slot] of this.slots) {
      const same = other.slots.get(key);
      if (same === undefined || !sameValue(slot.value, same.value)) joined.slots.delete(key);
      else if (slot.reloaded && !same.reloaded) joined.slots.set(key, same);
      else continue;
      lost = true;
    }
    return lost ? joined : this;
  }

  /** The rule that describes this state, undefined where ORC has none. */
  rule(): OrcRule | undefined {
    const { type } = this;
    switch (type) {
      case "conflict":
        return undefined;
      case "UNDEFINED":
      case "END_OF_STACK":
      case "END_6_1":
        return frameless(type);
      case "CALL":
      case "REGS_PARTIAL":
        return this.framed(type, 0);
      case "REGS": {
        // What rsp has gone past may be overwritten by the next exception; of a pt_regs the iret frame stays.
        const popped = fromCfa(this.get(RSP)) ?? 0;
        return popped > 0 ? this.framed("REGS_PARTIAL", SAVED_IP.offset) : this.framed(type, 0);
      }
    }
  }

  /** What a rule lacks in a state that has none. */
  missing(): "frame-lost" | "rbp-lost" | "frame-too-large" {
    if (this.type === "conflict" || this.cfa() === undefined) return "frame-lost";
    return this.type !== "REGS" && this.callersRbp() === undefined ? "rbp-lost" : "frame-too-large";
  }

  /** With an anchor that lies `shift` bytes above the cfa of this state. */
  private framed(type: "CALL" | "REGS" | "REGS_PARTIAL", shift: number): OrcRule | undefined {
    const cfa = this.cfa();
    const bp = type === "REGS" ? NOT_SAVED : this.callersRbp();
    if (cfa === undefined || bp === undefined) return undefined;
    const shifted = {
      type,
      cfa: { ...cfa, offset: cfa.offset + shift },
      bp: bp.register === "prevsp" ? { ...bp, offset: bp.offset - shift } : bp,
      signal: type !== "CALL",
    };
    return [shifted.cfa, shifted.bp].every(({ offset }) => offset >= -LIMIT && offset < LIMIT)
      ? shifted
      : undefined;
  }

  /** rbp where it points at the caller's, which makes it a frame pointer. */
  framePointer(): Place | undefined {
    const rbp = this.get(RBP);
    if (rbp?.kind !== "place" || !sameValue(this.load(rbp, false), CALLERS_RBP)) return undefined;
    return rbp;
  }

  private cfa(): OrcRule["cfa"] | undefined {
    const [rsp, rbp] = [this.get(RSP), this.get(RBP)];
    const [sp, bp] = [fromCfa(rsp), fromCfa(this.framePointer())];
    if (bp !== undefined) return { register: "bp", offset: -bp };
    if (sp !== undefined) return { register: "sp", offset: -sp };
    const saved = rbp?.kind === "place" ? this.oldest(rbp.base, place("cfa", 0)) : undefined;
    const inMemory = saved && {
      register: "bp-indirect" as const,
      offset: saved.at.offset - (rbp as Place).offset,
    };
    if (saved?.reloaded === false) return inMemory;
    for (const [register, name] of ANCHORS) {
      const value = fromCfa(this.get(register));
      if (value !== undefined) return { register: name, offset: -value };
    }
    if (inMemory !== undefined) return inMemory;
    const link = rsp?.kind === "place" ? fromCfa(this.load(rsp, false)) : undefined;
    return link === undefined ? undefined : { register: "sp-indirect", offset: -link };
  }

  private callersRbp(): OrcRule["bp"] | undefined {
    const rbp = this.get(RBP);
    const inFrame = this.oldest("cfa", CALLERS_RBP);
    const saved = inFrame ?? (rbp?.kind === "place" ? this.oldest(rbp.base, CALLERS_RBP) : undefined);
    const untouched = sameValue(rbp, CALLERS_RBP);
    if (saved === undefined || (saved.reloaded && untouched)) return untouched ? NOT_SAVED : undefined;
    if (inFrame !== undefined) return { register: "prevsp", offset: inFrame.at.offset };
    return { register: "bp", offset: saved.at.offset - (rbp as Place).offset };
  }

  /** The slot highest on the stack, so the first that was written, of those counted from `base` that hold `value`. */
  private oldest(base: Base, value: Value): Slot | undefined {
    let found: Slot | undefined;
    for (const slot of this.slots.values()) {
      if (slot.at.base !== base || !sameValue(slot.value, value)) continue;
      if (found === undefined || slot.at.offset > found.at.offset) found = slot;
    }
    return found;
  }

  /** What lies below rsp may be overwritten at any time. An aligned stack pointer lies below every place it came from. */
  private forgetBelow(rsp: Place): void {
    for (const [key, { at }] of this.slots) {
      const passed = at.base === rsp.base ? at.offset < rsp.offset : rsp.base === "cfa" && at.base !== "cfa";
      if (passed) this.slots.delete(key);
    }
  }
}

const NOT_SAVED = { register: "undefined", offset: 0 } as const;

function keyOf({ base, offset }: Place): string {
  return `${base}${offset}`;
}

/** As a function's first instruction finds things. */
export function atCall(): StackState {
  return anchored("CALL", place("cfa", -8));
}

/** rsp at `rsp`, the interrupted or calling code's rbp unchanged; of a pt_regs it is in its field. */
export function anchored(type: "CALL" | "REGS" | "REGS_PARTIAL", rsp: Place): StackState {
  const state = new StackState(type);
  state.set(RSP, rsp);
  if (type === "REGS") state.store(place("cfa", SAVED_BP.offset), 8, CALLERS_RBP);
  else state.set(RBP, CALLERS_RBP);
  return state;
}
