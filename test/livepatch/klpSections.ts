// An object as tools that make live patches write it: relocations against `.klp.sym` symbols in sections of their own, the symbols
// marked as live patching's (Linux Documentation/livepatch/module-elf-format.rst).

const HEADER = 64;
const RELA = 24;
const SYM = 24;
const SHT = { SYMTAB: 2, STRTAB: 3, RELA: 4 } as const;
const SHN_LIVEPATCH = 0xff20;
const FLAGS = 0x2 | 0x40 | 0x10_0000; // SHF_ALLOC, SHF_INFO_LINK, SHF_RELA_LIVEPATCH

interface Header {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly view: DataView;
}

/** `file` with those sections; `sectionOf` can put a relocation against a symbol into another object's section than its own. */
export function withKlpSections(
  file: Uint8Array,
  sectionOf: (symbol: string) => string = (symbol) => symbol.split(".")[3]!,
): Uint8Array {
  const object = new Uint8Array(file); // a Buffer's slices would share its memory
  const view = new DataView(object.buffer);
  const [start, count] = [Number(view.getBigUint64(40, true)), view.getUint16(60, true)];
  const headers = Array.from({ length: count }, (_, n): Header => {
    const bytes = new Uint8Array(object.slice(start + n * HEADER, start + (n + 1) * HEADER));
    return { bytes, view: new DataView(bytes.buffer) };
  });
  const parts: Uint8Array[] = [object.slice()];
  let end = object.length;
  /** Appends contents, and has a header say so. */
  const place = (header: Header, contents: Uint8Array) => {
    const padding = new Uint8Array(-end & 7);
    parts.push(padding, contents);
    header.view.setBigUint64(24, BigInt(end + padding.length), true);
    header.view.setBigUint64(32, BigInt(contents.length), true);
    end += padding.length + contents.length;
  };
  const contentsOf = ({ view: header }: Header) => {
    const at = Number(header.getBigUint64(24, true));
    return object.slice(at, at + Number(header.getBigUint64(32, true)));
  };
  const names = headers[view.getUint16(62, true)]!;
  let nameBytes = contentsOf(names);
  const symtab = headers.find((header) => header.view.getUint32(4, true) === SHT.SYMTAB)!;
  const symbols = contentsOf(symtab);
  const symbolView = new DataView(symbols.buffer, symbols.byteOffset, symbols.length);
  const strings = contentsOf(headers[symtab.view.getUint32(40, true)]!);
  const nameAt = (bytes: Uint8Array, at: number) =>
    new TextDecoder().decode(bytes.subarray(at, bytes.indexOf(0, at)));
  const nameOf = (symbol: number) => nameAt(strings, symbolView.getUint32(symbol * SYM, true));

  for (const header of [...headers]) {
    if (header.view.getUint32(4, true) !== SHT.RELA) continue;
    const rows = contentsOf(header);
    const byObject = new Map<string, Uint8Array[]>([["", []]]);
    for (let at = 0; at < rows.length; at += RELA) {
      const row = rows.slice(at, at + RELA);
      const symbol = new DataView(row.buffer).getUint32(12, true);
      const name = nameOf(symbol);
      const own = name.startsWith(".klp.sym.") ? sectionOf(name) : "";
      if (own !== "") symbolView.setUint16(symbol * SYM + 6, SHN_LIVEPATCH, true);
      byObject.set(own, [...(byObject.get(own) ?? []), row]);
    }
    for (const [own, list] of byObject) {
      const contents = new Uint8Array(list.flatMap((row) => [...row]));
      if (own === "") {
        place(header, contents);
        continue;
      }
      const bytes = header.bytes.slice();
      const made: Header = { bytes, view: new DataView(bytes.buffer) };
      const target = headers[header.view.getUint32(44, true)]!;
      const name = `.klp.rela.${own}${nameAt(nameBytes, target.view.getUint32(0, true))}`;
      made.view.setUint32(0, nameBytes.length, true);
      nameBytes = new Uint8Array([...nameBytes, ...new TextEncoder().encode(name), 0]);
      made.view.setBigUint64(8, BigInt(FLAGS), true);
      place(made, contents);
      headers.push(made);
    }
  }
  place(symtab, symbols);
  place(names, nameBytes);
  const table = new Uint8Array(headers.flatMap(({ bytes }) => [...bytes]));
  const padding = new Uint8Array(-end & 7);
  const whole = new Uint8Array([...parts, padding, table].flatMap((part) => [...part]));
  const header = new DataView(whole.buffer);
  header.setBigUint64(40, BigInt(end + padding.length), true);
  header.setUint16(60, headers.length, true);
  return whole;
}
