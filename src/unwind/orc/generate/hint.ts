// What assembly says of the stack where it cannot be inferred: asm/macros.inc records it in the section .unwind_hints.
//
// A hint holds before the instruction at its address, whatever came before. Refuses hints of no known kind.

import type { Addr } from "../../../base/addr.ts";
import { hex } from "../../../base/addr.ts";
import { refuse } from "../../../base/refuse.ts";
import type { Image } from "../../../image/image.ts";

/** Kinds by number, as the assembler has them; SAVE notes a state, and RESTORE says that the last one saved holds again. */
export const HINT_KIND = {
  UNDEFINED: 0,
  END_OF_STACK: 1,
  CALL: 2,
  REGS: 3,
  REGS_PARTIAL: 4,
  SAVE: 5,
  RESTORE: 6,
} as const;

export type HintKind = keyof typeof HINT_KIND;

export interface Hint {
  readonly kind: HintKind;
  /** From rsp to the frame's anchor, in bytes; from where the word at rsp points if `indirect`. */
  readonly offset: number;
  readonly indirect: boolean;
}

/** A record: self-relative address, 4 bytes; offset, 2; kind, 1; indirect, 1. */
const HINT_SIZE = 8;

/** The symbols of kinds for the assembler: UNWIND_HINT_CALL and so on. */
export const HINT_CONSTANTS = Object.fromEntries(
  Object.entries(HINT_KIND).map(([kind, number]) => [`UNWIND_HINT_${kind}`, number]),
);

/** Of two hints at one address the last holds. */
export function readHints(image: Image): Map<Addr, Hint> {
  const hints = new Map<Addr, Hint>();
  for (const { address, size } of image.sectionsNamed(".unwind_hints")) {
    const bytes = image.bytes(address, size);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    for (let at = 0; at + HINT_SIZE <= bytes.length; at += HINT_SIZE) {
      const place = (address + at + view.getInt32(at, true)) as Addr;
      const number = view.getUint8(at + 6);
      const kind = KINDS.find((name) => HINT_KIND[name] === number);
      if (kind === undefined) {
        const what = `is of kind ${number}, which there is not`;
        refuse("unwind-hint", { name: image.name, at: hex(place), what });
      }
      hints.set(place, { kind, offset: view.getInt16(at + 4, true), indirect: view.getUint8(at + 7) !== 0 });
    }
  }
  return hints;
}

const KINDS = Object.keys(HINT_KIND) as HintKind[];
