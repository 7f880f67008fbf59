// ELF64 relocatable objects, as gcc and GNU as write them, into the linker's ObjectFile.
//
// Bounds and file format are elfReader.ts's; this file decides what a kernel image can use.
// Refused: relocations without addends (SHT_REL) or of unsupported type, COMMON, thread-local,
// indirect-function and global absolute symbols, extended section numbering.
// Not loaded: sections that are not SHF_ALLOC, and .eh_frame (which is), as kernels discard it:
// their unwinders read ORC or frame pointers. Their relocations are not read either.
// Section groups are ignored: a function that two objects hold twice is refused by the linker.

import { refuse } from "../base/refuse.ts";
import type { ObjectFile, ObjectSymbol, Relocation, RelocationType, Section } from "../x86/object.ts";
import { RELOCATION } from "../x86/object.ts";
import type { Row, SectionHeader } from "./elfReader.ts";
import { ElfReader, SHT } from "./elfReader.ts";
import { FIELD_WIDTH } from "./relocate.ts";

const SHF_WRITE = 1;
const SHF_ALLOC = 2;
const SHF_EXECINSTR = 4;
const SHF_TLS = 0x400;
/** Relocations that live patching applies (Linux Documentation/livepatch/module-elf-format.rst), and symbols that it resolves. */
const SHF_RELA_LIVEPATCH = 0x10_0000;
const SHN_LIVEPATCH = 0xff20;

const SHN_UNDEF = 0;
const SHN_LORESERVE = 0xff00;
const SHN_ABS = 0xfff1;
const SHN_COMMON = 0xfff2;

const STT_FILE = 4;

/** Symbol kinds and bindings by number (gABI tables 4-16 and 4-17). */
const KINDS: Record<number, ObjectSymbol["kind"]> = { 0: "none", 1: "object", 2: "func", 3: "section" };
const BINDINGS: Record<number, ObjectSymbol["binding"]> = { 0: "local", 1: "global", 2: "weak" };

/** Sections whose contents are code or data, rather than the object file's own bookkeeping. */
const CONTENT: readonly number[] = [
  SHT.PROGBITS,
  SHT.NOBITS,
  SHT.NOTE,
  SHT.INIT_ARRAY,
  SHT.FINI_ARRAY,
  SHT.X86_64_UNWIND,
];

/** The largest alignment a section may ask for, in bytes: a large page. */
const ALIGN_LIMIT = 2 ** 21;

const RELOCATION_NAME = new Map<number, RelocationType>();
for (const name of Object.keys(RELOCATION) as RelocationType[]) RELOCATION_NAME.set(RELOCATION[name], name);

/**
 * The object file in `bytes`; `name` is its path, for messages and for symbols' `object`.
 * Section contents are views of `bytes`. Throws a Refusal, and nothing else, on any other input.
 */
export function parseElf(name: string, bytes: Uint8Array): ObjectFile {
  const file = new ElfReader(name, bytes);
  const sections = file.sections.filter((header) => isContent(file, header));
  const indexOf = new Map(sections.map((header, i) => [header.index, i]));
  const drafts = sections.map((header) => readSection(file, header));
  const { symbols, symbolAt } = readSymbols(file, drafts, indexOf);
  const relocations = readRelocations(file, drafts, indexOf, symbolAt);
  return {
    name,
    sections: drafts.map((section, i) => ({ ...section, relocations: relocations[i] ?? [] })),
    symbols,
  };
}

function isContent(file: ElfReader, header: SectionHeader): boolean {
  if (header.type === SHT.REL) refuse("elf-rel", { file: file.name, section: header.name });
  if (header.type === SHT.SYMTAB_SHNDX) file.malformed("it has more sections than this linker reads");
  if (CONTENT.includes(header.type)) return true;
  if (header.type === SHT.RELA && header.flags & SHF_RELA_LIVEPATCH) return false;
  if (header.flags & SHF_ALLOC && header.type !== SHT.NULL) {
    file.malformed(`section ${header.name} is loaded but of type ${header.type}, which is unknown`);
  }
  return false;
}

function readSection(file: ElfReader, header: SectionHeader): Section {
  const { name, flags, size } = header;
  const align = Math.max(1, header.align);
  if (align > ALIGN_LIMIT || Math.log2(align) % 1 !== 0) {
    file.malformed(`section ${name} asks for alignment ${header.align}`);
  }
  if (flags & SHF_TLS) file.malformed(`section ${name} is thread-local, which no kernel image has`);
  const bytes = header.type === SHT.NOBITS ? new Uint8Array(0) : file.contents(header);
  if (!Number.isSafeInteger(size)) file.malformed(`section ${name} has size ${size}`);
  return {
    name,
    write: (flags & SHF_WRITE) !== 0,
    execute: (flags & SHF_EXECINSTR) !== 0,
    alloc: (flags & SHF_ALLOC) !== 0 && name !== ".eh_frame",
    align,
    size,
    bytes,
    relocations: [],
  };
}

interface Symbols {
  readonly symbols: ObjectSymbol[];
  /** Index into `symbols` by index in the file's table; absent for those that are not kept. */
  readonly symbolAt: ReadonlyMap<number, number>;
}

