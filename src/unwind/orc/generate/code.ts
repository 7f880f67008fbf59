// The code that entries are generated for: its bytes, functions and hints, and its instructions as they are asked for.
//
// An image's, or a piece made at run time. A function is a symbol of that kind, or a label that begins with a hint.

import type { Addr } from "../../../base/addr.ts";
import type { Image } from "../../../image/image.ts";
import type { Extent, ImageSymbol } from "../../../image/symbolTable.ts";
import { decode, MAX_LENGTH } from "../../../x86/decode.ts";
import { effectsOf } from "../../../x86/effects.ts";
import type { Step } from "./effect.ts";
import { type Hint, readHints } from "./hint.ts";

export interface CodeFunction extends Extent {
  readonly name: string;
  /** Where the function starts that this is a part of: itself, but for what gcc moved away as unlikely. */
  readonly whole: Addr;
  /** Another object's may take its place. */
  readonly weak: boolean;
}

export interface CodeParts {
  /** For messages. */
  readonly name: string;
  readonly functions: readonly CodeFunction[];
  readonly hints: ReadonlyMap<Addr, Hint>;
  /** Up to `size` bytes, fewer where the code ends. */
  readonly bytes: (at: Addr, size: number) => Uint8Array;
  /** Constant data: up to `size` bytes, fewer where it ends. */
  readonly data: (at: Addr, size: number) => Uint8Array;
  /** Where objects in data begin, so where a table before them ends. */
  readonly objects: ReadonlySet<Addr>;
  /** What is at an address outside this code. */
  readonly nameOf: (at: Addr) => string | undefined;
}

/** What gcc appends to the name of a function's unlikely part. */
const COLD = /\.cold(\.\d+)?$/;
/** What precedes the name of a function in the name of the padding before it, which runs on into it. */
const PREFIX = /^__(pfx|cfi)_/;

export class Code {
  readonly parts: CodeParts;
  /** By address, one at each. */
  readonly functions: readonly CodeFunction[];
  private readonly steps = new Map<Addr, Step | undefined>();
  private readonly starts: ReadonlyMap<Addr, CodeFunction>;
  private readonly wholes = new Map<Addr, CodeFunction[]>();

  constructor(parts: CodeParts) {
    this.parts = parts;
    this.starts = new Map(parts.functions.map((func) => [func.address, func]));
    this.functions = [...this.starts.values()].sort((a, b) => a.address - b.address);
    for (const func of this.functions) {
      const others = this.wholes.get(func.whole);
      if (others === undefined) this.wholes.set(func.whole, [func]);
      else others.push(func);
    }
  }

  /** The instruction at `at`; undefined if there is none. */
  step(at: Addr): Step | undefined {
    if (!this.steps.has(at)) {
      const bytes = this.parts.bytes(at, MAX_LENGTH);
      const decoded = decode(bytes, at);
      const step =
        decoded.kind === "instruction"
          ? { instruction: decoded.instruction, effects: effectsOf(bytes, at) }
          : undefined;
      this.steps.set(at, step);
    }
    return this.steps.get(at);
  }

  functionStartingAt(at: Addr): CodeFunction | undefined {
    return this.starts.get(at);
  }

  /** All parts of the function that `func` is a part of. */
  partsOf(func: CodeFunction): readonly CodeFunction[] {
    return this.wholes.get(func.whole)!;
  }

  /** The function whose range holds `at`. */
  functionAt(at: Addr): CodeFunction | undefined {
    let low = 0;
    let high = this.functions.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.functions[middle]!.address <= at) low = middle + 1;
      else high = middle;
    }
    const found = this.functions[low - 1];
    return found !== undefined && at < found.address + found.size ? found : undefined;
  }

  /** `vfs_read+0x1c`, or what else is known of an address. */
  describe(at: Addr): string | undefined {
    const func = this.functionAt(at);
    if (func === undefined) return this.parts.nameOf(at);
    return at === func.address ? func.name : `${func.name}+0x${(at - func.address).toString(16)}`;
  }
}

/** The code of `image`; `nameOf` knows what other images have. */
export function codeOfImage(image: Image, nameOf: (at: Addr) => string | undefined): Code {
  const hints = readHints(image);
  const read = (execute: boolean) => (at: Addr, size: number) => {
    const segment = image.segmentAt(at);
    return segment?.execute === execute && !segment.write ? image.bytes(at, size) : new Uint8Array(0);
  };
  const isCode = ({ address, size, kind }: ImageSymbol) =>
    size > 0 && image.segmentAt(address)?.execute === true && (kind === "func" || hints.has(address));
  const symbols = image.symbols.filter(isCode);
  const functions = symbols.map((symbol) => ({
    name: symbol.name,
    address: symbol.address,
    size: symbol.size,
    whole: wholeOf(image, symbol),
    weak: symbol.binding === "weak",
  }));
  const objects = new Set(
    image.symbols.filter(({ kind }) => kind === "object").map(({ address }) => address),
  );
  return new Code({
    name: image.name,
    functions: functions.reverse(), // of the names of one place the best comes first, and here the last stays
    hints,
    bytes: read(true),
    data: read(false),
    objects,
    nameOf: (at) => {
      const found = image.symbolAt(at);
      return found?.offset === 0 ? found.symbol.name : nameOf(at);
    },
  });
}

/** The code of one function without hints or data, such as is made at run time. */
export function codeOfRange(
  { name, address, size }: Extent & { readonly name: string },
  bytes: Uint8Array,
  nameOf: (at: Addr) => string | undefined,
): Code {
  return new Code({
    name,
    functions: [{ name, address, size, whole: address, weak: false }],
    hints: new Map(),
    bytes: (at, limit) =>
      at < address ? new Uint8Array(0) : bytes.subarray(at - address, at - address + limit),
    data: () => new Uint8Array(0),
    objects: new Set(),
    nameOf,
  });
}

function wholeOf(image: Image, { name, object, address }: ImageSymbol): Addr {
  if (!COLD.test(name)) return address;
  const parent = name.replace(COLD, "");
  return image.named(parent).find((symbol) => symbol.object === object)?.address ?? address;
}

export function isCold({ name }: CodeFunction): boolean {
  return COLD.test(name);
}

export function isPrefix({ name }: CodeFunction): boolean {
  return PREFIX.test(name);
}
