// One instruction's effect on what is known of registers and stack.
//
// Known: moves, pushes and pops of whole words, addition of constants, alignment of rsp, `leave`, and the loads that
// a switch statement's jump makes. Whatever else an instruction writes is unknown after it.

import type { Addr } from "../../../base/addr.ts";
import { type Instruction, Mnemonic, type Operand } from "../../../x86/decode.ts";
import type { Effects } from "../../../x86/effects.ts";
import { type Gpr, RAX, RBP, RSP } from "../../../x86/register.ts";
import type { StackState } from "./state.ts";
import { absolute, moved, type Place, place, type Value } from "./value.ts";

/** An instruction with all that it does. */
export interface Step {
  readonly instruction: Instruction;
  readonly effects: Effects;
}

/** rax, rcx, rdx, rsi, rdi, r8 to r11: what a called function may change (System V psABI, 3.2.1). */
const CALL_CLOBBERED: readonly Gpr[] = [0, 1, 2, 6, 7, 8, 9, 10, 11];

/** `state` after the instruction; a call has returned. */
export function after(state: StackState, { instruction, effects }: Step): StackState {
  const next = state.copy();
  switch (instruction.mnemonic) {
    case Mnemonic.Call:
      for (const register of CALL_CLOBBERED) next.set(register, undefined);
      next.storeAnywhere();
      break;
    case Mnemonic.Push:
      push(next, -effects.stackPointer, operandValue(next, instruction, instruction.operands[0]!, false));
      break;
    case Mnemonic.Pop:
      pop(next, effects.stackPointer, instruction);
      break;
    case Mnemonic.Leave:
      next.set(RSP, next.get(RBP));
      next.set(RBP, popped(next, 8));
      break;
    case Mnemonic.Mov:
    case Mnemonic.Movsxd:
    case Mnemonic.Lea:
    case Mnemonic.Add:
    case Mnemonic.Sub:
    case Mnemonic.And:
      assign(next, instruction, resultOf(next, instruction));
      break;
    case Mnemonic.Cdqe: {
      const rax = next.get(RAX);
      next.set(RAX, rax?.kind === "distance" ? rax : undefined);
      break;
    }
    default:
      other(next, instruction, effects);
  }
  return next;
}

/** What the destination holds afterwards, if that is known. */
function resultOf(state: StackState, instruction: Instruction): Value | undefined {
  const [to, from] = instruction.operands as [Operand, Operand];
  switch (instruction.mnemonic) {
    case Mnemonic.Mov:
    case Mnemonic.Movsxd:
      return operandValue(state, instruction, from, to.kind === "register");
    case Mnemonic.Lea:
      return addressOf(state, instruction) ?? elementOf(tableOf(state, instruction));
    case Mnemonic.Add:
    case Mnemonic.Sub:
      return sum(state, instruction, to, from);
    default:
      return alignment(state, instruction, to, from);
  }
}

function sum(state: StackState, instruction: Instruction, to: Operand, from: Operand): Value | undefined {
  if (to.kind !== "register" || to.size !== 8) return undefined;
  const left = state.get(to.reg);
  const subtract = instruction.mnemonic === Mnemonic.Sub;
  if (from.kind === "immediate") {
    const bytes = constant(from) * (subtract ? -1 : 1);
    return left === undefined ? elementOf(bytes as Addr) : moved(left, bytes);
  }
  if (from.kind !== "register" || subtract) return undefined;
  const right = state.get(from.reg);
  const [table, added] = absolute(left) === undefined ? [absolute(right), left] : [absolute(left), right];
  if (added?.kind === "distance" && added.table === table) return { kind: "target", table, relative: true };
  return added === undefined ? elementOf(table) : undefined;
}

function elementOf(table: Addr | undefined): Value | undefined {
  return table === undefined ? undefined : { kind: "element", table };
}

/** An aligned stack pointer is a place that everything further counts from, for its distance from others is unknown. */
function alignment(state: StackState, { ip }: Instruction, to: Operand, from: Operand): Value | undefined {
  if (to.kind !== "register" || to.reg !== RSP || to.size !== 8 || from.kind !== "immediate")
    return undefined;
  const unit = -constant(from);
  if (unit < 8 || Math.log2(unit) % 1 !== 0 || state.get(RSP)?.kind !== "place") return undefined;
  const base = `aligned${ip}`;
  state.forget(base); // from the last time round a loop
  return place(base, 0);
}

