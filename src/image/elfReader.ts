// Bounds-checked reading of an ELF64 file: header, section headers, strings, table rows.
//
// Knows the file format, not what a linker wants of it (elf.ts does). Refuses whatever is not an
// x86-64 relocatable object, and every table, name or content outside the file. Contents are views
// of the file's bytes, and together no longer than the file, so no header can ask for more memory
// or time than the file's own length is worth.
// Layouts: System V gABI, chapter 4 ("ELF Header", "Sections", "String Table").

import { refuse } from "../base/refuse.ts";

const HEADER_SIZE = 64;
const SECTION_HEADER_SIZE = 64;
const ET_REL = 1;
const EM_X86_64 = 62;

/** Kernel symbol names end at 512 bytes (KSYM_NAME_LEN); a longer one is a table without terminators. */
const NAME_LIMIT = 512;

const FILE_TYPES: Record<number, string> = { 2: "an executable", 3: "a shared library", 4: "a core dump" };

/** A section header; sizes and offsets in bytes, not yet checked against the file. */
export interface SectionHeader {
  readonly index: number;
  readonly name: string;
  readonly type: number;
  readonly flags: number;
  readonly offset: number;
  readonly size: number;
  readonly link: number;
  readonly info: number;
  readonly align: number;
  readonly entrySize: number;
}

/** One row of a table section, read at byte offsets within the row. */
export interface Row {
  u8(at: number): number;
  u16(at: number): number;
  u32(at: number): number;
  /** As a number: above 2^53 only roughly right, but still too large for any bound it is held against. */
  u64(at: number): number;
  i64(at: number): bigint;
}

export class ElfReader {
  readonly name: string;
  readonly sections: readonly SectionHeader[];
  readonly #bytes: Uint8Array;
  /** File bytes not yet handed out as section contents. */
  #left: number;

  /** Reads the header and the section headers of `bytes`; `name` is the file's, for messages. */
  constructor(name: string, bytes: Uint8Array) {
    this.name = name;
    this.#bytes = bytes;
    this.#left = bytes.length;
    const header = this.#header();
    this.sections = this.#sectionHeaders(header);
  }

  /** Ends in one line about this file; `what` says what is wrong and where. */
  malformed(what: string): never {
    refuse("elf-malformed", { file: this.name, what });
  }

