// The ORC entry of any address of code: of loaded images, and of code made at run time.
//
// What is loaded is the code map's to say, so a table goes with its image. An image's table comes from its ORC sections or
// else from its code, when it is first asked for. A copy of a template has the template's entries, at the copy's addresses.

import type { Addr } from "../../base/addr.ts";
import { offset } from "../../base/addr.ts";
import type { CodeMap, CodeRange } from "../../image/codeMap.ts";
import type { Image } from "../../image/image.ts";
import type { OrcEntry } from "./entry.ts";
import { codeOfImage, codeOfRange } from "./generate/code.ts";
import { type Generated, generateOrc } from "./generate/generate.ts";
import { tableInSections } from "./image.ts";
import { OrcTable } from "./table.ts";

/** Addresses that are remembered, a power of two: each in the place that its low bits say. */
const REMEMBERED = 16384;

export class OrcTables {
  private readonly code: CodeMap;
  private readonly tables = new WeakMap<Image | CodeRange, OrcTable>();
  /** What was found lately: walks ask for the same addresses again and again. */
  private readonly keys = new Float64Array(REMEMBERED).fill(Number.NaN);
  private readonly found: (OrcEntry | undefined)[] = new Array(REMEMBERED);
  /** The code map's version that `found` is of. */
  private asOf = 0;

  constructor(code: CodeMap) {
    this.code = code;
  }

  /** The entry that covers `at`; none where no code is, before an image's first entry, and in made code that has none. */
  find(at: Addr): OrcEntry | undefined {
    if (this.asOf !== this.code.version) this.forget();
    const index = at & (REMEMBERED - 1);
    if (this.keys[index] === at) return this.found[index];
    const entry = this.lookUp(at);
    this.keys[index] = at;
    this.found[index] = entry;
    return entry;
  }

  private lookUp(at: Addr): OrcEntry | undefined {
    const made = this.code.rangeAt(at);
    if (made === undefined) {
      const image = this.code.imageAt(at);
      return image && this.tableOf(image).find(at);
    }
    const { template, address } = made.range;
    const own = this.tables.get(made.range);
    if (own !== undefined) return own.find(at);
    const entry = template && this.find(offset(template, made.offset));
    return entry && { ...entry, address: offset(address, entry.address - template) };
  }

  /** The table of an image that is loaded. */
  tableOf(image: Image): OrcTable {
    const known = this.tables.get(image);
    if (known !== undefined) return known;
    const table = tableInSections(image) ?? new OrcTable(image.name, this.generate(image).entries);
    this.tables.set(image, table);
    return table;
  }

  /** What the code of `image` gives, whatever its sections say. */
  generate(image: Image): Generated {
    return generateOrc(codeOfImage(image, (at) => this.nameAt(at)));
  }

  /** Gives a loaded image or made code another table: for code without a template, or to see what a wrong one does. */
  replace(owner: Image | CodeRange, table: OrcTable): void {
    this.tables.set(owner, table);
    this.forget();
  }

  /** Generates the table of code that was made at run time as one function, from its `bytes`. */
  addMade(range: CodeRange, bytes: Uint8Array): Generated {
    const generated = generateOrc(codeOfRange(range, bytes, (at) => this.nameAt(at)));
    this.replace(range, new OrcTable(range.name, generated.entries));
    return generated;
  }

  private forget(): void {
    this.keys.fill(Number.NaN);
    this.asOf = this.code.version;
  }

  /** The function that starts at `at`. */
  private nameAt(at: Addr): string | undefined {
    const found = this.code.symbolAt(at);
    return found?.offset === 0 ? found.symbol.name : undefined;
  }
}
