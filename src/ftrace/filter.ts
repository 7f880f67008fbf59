// Which functions an ops wants, in the words of set_ftrace_filter (Documentation/trace/ftrace.rst).
//
// `name`, `begin*`, `*end`, `*middle*`, any glob with * ? [a-z]; `pattern:mod:module` for a module's alone; or the address
// of a site.

import type { Addr } from "../base/addr.ts";

export type Pattern = string | Addr;

export interface Named {
  readonly ip: Addr;
  readonly symbol: string;
  /** The image that it is in; the kernel's own is `vmlinux`. */
  readonly module: string;
}

export function matches(pattern: Pattern, { ip, symbol, module }: Named): boolean {
  if (typeof pattern === "number") return pattern === ip;
  const [glob = "", mod, name] = pattern.split(":");
  if (mod !== undefined && (mod !== "mod" || !toRegExp(name ?? "*").test(module))) return false;
  return toRegExp(glob === "" ? "*" : glob).test(symbol);
}

const CACHE = new Map<string, RegExp>();
const MAX_CACHED = 1024;

function toRegExp(glob: string): RegExp {
  const known = CACHE.get(glob);
  if (known !== undefined) return known;
  const body = glob.replace(/\[!?[^\]]*\]|[\s\S]/g, (part) => {
    if (part === "*") return ".*";
    if (part === "?") return ".";
    if (part.length > 1) return part.replace(/^\[!/, "[^").replaceAll("\\", "\\\\");
    return part.replace(/[\\^$.|+()[\]{}/-]/, "\\$&");
  });
  let made: RegExp;
  try {
    made = new RegExp(`^${body}$`);
  } catch {
    made = /^(?!)/; // a range that runs backwards matches nothing
  }
  if (CACHE.size >= MAX_CACHED) CACHE.clear();
  CACHE.set(glob, made);
  return made;
}
