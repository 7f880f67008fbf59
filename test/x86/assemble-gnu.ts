// GNU as as the reference: what it makes of a source, and an object file in the same words.
//
// Read through objdump and readelf, so no code of ours has a hand in it.

import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { ObjectFile } from "../../src/x86/object.ts";

const present = (tool: string) => spawnSync(tool, ["--version"]).status === 0;

/** Why the comparisons must be skipped, or undefined. */
export const NO_GNU = ["as", "objdump", "readelf", "objcopy"].every(present)
  ? undefined
  : "GNU binutils (as, objdump, readelf, objcopy) are not on this host";

/** An object file as lines that two assemblers can be compared by; each list sorted. */
export interface Summary {
  /** `.text ax align 16: 90 90`; empty sections left out. */
  readonly sections: readonly string[];
  /** `.text+0x10 R_X86_64_PC32 foo-0x4` */
  readonly relocations: readonly string[];
  /** `foo func global .text+0x10 size 4` */
  readonly symbols: readonly string[];
}

function inFolder<T>(act: (folder: string) => T): T {
  const folder = mkdtempSync(join(tmpdir(), "fentrylab-as-"));
  try {
    return act(folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

const signed = (value: number) => `${value < 0 ? "-" : "+"}0x${Math.abs(value).toString(16)}`;

/** What GNU as makes of `source`, with its includes from `folder`. Throws with its messages when it does not take it. */
export function gnuSummary(source: string, includes = "."): Summary {
  return inFolder((folder) => {
    const [input, object] = [join(folder, "t.s"), join(folder, "t.o")];
    writeFileSync(input, source);
    execFileSync("as", ["--64", "-I", includes, "-o", object, input], { stdio: "pipe" });
    const tables = execFileSync("readelf", ["-SsrW", object], { encoding: "utf8" });
    const names: string[] = [];
    const sections: string[] = [];
    for (const [, index, name, type, size, flags, align] of tables.matchAll(
      /^ {2}\[ *(\d+)\] (\S+) +(PROGBITS|NOBITS|NOTE) +\w+ \w+ (\w+) \w+ ([A-Z ]*?) +\d+ +\d+ +(\d+)$/gm,
    )) {
      names[Number(index)] = name!;
      if (Number.parseInt(size!, 16) === 0) continue;
      const [out] = [join(folder, "t.bin")];
      execFileSync("objcopy", [
        "-O",
        "binary",
        "-j",
        name!,
        "--set-section-flags",
        `${name}=alloc,load,contents`,
        object,
        out,
      ]);
      const bytes =
        type === "NOBITS" ? `${Number.parseInt(size!, 16)} zeros` : readFileSync(out).toString("hex");
      sections.push(`${name} ${showFlags(flags!)} align ${align}: ${bytes}`);
    }
    const relocations: string[] = [];
    let section = "";
    for (const line of tables.split("\n")) {
      section = /^Relocation section '\.rela(\S+)'/.exec(line)?.[1] ?? section;
      const entry = /^(\w{16}) +\w+ (R_\w+) +\w+ (\S+) ([+-]) (\w+)$/.exec(line);
      if (!entry) continue;
      const [, at, type, symbol, sign, addend] = entry;
      relocations.push(
        `${section}+0x${Number.parseInt(at!, 16).toString(16)} ${type} ${symbol}${sign}0x${addend}`,
      );
    }
    const symbols: string[] = [];
    for (const line of tables.split("\n")) {
      const entry =
        /^ +\d+: (\w{16}) +(\w+) (NOTYPE|FUNC|OBJECT) +(LOCAL|GLOBAL|WEAK) +\w+ +(\w+) (\S+)$/.exec(line);
      if (!entry || entry[5] === "ABS") continue;
      const [, value, size, type, binding, index, name] = entry;
      const place =
        index === "UND"
          ? "undefined"
          : `${names[Number(index)]}+0x${Number.parseInt(value!, 16).toString(16)}`;
      const kind = type === "NOTYPE" ? "none" : type!.toLowerCase();
      symbols.push(`${name} ${kind} ${binding!.toLowerCase()} ${place} size ${Number(size)}`);
    }
    return { sections: sections.sort(), relocations: relocations.sort(), symbols: symbols.sort() };
  });
}

function showFlags(letters: string): string {
  const has = (letter: string, as: string) => (letters.includes(letter) ? as : "-");
  return has("A", "a") + has("W", "w") + has("X", "x");
}

/** The same of what our assembler made. */
export function ourSummary({ sections, symbols }: ObjectFile): Summary {
  const shown = sections
    .filter(({ size }) => size > 0)
    .map(({ name, alloc, write, execute, align, size, bytes }) => {
      const flags = (alloc ? "a" : "-") + (write ? "w" : "-") + (execute ? "x" : "-");
      return `${name} ${flags} align ${align}: ${bytes.length < size ? `${size} zeros` : Buffer.from(bytes).toString("hex")}`;
    });
  const relocations = sections.flatMap(({ name, relocations: list }) =>
    list.map(
      (entry) =>
        `${name}+0x${entry.offset.toString(16)} ${entry.type} ${symbols[entry.symbol]!.name}${signed(entry.addend)}`,
    ),
  );
  const named = symbols
    .filter(({ kind }) => kind !== "section")
    .map(({ name, kind, binding, section, value, size }) => {
      const place = section === null ? "undefined" : `${sections[section]!.name}+0x${value.toString(16)}`;
      return `${name} ${kind} ${binding} ${place} size ${size}`;
    });
  return { sections: shown.sort(), relocations: relocations.sort(), symbols: named.sort() };
}

/** The bytes that GNU as makes of each text alone, in hexadecimal, or its error message. */
export function gnuEncodings(texts: readonly string[]): Map<string, { hex: string } | { error: string }> {
  const results = new Map<string, { hex: string } | { error: string }>();
  return inFolder((folder) => {
    const [input, listing] = [join(folder, "t.s"), join(folder, "t.lst")];
    for (let left = [...texts]; ; ) {
      writeFileSync(input, `${left.join("\n")}\n`);
      const options = ["--64", `-aln=${listing}`, "--listing-lhs-width=8", "-o", join(folder, "t.o"), input];
      const { stderr } = spawnSync("as", options, { encoding: "utf8", maxBuffer: 1 << 28 });
      const errors = new Map(
        [...stderr.matchAll(/:(\d+): Error: (.*)/g)].map(([, line, message]) => [Number(line) - 1, message!]),
      );
      for (const [line, error] of errors) results.set(left[line]!, { error });
      if (errors.size > 0) {
        left = left.filter((_, line) => !errors.has(line));
        continue;
      }
      for (const line of readFileSync(listing, "utf8").split("\n")) {
        const entry = /^ *(\d+) [0-9a-fA-F]{4,} ([0-9A-F ]+?) *\t/.exec(line);
        if (entry)
          results.set(left[Number(entry[1]) - 1]!, { hex: entry[2]!.replaceAll(" ", "").toLowerCase() });
      }
      return results;
    }
  });
}
