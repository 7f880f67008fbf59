// The ORC table that the objects of an image brought along, in sections that objtool wrote.
//
// The linker has relocated them and put those of several objects one after the other; each object's are in the order of
// its sections. So entries are sorted here, as a kernel does with a module that it loads.

import { sameBytes } from "../../base/bytes.ts";
import { refuse } from "../../base/refuse.ts";
import type { Image, ImageSection } from "../../image/image.ts";
import { HEADER_SIZE, type OrcSections, readOrc } from "./format.ts";
import { OrcTable, sorted } from "./table.ts";

/** The table in the ORC sections of `image`, undefined if it has none. Refuses sections that make no table. */
export function tableInSections(image: Image): OrcTable | undefined {
  const [ip, rules, header] = [".orc_unwind_ip", ".orc_unwind", ".orc_header"].map((name) =>
    section(image, name),
  );
  if (ip === undefined && rules === undefined) return undefined;
  if (ip === undefined || rules === undefined)
    return malformed(image, `it has only ${(ip ?? rules)!.name} of the two sections that make a table`);
  const contents = ({ address, size }: ImageSection) => image.bytes(address, size);
  const sections: OrcSections = {
    ip: contents(ip),
    rules: contents(rules),
    ...(header && { header: oneHeader(image, contents(header)) }),
  };
  const text = image.segments.filter(({ execute }) => execute);
  return new OrcTable(image.name, sorted(readOrc(image.name, sections, ip.address, text)));
}

function section(image: Image, name: string): ImageSection | undefined {
  const [first, second] = image.sectionsNamed(name);
  return second === undefined ? first : malformed(image, `it has writable and read-only ${name}`);
}

/** Every object has its header; all have to be the same. */
function oneHeader(image: Image, headers: Uint8Array): Uint8Array {
  const first = headers.slice(0, HEADER_SIZE);
  for (let at = 0; at < headers.length; at += HEADER_SIZE) {
    if (!sameBytes(headers.slice(at, at + HEADER_SIZE), first))
      malformed(image, "its objects' ORC is of different layouts, by .orc_header");
  }
  return first;
}

function malformed(image: Image, what: string): never {
  return refuse("orc-malformed", { name: image.name, what });
}
