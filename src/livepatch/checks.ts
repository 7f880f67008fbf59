// What a patch has to be before it can be enabled: each refused with the kernel's error and a sentence, and logged as upstream does.

import { refuse } from "../base/refuse.ts";
import type { Ftrace, FtraceRecord } from "../ftrace/ftrace.ts";
import { SITE_SIZE } from "../ftrace/site.ts";
import type { CodeMap } from "../image/codeMap.ts";
import { type Image, VMLINUX } from "../image/image.ts";
import {
  fieldBytes,
  type LivepatchRelocation,
  type LivepatchSymbol,
  type Located,
  locate,
  theOne,
} from "../image/livepatchSymbol.ts";
import type { ImageSymbol } from "../image/symbolTable.ts";
import { type Field, keyOf, type Patch, type PatchObject, type PatchSpec } from "./patch.ts";
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

  /** Refuses what is wrong with a patch whatever is loaded. */
  refuseMalformed({ name: patch, objects }: PatchSpec): void {
    // Scripts come without types: what they leave out most easily is said in words.
    if (!Array.isArray(objects) || objects.length === 0) refuse("klp-empty", { patch });
    if (!/^[^/\s]+$/.test(patch) || patch === "." || patch === "..") refuse("klp-name", { patch });
    const names = objects.map(({ name = VMLINUX }) => name);
    for (const [n, { functions }] of objects.entries()) {
      const object = names[n]!;
      if (names.indexOf(object) !== n) refuse("klp-object-twice", { patch, object });
      const known = new Set<string>();
      if (!Array.isArray(functions)) refuse("klp-functions", { patch, object });
      for (const { name: func, sympos = 0, replacement } of functions) {
        if (typeof replacement !== "number" && typeof replacement !== "string")
          refuse("klp-replacement-kind", { patch, func, object });
        if (!Number.isInteger(sympos) || sympos < 0) refuse("klp-sympos", { patch, func, object, sympos });
        const key = keyOf(func, sympos);
        if (known.has(key)) refuse("klp-twice", { patch, func, object });
        known.add(key);
      }
    }
  }

  /** Refuses references to objects that the patch says nothing about. */
  refuseUnresolved(patch: Patch): void {
    for (const { object, symbol, place } of this.relocationsOf(patch)) {
      if (object === VMLINUX || patch.objects.some(({ name }) => name === object)) continue;
      refuse("klp-unresolved", { patch: patch.name, object, symbol: symbol.name, place });
    }
  }

  /** Finds the functions of a loaded object, and what refers to it. Refuses with the kernel's error, and a sentence. */
  resolve(patch: Patch, object: PatchObject, image: Image): void {
    for (const func of object.functions) {
      const names = { patch: patch.name, func: func.name, object: object.name };
      const symbol = { object: object.name, name: func.name, sympos: func.sympos };
      const old = this.find(patch, symbol, image, ({ kind }) => kind === "func");
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
      if (replacement === old.address && !func.isNop) refuse("klp-itself", { ...names });
      if (object.functions.some((other) => other !== func && other.place?.old === old.address))
        refuse("klp-twice", { ...names });
      func.place = { old: old.address, oldSize: old.size, new: replacement, newSize: found.symbol.size };
    }
    object.change({ image, fields: this.fieldsOf(patch, object) });
  }

  /** The fields of the patch's code that wait for the object. Those that wait for the kernel are written when a module is linked. */
  private fieldsOf(patch: Patch, { name }: PatchObject): readonly Field[] {
    if (name === VMLINUX) return [];
    return this.relocationsOf(patch)
      .filter(({ object }) => object === name)
      .map((relocation) => {
        const { symbol, at } = relocation;
        const image = this.parts.code.images.find((one) => one.name === symbol.object);
        const { address } = this.find(patch, symbol, image);
        return { at, bytes: fieldBytes(relocation, address) };
      });
  }

  private relocationsOf(patch: Patch): readonly LivepatchRelocation[] {
    return this.imagesOf(patch).flatMap(({ livepatch }) => livepatch);
  }

  /** What has the patch's code: the module of its name, and wherever its replacements are. */
  imagesOf(patch: Patch): readonly Image[] {
    const isIn = (image: Image) =>
      patch.functions.some(
        ({ replacement }) => replacement !== undefined && image.segmentAt(replacement) !== undefined,
      );
    return this.parts.code.images.filter((image) => image.name === patch.name || isIn(image));
  }

  /** Logs what upstream logs, and refuses, where there is not just one. */
  private find(
    patch: Patch,
    symbol: LivepatchSymbol,
    image: Image | undefined,
    fits?: (symbol: ImageSymbol) => boolean,
  ): ImageSymbol {
    const { object, name, sympos } = symbol;
    const found: Located =
      image === undefined ? { kind: "none", hint: `load '${object}' first` } : locate(image, symbol, fits);
    if (found.kind === "none") this.parts.log("err", `symbol '${name}' not found in symbol table`);
    if (found.kind === "ambiguous")
      this.parts.log("err", `unresolvable ambiguity for symbol '${name}' in object '${object}'`);
    if (found.kind === "no-position")
      this.parts.log("err", `symbol position ${sympos} for symbol '${name}' in object '${object}' not found`);
    return theOne(patch.name, symbol, found);
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
