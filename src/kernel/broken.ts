// Structures of the kernel's that guest code has broken: what reads them meets addresses where nothing is.

import { NotCanonical } from "../base/addr.ts";
import { Refusal } from "../base/refuse.ts";

/** What `read` gives; or, as a text, what it met. Any other error is ours, and is thrown. */
export function unlessBroken<T>(read: () => T): T | { readonly broken: string } {
  try {
    return read();
  } catch (error) {
    if (error instanceof NotCanonical) return { broken: error.message };
    if (error instanceof Refusal && error.code === "unmapped") return { broken: error.message };
    throw error;
  }
}

export function isBroken(value: unknown): value is { readonly broken: string } {
  return typeof value === "object" && value !== null && "broken" in value;
}