function assign(state: StackState, instruction: Instruction, value: Value | undefined): void {
  const to = instruction.operands[0]!;
  if (to.kind === "memory") store(state, instruction, to.size, value);
  // A distance is loaded as a whole register's lower half; `cltq` makes it one.
  else if (to.kind === "register")
    state.set(to.reg, to.size === 8 || value?.kind === "distance" ? value : undefined);
}

/** What an operand holds, eight bytes or a distance; `reload` if it goes into a register. */
function operandValue(
  state: StackState,
  instruction: Instruction,
  operand: Operand,
  reload: boolean,
): Value | undefined {
  switch (operand.kind) {
    case "register":
      return operand.size === 8 ? state.get(operand.reg) : undefined;
    case "immediate":
      return operand.size === 8 ? place("absolute", constant(operand)) : undefined;
    case "memory": {
      const table = tableOf(state, instruction);
      if (table !== undefined && operand.size === 4) return { kind: "distance", table };
      if (operand.size !== 8) return undefined;
      if (table !== undefined) return { kind: "target", table, relative: false };
      return state.load(addressOf(state, instruction), reload);
    }
    default:
      return undefined;
  }
}

function push(state: StackState, size: number, value: Value | undefined): void {
  const rsp = moved(state.get(RSP), -size);
  state.set(RSP, rsp);
  if (rsp !== undefined) state.store(rsp, size, value, true);
}

/** The word that rsp leaves behind. */
function popped(state: StackState, size: number): Value | undefined {
  const rsp = moved(state.get(RSP), 0);
  const value = size === 8 ? state.load(rsp, true) : undefined;
  state.set(RSP, moved(rsp, size));
  return value;
}

function pop(state: StackState, size: number, instruction: Instruction): void {
  const value = popped(state, size);
  const to = instruction.operands[0]!;
  if (to.kind === "register") state.set(to.reg, size === 8 ? value : undefined);
  else if (to.kind === "memory") store(state, instruction, size, value);
}

function other(
  state: StackState,
  instruction: Instruction,
  { writes, stackPointer, writesMemory }: Effects,
): void {
  const counted = stackPointer !== 0 && instruction.mnemonic !== Mnemonic.Enter;
  for (const register of writes) if (register !== RSP || !counted) state.set(register, undefined);
  const to = instruction.operands.find(({ kind }) => kind === "memory");
  if (counted && stackPointer < 0) push(state, -stackPointer, undefined);
  else if (counted) state.set(RSP, moved(state.get(RSP), stackPointer));
  else if (writesMemory && to?.kind === "memory" && to.size > 0) store(state, instruction, to.size);
  else if (writesMemory) state.storeAnywhere();
}

/** Writes the memory operand: a known place if rsp or a frame pointer says where, else anything but what was saved. */
function store(state: StackState, instruction: Instruction, size: number, value?: Value): void {
  const base = instruction.memory?.base;
  const inFrame = base === RSP || (base === RBP && state.framePointer() !== undefined);
  const at = inFrame ? addressOf(state, instruction) : undefined;
  if (at === undefined) state.storeAnywhere();
  else state.store(at, size, value);
}

/** Where the memory operand lies, if that is known. */
function addressOf(state: StackState, { memory, addressSize }: Instruction): Place | undefined {
  if (memory === undefined || addressSize !== 8) return undefined;
  if (memory.index !== undefined || memory.segment !== undefined) return undefined;
  const displacement = Number(memory.displacement);
  if (memory.base === undefined) return place("absolute", displacement);
  return moved(state.get(memory.base), displacement);
}

/** Where the table begins of which the memory operand is an element: a known address, with unknown registers added. */
export function tableOf(state: StackState, { memory, addressSize }: Instruction): Addr | undefined {
  if (memory === undefined || memory.segment !== undefined || addressSize !== 8) return undefined;
  let table = Number(memory.displacement);
  let unknown = false;
  for (const [register, shift] of [[memory.base, 0] as const, [memory.index, memory.shift] as const]) {
    const value = register === undefined ? undefined : state.get(register);
    const at = value?.kind === "element" ? value.table : absolute(value);
    if (shift === 0 && at !== undefined) table += at;
    if (value?.kind === "element" || (register !== undefined && value === undefined)) unknown = true;
  }
  return unknown ? (table as Addr) : undefined;
}

function constant(operand: Operand & { readonly kind: "immediate" }): number {
  return Number(BigInt.asIntN(64, operand.value));
}