  /** The file's bytes that a section holds: a view, no copy. */
  contents(section: SectionHeader): Uint8Array {
    const bytes = this.#slice(`section ${section.name}`, section.offset, section.size);
    this.#left -= bytes.length;
    if (this.#left < 0) this.malformed(`section ${section.name} overlaps others`);
    return bytes;
  }

  /** The rows of a table section, each `size` bytes. */
  *rows(section: SectionHeader, size: number): Generator<Row> {
    if (section.entrySize !== size) {
      this.malformed(`section ${section.name} has entries of ${section.entrySize} bytes, not ${size}`);
    }
    if (section.size % size !== 0) {
      this.malformed(`section ${section.name} ends in the middle of an entry`);
    }
    const bytes = this.contents(section);
    for (let at = 0; at < bytes.length; at += size) yield rowOf(bytes.subarray(at, at + size));
  }

  /** A function from string-table offsets to strings; `index` is the table's section, `whose` names its user. */
  strings(index: number, whose: string): (at: number) => string {
    const table = this.sections[index];
    if (table === undefined || table.type !== SHT.STRTAB) {
      this.malformed(`${whose} names section ${index} as its string table, which is none`);
    }
    return stringsIn(this, this.contents(table), `section ${index}`);
  }

  #slice(what: string, start: number, size: number): Uint8Array {
    if (start + size > this.#bytes.length) {
      refuse("elf-truncated", { file: this.name, what, end: start + size, length: this.#bytes.length });
    }
    return this.#bytes.subarray(start, start + size);
  }

  #header(): Row {
    const bytes = this.#bytes;
    const wrong = (what: string): never => refuse("elf-kind", { file: this.name, what });
    if (bytes.length === 0) wrong("empty");
    const magic = [0x7f, 0x45, 0x4c, 0x46].slice(0, bytes.length);
    if (magic.some((byte, i) => bytes[i] !== byte)) wrong("not an ELF file");
    const header = rowOf(this.#slice("the ELF header", 0, HEADER_SIZE));
    if (header.u8(4) !== 2)
      wrong(header.u8(4) === 1 ? "a 32-bit ELF file" : `an ELF file of class ${header.u8(4)}`);
    if (header.u8(5) !== 1)
      wrong(header.u8(5) === 2 ? "a big-endian ELF file" : `ELF data encoding ${header.u8(5)}`);
    if (header.u8(6) !== 1) wrong(`ELF version ${header.u8(6)}`);
    const machine = header.u16(18);
    if (machine !== EM_X86_64) wrong(`for ELF machine ${machine}`);
    const type = header.u16(16);
    if (type !== ET_REL) wrong(FILE_TYPES[type] ?? `of ELF type ${type}`);
    return header;
  }

  #sectionHeaders(header: Row): SectionHeader[] {
    const offset = header.u64(40);
    const count = header.u16(60);
    if (offset === 0 || count === 0) this.malformed("it has no section headers");
    if (header.u16(58) !== SECTION_HEADER_SIZE) {
      this.malformed(`its section headers are ${header.u16(58)} bytes long, not ${SECTION_HEADER_SIZE}`);
    }
    const table = this.#slice("the section header table", offset, count * SECTION_HEADER_SIZE);
    const raw = Array.from({ length: count }, (_, index) => {
      const row = rowOf(table.subarray(index * SECTION_HEADER_SIZE, (index + 1) * SECTION_HEADER_SIZE));
      const size = row.u64(32);
      return {
        index,
        type: row.u32(4),
        flags: row.u64(8),
        offset: row.u64(24),
        size,
        link: row.u32(40),
        info: row.u32(44),
        align: row.u64(48),
        entrySize: row.u64(56),
        nameAt: row.u32(0),
      };
    });
    const namesIndex = header.u16(62);
    const names = raw[namesIndex];
    if (names === undefined || names.type !== SHT.STRTAB) {
      this.malformed(`its header names section ${namesIndex} as the section names, which is no string table`);
    }
    const nameOf = stringsIn(
      this,
      this.#slice("the section names", names.offset, names.size),
      "the section names",
    );
    return raw.map(({ nameAt, ...rest }) => ({ ...rest, name: nameOf(nameAt) }));
  }
}

/** Section types (gABI table 4-9, psABI table 4.3). */
export const SHT = {
  NULL: 0,
  PROGBITS: 1,
  SYMTAB: 2,
  STRTAB: 3,
  RELA: 4,
  NOTE: 7,
  NOBITS: 8,
  REL: 9,
  INIT_ARRAY: 14,
  FINI_ARRAY: 15,
  GROUP: 17,
  SYMTAB_SHNDX: 18,
  X86_64_UNWIND: 0x70000001,
} as const;

function rowOf(bytes: Uint8Array): Row {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  return {
    u8: (at) => view.getUint8(at),
    u16: (at) => view.getUint16(at, true),
    u32: (at) => view.getUint32(at, true),
    u64: (at) => Number(view.getBigUint64(at, true)),
    i64: (at) => view.getBigInt64(at, true),
  };
}

function stringsIn(file: ElfReader, table: Uint8Array, what: string): (at: number) => string {
  const decoder = new TextDecoder("latin1");
  return (at) => {
    if (at === 0 && table.length === 0) return ""; // gABI: an empty table has one string, the empty one
    const end = table.subarray(0, at + NAME_LIMIT + 1).indexOf(0, at);
    if (at >= table.length || end < 0)
      file.malformed(`the name at offset ${at} of ${what} does not end in that table`);
    return decoder.decode(table.subarray(at, end));
  };
}
