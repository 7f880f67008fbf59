// Every instruction that can be lifted, by mnemonic.

import { type Instruction, Mnemonic, type Operand } from "../decode.ts";
import { alu } from "./alu.ts";
import { atomics } from "./atomic.ts";
import { bitOperations } from "./bit.ts";
import { bitManipulations } from "./bmi.ts";
import { branches, jumps } from "./control.ts";
import { checksums } from "./crc.ts";
import type { Family, Lift } from "./definition.ts";
import { nests } from "./emitter.ts";
import { flags } from "./flag.ts";
import { moves } from "./move.ts";
import { multiplications } from "./multiply.ts";
import { shifts } from "./shift.ts";
import { stack } from "./stack.ts";
import { strings } from "./string.ts";
import { hints, leaveToSystem, stops, system } from "./system.ts";

/** How an instruction takes part in a region of blocks. */
export type Role =
  /** Goes on with the next instruction. */
  | "straight"
  /** Goes elsewhere, and perhaps on with the next instruction, now or when a call returns: the last of its block. */
  | "branches"
  /** Never goes on with the next instruction. */
  | "jumps"
  /** Only ever interpreted: it stops the machine. */
  | "alone";

export interface Definition {
  readonly lift: Lift;
  readonly role: Role;
}

const DEFINITIONS = new Map<Mnemonic, Definition>();

function enter(family: Family, role: Role): void {
  for (const [name, lift] of Object.entries(family)) {
    const mnemonic = Mnemonic[name as keyof typeof Mnemonic];
    if (mnemonic === undefined || DEFINITIONS.has(mnemonic))
      throw new Error(`instruction ${name}: unknown or defined twice`);
    DEFINITIONS.set(mnemonic, { lift, role });
  }
}

for (const family of [
  alu,
  shifts,
  multiplications,
  moves,
  stack,
  bitOperations,
  bitManipulations,
  checksums,
  strings,
  atomics,
  flags,
  hints,
]) {
  enter(family, "straight");
}
enter(branches, "branches");
enter(jumps, "jumps");
enter(stops, "alone");
enter(system, "alone");

const SYSTEM_FORM: Definition = { lift: leaveToSystem, role: "alone" };

/** The mnemonics that can be lifted, in iced-x86's order. */
export function liftedMnemonics(): Mnemonic[] {
  return [...DEFINITIONS.keys()].sort((a, b) => a - b);
}

/** What `instruction` means, or undefined if it is not lifted (yet, or in this form). */
export function definitionOf(instruction: Instruction): Definition | undefined {
  const definition = DEFINITIONS.get(instruction.mnemonic);
  const has = (...kinds: Operand["kind"][]) => instruction.operands.some(({ kind }) => kinds.includes(kind));
  if (definition === undefined || has("other")) return undefined;
  if (has("segment", "control", "debug") || nests(instruction)) return SYSTEM_FORM;
  if (instruction.repeat === undefined || !has("string")) return definition;
  return { lift: definition.lift, role: "branches" }; // a repeated string instruction branches to itself
}
