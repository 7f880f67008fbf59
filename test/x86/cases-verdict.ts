// An outcome held against a case, and turned into a right-hand side.
//
// Compares everything: sixteen registers, the defined flags, rip, the fault, every byte of the window.

import type { After, Case, Fault, Outcome, Program } from "./cases-model.ts";
import { bytesOf, DATA, FLAG_NAMES, FLAGS, REGISTERS, sameFault, windowOf } from "./cases-model.ts";
import { formatFault, formatValue, wordsOf } from "./cases-text.ts";

/** One line per difference, empty if the outcome is the case's right-hand side: `rax: expected 0x2, got 0x3`. */
export function differences(theCase: Case, outcome: Outcome): string[] {
  const { after } = theCase;
  if (after === null) return ["no right-hand side: let the processor write it with UPDATE=1"];
  const found: string[] = [];
  const note = (what: string, expected: string, got: string) => {
    if (expected !== got) found.push(`${what}: expected ${expected}, got ${got}`);
  };
  for (const name of REGISTERS)
    note(name, formatValue(after.registers[name]), formatValue(outcome.registers[name]));
  for (const name of FLAG_NAMES)
    if (!(after.undefinedFlags & FLAGS[name]))
      note(name, after.rflags & FLAGS[name] ? "1" : "0", outcome.rflags & FLAGS[name] ? "1" : "0");
  note("rip", formatValue(after.rip), formatValue(outcome.rip));
  if (!sameFault(after.fault, outcome.fault)) note("fault", faultText(after.fault), faultText(outcome.fault));
  const window = windowOf(theCase);
  const expected = bytesOf(after.memory);
  const offsets = new Set([...expected.keys(), ...outcome.changed.keys()]);
  for (const offset of [...offsets].sort((a, b) => a - b))
    note(
      `[${formatValue(BigInt(DATA + offset))}]`,
      byteText(expected.get(offset) ?? window[offset]!),
      byteText(outcome.changed.get(offset) ?? window[offset]!),
    );
  return found;
}

/** The right-hand side that an outcome amounts to. Throws if the program was cut off. */
export function settle(program: Program, outcome: Outcome, undefinedFlags: number): After {
  const { fault } = outcome;
  if (fault === "hang") throw new Error("a case must end");
  const { registers, rflags, rip } = outcome;
  return { registers, rflags, undefinedFlags, rip, fault, memory: wordsOf(program.before, outcome.changed) };
}

function faultText(fault: Fault | "hang" | null): string {
  return fault === null ? "none" : fault === "hang" ? "never ends" : formatFault(fault);
}

function byteText(byte: number): string {
  return `0x${byte.toString(16).padStart(2, "0")}`;
}
