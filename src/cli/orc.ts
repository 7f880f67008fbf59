// fentrylab orc IMAGE [FUNCTION]
//
// Nothing is executed, so an image need not be complete: what no other file defines is only a name here.

import { type Addr, addr, hex } from "../base/addr.ts";
import { readInput } from "../base/file.ts";
import { refuse } from "../base/refuse.ts";
import type { Image } from "../image/image.ts";
import { MODULE_TEXT } from "../image/layout.ts";
import { link } from "../image/link.ts";
import type { Extent } from "../image/symbolTable.ts";
import { readObject } from "../lab.ts";
import { describeBp, describeCfa, mergeEqual, type OrcEntry } from "../unwind/orc/entry.ts";
import { type Code, codeOfImage } from "../unwind/orc/generate/code.ts";
import { describeFinding, type OrcFinding } from "../unwind/orc/generate/finding.ts";
import { generateOrc } from "../unwind/orc/generate/generate.ts";
import { tableInSections } from "../unwind/orc/image.ts";
import { functionOf, type ImageOptions, moduleName } from "./image.ts";
import { type CommonOptions, printJson } from "./option.ts";

/** Where a name that nothing defines is put, each a little higher: behind all modules, and within reach of them. */
const UNDEFINED_NAMES = addr(0xfffffffff0000000n);
const UNDEFINED_STEP = 16;

/** False if something is wrong with the code that entries were generated from. */
export async function printOrc(
  path: string,
  name: string | undefined,
  { json, generate = false, ...others }: CommonOptions & ImageOptions & { readonly generate?: boolean },
): Promise<boolean> {
  const { image, nameOf } = await linkAlone(path, others.with ?? []);
  const code = codeOfImage(image, nameOf);
  const table = generate ? undefined : tableInSections(image);
  const generated = table === undefined ? generateOrc(code) : undefined;
  const all = mergeEqual(table?.entries ?? generated!.entries);
  const range = name === undefined ? undefined : functionOf(image, name);
  if (code.functions.length === 0 && table === undefined) refuse("no-functions", { file: path });
  const entries = range === undefined ? all : entriesIn(range, all);
  const findings = (generated?.findings ?? []).filter(({ at }) => range === undefined || isIn(range, at));
  const source = table === undefined ? "generated" : "sections";
  if (json) {
    printJson({
      image: image.name,
      source,
      entries: entries.map((entry) => ({ ...entry, address: hex(entry.address), place: place(code, entry) })),
      findings: findings.map((finding) => plain(code, finding)),
    });
  } else {
    const from = table === undefined ? "generated from its code" : "read from its ORC sections";
    const lines = [
      `${entries.length} ${entries.length === 1 ? "entry" : "entries"} of ${image.name}, ${from}`,
      ...rows(code, entries),
    ];
    for (const finding of findings) lines.push(`warning: ${describe(code, finding)}`);
    process.stdout.write(`${lines.join("\n")}\n`);
  }
  return findings.length === 0;
}

async function linkAlone(
  path: string,
  needed: readonly string[],
): Promise<{ readonly image: Image; readonly nameOf: (at: Addr) => string | undefined }> {
  const images: Image[] = [];
  const names: string[] = [];
  const externals = (name: string): Addr => {
    const defined = images.map((image) => image.exported(name)).find((at) => at !== undefined);
    if (defined !== undefined) return defined;
    const n = names.includes(name) ? names.indexOf(name) : names.push(name) - 1;
    return addr(UNDEFINED_NAMES + UNDEFINED_STEP * n);
  };
  for (const file of [...needed, path]) {
    const object = await readObject(file, readInput(file));
    const text = images.at(-1)?.end ?? MODULE_TEXT;
    images.push(link([object], { text, name: moduleName(file), externals }));
  }
  const nameOf = (at: Addr) =>
    names[(at - UNDEFINED_NAMES) / UNDEFINED_STEP] ??
    images.map((image) => image.symbolAt(at)).find((found) => found?.offset === 0)?.symbol.name;
  return { image: images.at(-1)!, nameOf };
}

/** The entries that hold in a function, the first from its start on. */
function entriesIn(range: Extent, all: readonly OrcEntry[]): OrcEntry[] {
  const before = all.findLast(({ address }) => address <= range.address);
  const later = all.filter(({ address }) => address > range.address && isIn(range, address));
  return before === undefined ? later : [{ ...before, address: range.address }, ...later];
}

function isIn({ address, size }: Extent, at: Addr): boolean {
  return at >= address && at < address + size;
}

function rows(code: Code, entries: readonly OrcEntry[]): string[] {
  const cells = entries.map((entry) => [
    hex(entry.address),
    place(code, entry),
    `cfa:${describeCfa(entry.cfa)}`,
    `bp:${describeBp(entry.bp)}`,
    entry.signal ? `${entry.type} signal` : entry.type,
  ]);
  const widths = [0, 1, 2, 3].map((n) => Math.max(...cells.map((row) => row[n]!.length)));
  return cells.map((row) => row.map((cell, n) => cell.padEnd(widths[n] ?? 0)).join("  "));
}

/** `vfs_read+0x1c`; between functions, nothing. */
function place(code: Code, { address }: OrcEntry): string {
  return code.functionAt(address) === undefined ? "" : (code.describe(address) ?? "");
}

function describe(code: Code, finding: OrcFinding): string {
  return describeFinding(finding, (at) => code.describe(at) ?? hex(at));
}

function plain(code: Code, finding: OrcFinding) {
  const { kind, at, states } = finding;
  return {
    kind,
    address: hex(at),
    sentence: describe(code, finding),
    states: states.map(({ from, rule }) => ({ from: hex(from), ...rule })),
  };
}
