// Code to generate ORC from: assembled on the spot, or an object; with what it refers to and nobody defines at made-up
// places that have the names.

import { type Addr, addr } from "../../src/base/addr.ts";
import { includeGuestSource } from "../../src/guest.ts";
import type { Image } from "../../src/image/image.ts";
import { KERNEL_TEXT } from "../../src/image/layout.ts";
import { link } from "../../src/image/link.ts";
import { describeRule } from "../../src/unwind/orc/entry.ts";
import { type Code, codeOfImage } from "../../src/unwind/orc/generate/code.ts";
import { describeFinding } from "../../src/unwind/orc/generate/finding.ts";
import { type Generated, generateOrc } from "../../src/unwind/orc/generate/generate.ts";
import { loadAssembler } from "../../src/x86/assemble.ts";
import type { ObjectFile } from "../../src/x86/object.ts";

const ELSEWHERE = addr(KERNEL_TEXT + 2 ** 28);

export interface Subject extends Generated {
  readonly image: Image;
  readonly code: Code;
}

/** Links `objects` alone and generates their ORC. */
export function generateFor(objects: readonly ObjectFile[]): Subject {
  const names: string[] = [];
  const externals = (name: string): Addr => {
    const n = names.includes(name) ? names.indexOf(name) : names.push(name) - 1;
    return addr(ELSEWHERE + 16 * n);
  };
  const image = link(objects, { text: KERNEL_TEXT, externals });
  const code = codeOfImage(image, (at) => names[(at - ELSEWHERE) / 16]);
  return { image, code, ...generateOrc(code) };
}

/** The same for a source that begins with the guest's macros and is in .text. */
export async function assembled(source: string): Promise<Subject> {
  const assembler = await loadAssembler();
  const text = `.include "macros.inc"\n.text\n${source}\n`;
  return generateFor([assembler.assemble("test.S", text, { include: includeGuestSource })]);
}

/** `f+0x4 CALL cfa:sp+16 bp:prevsp-16`, one for each entry; what is between functions is `end`. */
export function listed({ code, entries }: Subject): string[] {
  return entries.map((entry) => `${code.describe(entry.address) ?? "end"} ${describeRule(entry)}`);
}

/** `f+0x4: sentence (states)`, one for each finding. */
export function found({ code, findings }: Subject): string[] {
  return findings.map((finding) => describeFinding(finding, (at) => code.describe(at) ?? "nowhere"));
}
