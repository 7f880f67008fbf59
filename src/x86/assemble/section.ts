// A section while it is being assembled: a list of fragments whose sizes may still be open.
//
// Bytes collect in one fragment until something of open size follows: a branch to be relaxed, an alignment,
// a run or an `.org` that depends on labels. Refuses contents in a section that has none (.bss).

import type { RelocationType } from "../object.ts";
import type { Expression } from "./expression.ts";
import { fail, type Statement } from "./fault.ts";
import type { Label, SourceSymbol } from "./symbol.ts";

/** A field whose value waits for layout or for the linker. */
export interface Fixup {
  /** Of the field, in its fragment's bytes. */
  readonly offset: number;
  /** In bytes. */
  readonly size: 1 | 2 | 4 | 8;
  /** For a relocation against an absolute symbol; null where such fields have none (8 and 16 bits). */
  readonly type: RelocationType | null;
  /** The field holds a distance from the instruction's end, this many bytes after the field's start. */
  readonly toEnd: number | null;
  readonly expression: Expression;
  readonly statement: Statement;
}

/** The encodings of one branch: opcode bytes before an 8-bit and before a 32-bit displacement. */
export interface BranchForm {
  readonly short: readonly number[] | null;
  readonly near: readonly number[] | null;
}

export type Fragment =
  | { readonly kind: "bytes"; readonly bytes: number[]; readonly fixups: Fixup[] }
  | {
      readonly kind: "branch";
      readonly form: BranchForm;
      readonly target: Expression;
      near: boolean;
      readonly statement: Statement;
    }
  | {
      readonly kind: "align";
      readonly to: number;
      readonly most: number;
      readonly fill: readonly number[] | "nops";
    }
  | {
      readonly kind: "run";
      readonly count: Expression;
      readonly fill: readonly number[];
      readonly statement: Statement;
    }
  | { readonly kind: "org"; readonly to: Expression; readonly fill: number; readonly statement: Statement };

export interface SectionFlags {
  readonly write: boolean;
  readonly execute: boolean;
  readonly alloc: boolean;
  readonly nobits: boolean;
}

export class SectionBuilder {
  readonly name: string;
  readonly flags: SectionFlags;
  readonly fragments: Fragment[] = [{ kind: "bytes", bytes: [], fixups: [] }];
  align = 1;

  constructor(name: string, flags: SectionFlags) {
    this.name = name;
    this.flags = flags;
  }

  /** The place of the next byte. */
  get here(): Label {
    return { section: this, fragment: this.fragments.length - 1, offset: this.open.bytes.length };
  }

  /** Appends bytes; the offsets of `fixups` count from the first of them. */
  emit(bytes: ArrayLike<number>, fixups: readonly Fixup[] = []): void {
    const { open } = this;
    const start = open.bytes.length;
    for (let i = 0; i < bytes.length; i++) open.bytes.push(bytes[i]!);
    if (this.flags.nobits && (fixups.length > 0 || open.bytes.some((byte) => byte !== 0)))
      fail(`section ${this.name} holds no contents, only .skip and .zero`);
    for (const fixup of fixups) open.fixups.push({ ...fixup, offset: start + fixup.offset });
  }

  /** Appends a fragment of open size, and a new one for the bytes after it. */
  append(fragment: Exclude<Fragment, { kind: "bytes" }>): void {
    if (fragment.kind === "branch" && this.flags.nobits)
      fail(`section ${this.name} holds no contents, only .skip and .zero`);
    if (fragment.kind === "align") this.align = Math.max(this.align, fragment.to);
    this.fragments.push(fragment, { kind: "bytes", bytes: [], fixups: [] });
  }

  private get open(): Extract<Fragment, { kind: "bytes" }> {
    const last = this.fragments[this.fragments.length - 1]!;
    if (last.kind !== "bytes") throw new Error("a section must end in bytes");
    return last;
  }
}

/** `a - b` while assembling: known when nothing of open size stands between the two labels. */
export function distanceNow(a: SourceSymbol, b: SourceSymbol): bigint | null {
  if (!a.label || !b.label || a.label.section !== b.label.section) return null;
  const [low, high] = a.label.fragment < b.label.fragment ? [a.label, b.label] : [b.label, a.label];
  let between = high.offset - low.offset;
  for (let i = low.fragment; i < high.fragment; i++) {
    const fragment = low.section.fragments[i]!;
    if (fragment.kind !== "bytes") return null;
    between += fragment.bytes.length;
  }
  return BigInt(low === a.label && low !== high ? -between : between);
}
