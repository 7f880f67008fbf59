// Where the sections of a link go: by kind, each kind on pages of its own, so that permissions can differ.
//
// Within a kind, input sections of one name stand together as one output section, in the order in
// which names first appear, and inside it in the order of the objects: the same objects always
// give the same image, and tables such as __mcount_loc come out in one piece.
// Refuses sections that are writable and executable, executable sections without contents,
// and images too large for the space that they are placed in.

import type { Addr } from "../base/addr.ts";
import { addr, hex, PAGE_SIZE } from "../base/addr.ts";
import { refuse } from "../base/refuse.ts";
import type { ObjectFile, Section } from "../x86/object.ts";

/** The kinds, in the order in which they are laid out. */
export const KINDS = ["text", "rodata", "data", "bss"] as const;
export type Kind = (typeof KINDS)[number];

/** One input section and its address in the image. */
export interface Placed {
  /** Index into the objects that are linked. */
  readonly object: number;
  /** Index into that object's sections. */
  readonly section: number;
  readonly address: Addr;
}

/** All input sections of one name and kind, in one piece. */
export interface OutputSection {
  readonly name: string;
  readonly kind: Kind;
  readonly address: Addr;
  /** In bytes, with the padding between its parts. */
  readonly size: number;
  readonly parts: readonly Placed[];
}

/** The largest image, in bytes: what separates the kernel's text from module space, and more than any laboratory needs. */
const IMAGE_LIMIT = 256 * 2 ** 20;

/** The kind of a loaded section. Throws a Refusal for one that no page permission fits. */
export function kindOf(object: ObjectFile, section: Section): Kind {
  // An empty section could be either; without this an image has .bss twice.
  const reserved =
    section.bytes.length < section.size || (section.size === 0 && /^\.bss(\.|$)/.test(section.name));
  if (section.execute) {
    const place = { object: object.name, section: section.name };
    if (section.write) refuse("section-flags", { ...place, what: "writable and executable" });
    if (reserved) refuse("section-flags", { ...place, what: "executable and without contents" });
    return "text";
  }
  if (reserved) return "bss";
  return section.write ? "data" : "rodata";
}

interface Group {
  readonly kind: Kind;
  readonly name: string;
  align: number;
  readonly parts: { object: number; section: number }[];
}

/** Places every loaded section of `objects`, text first, from `text` on. */
export function place(objects: readonly ObjectFile[], text: Addr): OutputSection[] {
  const groups = new Map<string, Group>();
  objects.forEach((file, object) => {
    file.sections.forEach((input, section) => {
      if (!input.alloc) return;
      const kind = kindOf(file, input);
      const key = `${kind} ${input.name}`;
      const group = groups.get(key) ?? { kind, name: input.name, align: 1, parts: [] };
      groups.set(key, group);
      group.align = Math.max(group.align, input.align);
      group.parts.push({ object, section });
    });
  });
  const end = text < 0 ? 0 : 2 ** 47;
  const limit = Math.min(IMAGE_LIMIT, end - text);
  const outputs: OutputSection[] = [];
  let at = 0; // bytes from `text`: always small, so that no address leaves the canonical range
  for (const kind of KINDS) {
    at = alignUp(text + at, PAGE_SIZE) - text;
    for (const group of groups.values()) {
      if (group.kind !== kind) continue;
      // As ld does: the whole is as aligned as its most aligned part, so the padding inside never varies.
      at = alignUp(text + at, group.align) - text;
      const parts = group.parts.map(({ object, section }) => {
        const { align, size } = objects[object]!.sections[section]!;
        const start = alignUp(text + at, align) - text;
        at = start + size;
        if (at >= limit) {
          const place = { section: group.name, object: objects[object]!.name };
          refuse("image-too-large", { ...place, text: hex(text), limit });
        }
        return { object, section, address: addr(text + start) };
      });
      const address = parts[0]!.address;
      outputs.push({ name: group.name, kind, address, size: text + at - address, parts });
    }
  }
  return outputs;
}

function alignUp(value: number, align: number): number {
  return Math.ceil(value / align) * align;
}
