// The guest's own sources: our object file is GNU as's, but for calls within a section, which we resolve.

import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { assemble } from "../../src/x86/assemble.ts";
import { gnuSummary, NO_GNU, ourSummary, type Summary } from "./assemble-gnu.ts";

const FOLDER = join(import.meta.dirname, "../../asm");

const include = (path: string) => {
  const file = join(FOLDER, path);
  return existsSync(file) ? readFileSync(file, "utf8") : undefined;
};

/** `summary` as it is once the linker has filled in the calls to global functions of the calling section. */
function resolveOwnCalls({ sections, relocations, symbols }: Summary): Summary {
  const bytes = new Map(sections.map((line): [string, string] => [line.split(" ")[0]!, line]));
  const left = relocations.filter((line) => {
    const [, section, at, name, addend] =
      /^(\S+)\+0x(\w+) R_X86_64_PLT32 (\S+?)([+-]0x\w+)$/.exec(line) ?? [];
    const symbol = symbols.find(
      (entry) => entry.startsWith(`${name} `) && entry.includes(` global ${section}+0x`),
    );
    if (!section || !symbol) return true;
    const to = Number.parseInt(/\+0x(\w+) size/.exec(symbol)![1]!, 16) + Number.parseInt(addend!, 16);
    const from = Number.parseInt(at!, 16);
    const field = Buffer.alloc(4);
    field.writeInt32LE(to - from);
    const [head, hex] = bytes.get(section)!.split(": ") as [string, string];
    bytes.set(
      section,
      `${head}: ${hex.slice(0, 2 * from)}${field.toString("hex")}${hex.slice(2 * from + 8)}`,
    );
    return false;
  });
  return { sections: [...bytes.values()].sort(), relocations: left, symbols };
}

describe.skipIf(NO_GNU)(`guest sources${NO_GNU ? ` (skipped: ${NO_GNU})` : ""}`, () => {
  test.each(readdirSync(FOLDER).filter((name) => name.endsWith(".S")))("%s", async (name) => {
    const source = readFileSync(join(FOLDER, name), "utf8");
    const ours = ourSummary(await assemble(name, source, { include }));
    expect(ours).toEqual(resolveOwnCalls(gnuSummary(source, FOLDER)));
  });
});
