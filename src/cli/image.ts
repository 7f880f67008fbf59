// The image that a command works on, loaded as a module, after those that it needs symbols of.

import { basename } from "node:path";
import type { Image } from "../image/image.ts";
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
function moduleName(path: string): string {
  return basename(path).replace(/\.[^.]+$/, "");
}
