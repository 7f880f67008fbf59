// What a patch has to be before it can be enabled: each refused with the kernel's error and a sentence, and logged as upstream does.

import { refuse } from "../base/refuse.ts";
import type { Ftrace, FtraceRecord } from "../ftrace/ftrace.ts";
import { SITE_SIZE } from "../ftrace/site.ts";
import type { CodeMap } from "../image/codeMap.ts";
import type { Image } from "../image/image.ts";
import type { ImageSymbol } from "../image/symbolTable.ts";
import type { Patch, PatchFunction, PatchObject } from "./patch.ts";
import { refusalOf } from "./refusal.ts";

export interface ChecksParts {
  readonly code: CodeMap;
  readonly ftrace: Ftrace;
  /** A line of the log. */
  readonly log: (level: "err", text: string) => void;
}

export class Checks {
  private readonly parts: ChecksParts;

  constructor(parts: ChecksParts) {
    this.parts = parts;
  }

  /** Finds the functions of a loaded object. Refuses with the kernel's error, and a sentence. */
  resolve(patch: Patch, object: PatchObject, image: Image): void {
    for (const func of object.functions) {
      const names = { patch: patch.name, func: func.name, object: object.name };
      const old = this.findFunction(image, func, names);
      if (old.size < SITE_SIZE) refuse("klp-too-short", { ...names, size: old.size, least: SITE_SIZE });
      const replacement = func.replacement ?? old.address;
      const found = this.parts.code.symbolAt(replacement);
      if (
        found === undefined ||
        found.offset !== 0 ||
        found.symbol.size === 0 ||
        found.symbol.kind !== "func"
      ) {
        this.parts.log("err", `kallsyms size lookup failed for '${func.name}' replacement`);
        refuse("klp-replacement", { ...names });
      }
      if (refusalOf(() => this.siteOf(old)) !== undefined) refuse("klp-no-site", { ...names });
      func.place = { old: old.address, oldSize: old.size, new: replacement, newSize: found.symbol.size };
    }
    object.change({ image });
  }

  /** Logs what upstream logs, and refuses, where there is not just one. */
  private findFunction(
    image: Image,
    { sympos }: PatchFunction,
    names: { readonly patch: string; readonly func: string; readonly object: string },
  ): ImageSymbol {
    const { func, object } = names;
    const found = image.symbols
      .filter(({ name, kind }) => name === func && kind === "func")
      .sort((a, b) => a.address - b.address);
    if (sympos === 0 && found.length > 1) {
      this.parts.log("err", `unresolvable ambiguity for symbol '${func}' in object '${object}'`);
      refuse("klp-ambiguous", { ...names, count: found.length });
    }
    const symbol = found[Math.max(0, sympos - 1)];
    if (symbol !== undefined) return symbol;
    if (found.length === 0) {
      this.parts.log("err", `symbol '${func}' not found in symbol table`);
      refuse("klp-no-symbol", names);
    }
    this.parts.log("err", `symbol position ${sympos} for symbol '${func}' in object '${object}' not found`);
    return refuse("klp-no-position", { ...names, sympos, count: found.length });
  }

  siteOf({ address, name }: Pick<ImageSymbol, "address" | "name">): FtraceRecord {
    return this.parts.ftrace.siteOf(address, name);
  }

  /** A patch that replaces all others has to know every state that they have changed, and none may know less of one. */
  refuseIncompatible(patch: Patch, others: readonly Patch[]): void {
    for (const other of others) {
      for (const { id, version } of other.states) {
        const own = patch.states.find((state) => state.id === id);
        const isFine = own === undefined ? !patch.replace : own.version >= version;
        if (isFine) continue;
        this.parts.log(
          "err",
          `Livepatch patch (${patch}) is not compatible with the already installed livepatches.`,
        );
        refuse("klp-states", { patch: patch.name, other: other.name, id });
      }
    }
  }
}