function readSymbols(file: ElfReader, sections: Section[], indexOf: ReadonlyMap<number, number>): Symbols {
  const symbols: ObjectSymbol[] = [];
  const symbolAt = new Map<number, number>();
  const [table, second] = file.sections.filter((header) => header.type === SHT.SYMTAB);
  if (second !== undefined) file.malformed("it has two symbol tables");
  if (table === undefined) return { symbols, symbolAt };
  const nameOf = file.strings(table.link, `section ${table.name}`);
  let at = -1;
  for (const row of file.rows(table, 24)) {
    at++;
    if (at === 0) continue; // gABI: the first entry is reserved
    const symbol = readSymbol(file, row, nameOf(row.u32(0)), sections, indexOf);
    if (symbol !== undefined) symbolAt.set(at, symbols.push(symbol) - 1);
  }
  return { symbols, symbolAt };
}

/** Undefined for what the linker has no use for: file names, assembler constants, symbols of bookkeeping sections. */
function readSymbol(
  file: ElfReader,
  row: Row,
  name: string,
  sections: Section[],
  indexOf: ReadonlyMap<number, number>,
): ObjectSymbol | undefined {
  const type = row.u8(4) & 15;
  const home = row.u16(6);
  if (type === STT_FILE) return undefined;
  if (home === SHN_COMMON) refuse("elf-common", { file: file.name, symbol: name });
  const kind =
    KINDS[type] ?? file.malformed(`symbol '${name}' is of type ${type}, which no kernel image has`);
  const binding =
    BINDINGS[row.u8(4) >> 4] ?? file.malformed(`symbol '${name}' has binding ${row.u8(4) >> 4}`);
  if (home === SHN_UNDEF || home === SHN_LIVEPATCH)
    return { name, kind, binding, section: null, value: 0, size: 0 };
  if (home === SHN_ABS) {
    if (binding === "local") return undefined;
    file.malformed(`symbol '${name}' is a global constant, not a place; keep it local`);
  }
  if (home >= SHN_LORESERVE || home >= file.sections.length) {
    file.malformed(`symbol '${name}' is in section ${home}, which it does not have`);
  }
  const section = indexOf.get(home);
  if (section === undefined) return undefined;
  const { name: where, size: limit } = sections[section]!;
  const value = row.u64(8);
  const size = row.u64(16);
  if (value + size > limit)
    file.malformed(`symbol '${name}' ends at ${value + size}, after ${where} does (${limit})`);
  return { name: kind === "section" ? where : name, kind, binding, section, value, size };
}

function readRelocations(
  file: ElfReader,
  sections: Section[],
  indexOf: ReadonlyMap<number, number>,
  symbolAt: ReadonlyMap<number, number>,
): Relocation[][] {
  const relocations: Relocation[][] = sections.map(() => []);
  for (const table of file.sections.filter((header) => header.type === SHT.RELA)) {
    if (table.info >= file.sections.length) {
      file.malformed(`section ${table.name} relocates section ${table.info}, which it does not have`);
    }
    if (file.sections[table.link]?.type !== SHT.SYMTAB) {
      file.malformed(`section ${table.name} names section ${table.link} as its symbol table, which is none`);
    }
    const target = indexOf.get(table.info);
    if (target === undefined || !sections[target]!.alloc) continue;
    const livepatch = table.flags & SHF_RELA_LIVEPATCH ? patchedObject(file, table.name) : undefined;
    for (const row of file.rows(table, 24)) {
      const relocation = readRelocation(file, row, sections[target]!, symbolAt);
      if (relocation !== undefined)
        relocations[target]!.push(livepatch === undefined ? relocation : { ...relocation, livepatch });
    }
  }
  return relocations;
}

/** The object in the name of a section with its relocations: `.klp.rela.object.section`. */
function patchedObject(file: ElfReader, name: string): string {
  return (
    /^\.klp\.rela\.([^.]+)\./.exec(name)?.[1] ??
    file.malformed(`section ${name} is for live patching, and is not called .klp.rela.OBJECT.SECTION`)
  );
}

function readRelocation(
  file: ElfReader,
  row: Row,
  section: Section,
  symbolAt: ReadonlyMap<number, number>,
): Relocation | undefined {
  const offset = row.u64(0);
  const number = row.u32(8);
  if (number === 0) return undefined; // R_X86_64_NONE asks for nothing
  const place = `${section.name}+0x${offset.toString(16)}`;
  const type = RELOCATION_NAME.get(number);
  if (type === undefined) refuse("elf-relocation", { file: file.name, type: number, place });
  if (offset + FIELD_WIDTH[type] > section.bytes.length) {
    file.malformed(`the relocation at ${place} lies outside its section`);
  }
  const symbol = symbolAt.get(row.u32(12));
  if (symbol === undefined) {
    file.malformed(`the relocation at ${place} is against symbol ${row.u32(12)}, which is no place in it`);
  }
  const addend = Number(row.i64(16));
  if (!Number.isSafeInteger(addend)) file.malformed(`the relocation at ${place} has addend ${row.i64(16)}`);
  return { offset, type, symbol, addend };
}
