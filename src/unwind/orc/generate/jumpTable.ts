// Where a switch statement's jump goes: the words of its table in constant data that lead into the jump's own function.
//
// No table says how long it is. It ends before a word that leads elsewhere, before the next object or table that
// code refers to, and with the data.

import type { Addr } from "../../../base/addr.ts";
import { isCanonical } from "../../../base/addr.ts";
import type { Code } from "./code.ts";
import type { Step } from "./effect.ts";
import type { Value } from "./value.ts";

export type Target = Value & { readonly kind: "target" };

export class JumpTables {
  private readonly code: Code;
  /** Addresses that instructions name; data begins there. */
  private references: ReadonlySet<Addr> | undefined;

  constructor(code: Code) {
    this.code = code;
  }

  /** The places in the function at `whole` that a jump to `target` may go to; none if that is no table of such. */
  targets({ table, relative }: Target, whole: Addr): Addr[] {
    this.references ??= referencesIn(this.code);
    const width = relative ? 4 : 8;
    const found: Addr[] = [];
    for (let at = table; ; at = (at + width) as Addr) {
      if (at !== table && (this.references.has(at) || this.code.parts.objects.has(at))) return found;
      const bytes = this.code.parts.data(at, width);
      if (bytes.length < width) return found;
      const view = new DataView(bytes.buffer, bytes.byteOffset, width);
      const target = relative ? table + view.getInt32(0, true) : Number(view.getBigInt64(0, true));
      const inside = this.code.functionAt(target as Addr)?.whole === whole;
      // Its very start stands in tables of functions.
      if (!isCanonical(target) || !inside || target === whole) return found;
      found.push(target as Addr);
    }
  }
}

function referencesIn(code: Code): ReadonlySet<Addr> {
  const found = new Set<Addr>();
  for (const { address, size } of code.functions) {
    for (let at = address; at < address + size; ) {
      const step = code.step(at);
      if (step === undefined) break;
      for (const reference of referencesOf(step)) found.add(reference as Addr);
      at = step.instruction.next;
    }
  }
  return found;
}

function referencesOf({ instruction: { memory, operands } }: Step): number[] {
  const immediates = operands.flatMap((operand) =>
    operand.kind === "immediate" && operand.size === 8 ? [Number(BigInt.asIntN(64, operand.value))] : [],
  );
  return memory === undefined || memory.base !== undefined
    ? immediates
    : [...immediates, Number(memory.displacement)];
}
