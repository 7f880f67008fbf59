// The image that a command works on, loaded as a module, after those that it needs symbols of.

import { basename } from "node:path";
import { hex } from "../base/addr.ts";
import { refuse } from "../base/refuse.ts";
import type { Image } from "../image/image.ts";
import type { ImageSymbol } from "../image/symbolTable.ts";
import type { Lab } from "../lab.ts";

export interface ImageOptions {
  /** Files loaded before, each as a module of its own. */
  readonly with?: readonly string[];
}

export async function loadImage(lab: Lab, path: string, options: ImageOptions): Promise<Image> {
  for (const needed of options.with ?? []) await lab.loadModule(moduleName(needed), [needed]);
  return lab.loadModule(moduleName(path), [path]);
}

/** As the kernel names its modules: by the file, without what it ends with. */
export function moduleName(path: string): string {
  return basename(path).replace(/\.[^.]+$/, "");
}

/** The function of that name, or the label in code. Refuses data. */
export function functionOf(image: Image, name: string): ImageSymbol {
  const symbol = image.symbol(name);
  if (!isCode(image, symbol))
    refuse("not-code", { symbol: name, image: image.name, at: hex(symbol.address) });
  return symbol;
}

export function isCode(image: Image, { address }: ImageSymbol): boolean {
  return image.segmentAt(address)?.execute === true;
}
