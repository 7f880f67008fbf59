// What code is at an address: loaded images, and code made at run time, such as trampolines.
//
// Whoever makes code registers it and whoever removes it unregisters it; the unwinder reads. So
// the unwinder needs to know nothing of ftrace. Refuses code where other code is already. Follows a machine's
// snapshots if it is kept with them.

import type { Addr } from "../base/addr.ts";
import { hex, offset } from "../base/addr.ts";
import { bug, refuse } from "../base/refuse.ts";
import { Keeper, Kept } from "../machine/kept.ts";
import type { Image } from "./image.ts";
import { VMLINUX } from "./image.ts";
import type { SymbolAt } from "./symbolTable.ts";

/** Code made at run time. */
export interface CodeRange {
  readonly name: string;
  readonly address: Addr;
  /** In bytes, at least 1. */
  readonly size: number;
  /** What made it and to what end: `trampoline` for a copy that a site calls, `thunk` for everything else. */
  readonly kind: "trampoline" | "thunk";
  /** Where in an image the code is that this is a copy of; what holds there (its ORC) holds here at the same offset. */
  readonly template?: Addr;
}

/** A range made at run time and the distance of an address from its start, in bytes. */
export interface RangeAt {
  readonly range: CodeRange;
  readonly offset: number;
}

/** One stretch of code, and what it is of. */
interface Stretch {
  readonly start: Addr;
  /** The address behind it. */
  readonly end: number;
  readonly of: Image | CodeRange;
}

interface Known {
  readonly images: readonly Image[];
  /** By address. */
  readonly ranges: readonly CodeRange[];
}

export class CodeMap {
  readonly #known: Kept<Known>;
  /** All that is known, by address; walkers ask for every frame. */
  #stretches: readonly Stretch[] = [];
  #version = 0;

  /** `keeper` is of the machine that has the code; a map without one follows no snapshots. */
  constructor(keeper = new Keeper()) {
    this.#known = new Kept<Known>(keeper, { images: [], ranges: [] }, () => this.#arrange());
  }

  /** In the order in which they were added: the kernel first, then modules. */
  get images(): readonly Image[] {
    return this.#known.value.images;
  }

  /** Another number whenever something was added or removed. */
  get version(): number {
    return this.#version;
  }

  /** By address. */
  get ranges(): readonly CodeRange[] {
    return this.#known.value.ranges;
  }

  /** Makes the code of `image` known. Refuses an image whose text overlaps what is known. */
  addImage(image: Image): void {
    for (const { address, size, execute } of image.segments) {
      if (execute) this.#refuseOverlap(image.name, address, size);
    }
    this.#known.value = { ...this.#known.value, images: [...this.images, image] };
  }

  removeImage(image: Image): void {
    if (!this.images.includes(image)) bug(`image ${image.name} is not in the code map`);
    this.#known.value = { ...this.#known.value, images: this.images.filter((other) => other !== image) };
  }

  /** Makes code known that was made at run time. Refuses a range that overlaps what is known. */
  addRange(range: CodeRange): void {
    if (range.size < 1) bug(`code range ${range.name} is empty`);
    this.#refuseOverlap(range.name, range.address, range.size);
    const ranges = [...this.ranges, range].sort((a, b) => a.address - b.address);
    this.#known.value = { ...this.#known.value, ranges };
  }

  removeRange(range: CodeRange): void {
    if (!this.ranges.includes(range)) bug(`code range ${range.name} is not in the code map`);
    this.#known.value = { ...this.#known.value, ranges: this.ranges.filter((other) => other !== range) };
  }

  /** The image whose text holds `address`. */
  imageAt(address: Addr): Image | undefined {
    const of = this.#stretchAt(address)?.of;
    return of !== undefined && "segments" in of ? of : undefined;
  }

  /** The range made at run time that holds `address`. */
  rangeAt(address: Addr): RangeAt | undefined {
    const of = this.#stretchAt(address)?.of;
    return of !== undefined && "kind" in of ? { range: of, offset: address - of.address } : undefined;
  }

  /** The symbol of a loaded image that holds `address`, in text or data. */
  symbolAt(address: Addr): SymbolAt | undefined {
    for (const image of this.images) {
      const found = image.symbolAt(address);
      if (found !== undefined) return found;
    }
    return undefined;
  }

  /** The start of that function. Refuses names that no image, or more than one place in one, has. */
  find(name: string): Addr | undefined {
    for (const image of this.images) {
      const found = image.find(name);
      if (found !== undefined) return found.address;
    }
    return undefined;
  }

  /** True if code is at `address`: an image's text, or code made at run time. */
  isText(address: Addr): boolean {
    return this.#stretchAt(address) !== undefined;
  }

  /**
   * The address as the kernel prints it: `vfs_read+0x1c/0x40`, with ` [module]` after it for a
   * module's, the bare address where nothing is known.
   */
  describe(address: Addr): string {
    return this.#describe(address, 0) ?? hex(address);
  }

  /** The same for where a call returns to, which may lie behind its function's last instruction: the kernel's %pB. */
  describeReturn(address: Addr): string {
    return this.#describe(offset(address, -1), 1) ?? this.describe(address);
  }

  /** The place `beyond` bytes behind `address`, as of the code at `address`. */
  #describe(address: Addr, beyond: number): string | undefined {
    const made = this.rangeAt(address);
    if (made !== undefined) return placeIn(made.range.name, made.offset + beyond, made.range.size);
    for (const image of this.images) {
      const found = image.symbolAt(address);
      if (found === undefined) continue;
      const text = placeIn(found.symbol.name, found.offset + beyond, found.symbol.size);
      return image.name === VMLINUX ? text : `${text} [${image.name}]`;
    }
    return undefined;
  }

  #stretchAt(address: Addr): Stretch | undefined {
    const stretches = this.#stretches;
    let low = 0;
    let high = stretches.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (stretches[middle]!.start <= address) low = middle + 1;
      else high = middle;
    }
    const found = stretches[low - 1];
    return found !== undefined && address < found.end ? found : undefined;
  }

  #arrange(): void {
    this.#version++;
    const stretch = (of: Image | CodeRange, { address, size }: { address: Addr; size: number }): Stretch => ({
      start: address,
      end: address + size,
      of,
    });
    this.#stretches = [
      ...this.images.flatMap((image) =>
        image.segments.filter(({ execute }) => execute).map((segment) => stretch(image, segment)),
      ),
      ...this.ranges.map((range) => stretch(range, range)),
    ].sort((a, b) => a.start - b.start);
  }

  #refuseOverlap(name: string, address: Addr, size: number): void {
    const known = [
      ...this.ranges,
      ...this.images.flatMap((image) =>
        image.segments.filter(({ execute }) => execute).map((text) => ({ ...text, name: image.name })),
      ),
    ];
    const other = known.find((code) => address < code.address + code.size && code.address < address + size);
    if (other === undefined) return;
    const [start, end] = [hex(address), hex(offset(address, size))];
    refuse("code-overlap", { name, start, end, other: other.name, at: hex(other.address) });
  }
}

function placeIn(name: string, at: number, size: number): string {
  return `${name}+0x${at.toString(16)}/0x${size.toString(16)}`;
}
