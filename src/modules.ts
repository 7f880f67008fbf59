// Modules: what the laboratory offers to the guest's kernel by name, and what it maps when that asks for one.
//
// Every module has its place in module space from the moment that it is offered, and a struct module that it keeps; which
// are loaded, and what state each is in, is guest memory's to say.

import { type Addr, addr, offset } from "./base/addr.ts";
import { refuse } from "./base/refuse.ts";
import type { Ftrace } from "./ftrace/ftrace.ts";
import type { CodeMap } from "./image/codeMap.ts";
import { type Image, VMLINUX } from "./image/image.ts";
import { MODULE_TEXT } from "./image/layout.ts";
import { link } from "./image/link.ts";
import { fieldBytes, locate, theOne } from "./image/livepatchSymbol.ts";
import { load, unload } from "./image/load.ts";
import type { LivepatchHooks, ModuleLoader } from "./kernel/kernel.ts";
import { MODULE, MODULE_STATE, nameOfError } from "./kernel/layout.ts";
import { type Agenda, act, type Step, until } from "./machine/agenda.ts";
import type { Heap } from "./machine/heap.ts";
import { type Keeper, Kept } from "./machine/kept.ts";
import type { Memory } from "./machine/memory.ts";
import { StructView } from "./machine/struct.ts";
import type { ObjectFile } from "./x86/object.ts";

interface Offer {
  readonly image: Image;
  readonly struct: StructView<keyof typeof MODULE.fields>;
}

interface Offers {
  readonly byName: ReadonlyMap<string, Offer>;
  /** Where the next one goes: nothing is put where another was. */
  readonly nextText: Addr;
}

export interface LoadedModule {
  readonly name: string;
  readonly state: keyof typeof MODULE_STATE;
  /** How many need it: it must not go before they do. */
  readonly users: number;
}

export interface ModulesParts {
  readonly memory: Memory;
  readonly heap: Heap;
  readonly code: CodeMap;
  readonly ftrace: Ftrace;
  /** The kernel's image. */
  readonly kernel: Image;
  readonly agenda: Agenda;
  readonly keeper: Keeper;
}

export class Modules implements ModuleLoader {
  private readonly parts: ModulesParts;
  private readonly kept: Kept<Offers>;
  /** Who is told of modules that come and go here, and not by guest code. */
  livepatch: LivepatchHooks | undefined;

  constructor(parts: ModulesParts) {
    this.parts = parts;
    this.kept = new Kept<Offers>(parts.keeper, { byName: new Map(), nextText: MODULE_TEXT });
  }

  private get offers(): ReadonlyMap<string, Offer> {
    return this.kept.value.byName;
  }

  /** Links `objects` against one another and what is loaded or offered, as module `name`, which guest code may load. */
  offer(name: string, objects: readonly ObjectFile[]): Image {
    const { heap } = this.parts;
    const known = this.offers.get(name);
    if (known !== undefined)
      refuse("module-offered", { name, state: isUnformed(known) ? "offered" : "loaded" });
    const externals = (symbol: string) =>
      [this.parts.kernel, ...[...this.offers.values()].map(({ image }) => image)]
        .map((image) => image.exported(symbol))
        .find((at) => at !== undefined);
    const { nextText } = this.kept.value;
    const image = link(objects, { text: nextText, name, externals });
    this.referToKernel(image);
    const struct = new StructView(this.parts.memory, MODULE, heap.allocate(MODULE.size));
    struct.set("state", MODULE_STATE.MODULE_STATE_UNFORMED);
    struct.setText("name", name);
    struct.set("init", image.exported("init_module") ?? 0);
    struct.set("exit", image.exported("cleanup_module") ?? 0);
    const text = image.segments.find(({ execute }) => execute);
    struct.set("text", text?.address ?? 0);
    struct.set("text_size", text?.size ?? 0);
    this.kept.value = {
      byName: new Map([...this.offers, [name, { image, struct }]]),
      nextText: addr(Math.max(image.end, nextText)),
    };
    return image;
  }

  /** Takes an offer back. Refuses one that is loaded. */
  withdraw(name: string): void {
    const { struct } = this.offers.get(name) ?? refuse("no-module", { name });
    if (struct.getNumber("state") !== MODULE_STATE.MODULE_STATE_UNFORMED)
      refuse("module-not-unloaded", { name });
    const byName = new Map([...this.offers].filter(([other]) => other !== name));
    this.kept.value = { ...this.kept.value, byName };
  }

  /**
   * Loads one that is offered: what its beginning would do is left to the caller. While everybody runs, live patching has its
   * turns first; until then, and for good if that refuses it, it is not among those that are `loaded`.
   */
  insert(name: string): Image {
    const { image, struct } = this.offers.get(name) ?? refuse("no-module", { name });
    const { memory, kernel, agenda } = this.parts;
    if (struct.getNumber("state") !== MODULE_STATE.MODULE_STATE_UNFORMED) refuse("module-loaded", { name });
    this.mapImage(image);
    struct.set("state", MODULE_STATE.MODULE_STATE_COMING);
    this.livepatch?.notify(struct.at);
    let refused = 0;
    const settle = () => {
      refused = this.livepatch?.notified(struct.at) ?? 0;
      struct.set(
        "state",
        refused === 0 ? MODULE_STATE.MODULE_STATE_LIVE : MODULE_STATE.MODULE_STATE_UNFORMED,
      );
      if (refused !== 0) {
        this.unmap(struct.at);
        return;
      }
      const first = kernel.symbol("modules").address;
      struct.set("next", memory.readWord(first));
      memory.writeWord(first, BigInt(struct.at));
    };
    agenda.add(`insert ${name}`, [this.untilKnown(name, struct), act(`${name} is loaded`, settle)]);
    if (refused !== 0) refuse("module-refused", { name, error: nameOfError(-refused) });
    return image;
  }

  /** The opposite, which its own end has nothing to say to either. Refuses while somebody needs it. */
  remove(name: string): void {
    const offer = this.offers.get(name) ?? refuse("no-module", { name });
    const { struct } = offer;
    const { memory, kernel, agenda } = this.parts;
    if (struct.getNumber("state") !== MODULE_STATE.MODULE_STATE_LIVE) refuse("module-not-loaded", { name });
    if (struct.getNumber("refcnt") !== 0) refuse("module-in-use", { name });
    struct.set("state", MODULE_STATE.MODULE_STATE_GOING);
    this.livepatch?.notify(struct.at);
    const settle = () => {
      let before = kernel.symbol("modules").address;
      while (memory.readNumber(before) !== struct.at)
        before = offset(memory.readNumber(before) as Addr, MODULE.fields.next.offset);
      memory.writeWord(before, struct.get("next"));
      struct.set("state", MODULE_STATE.MODULE_STATE_UNFORMED);
      this.unmap(struct.at);
    };
    agenda.add(`remove ${name}`, [this.untilKnown(name, struct), act(`${name} is gone`, settle)]);
  }

  /** Waits for what comes of telling live patching; and until no guest code has the lock of the list. */
  private untilKnown(name: string, { at }: Offer["struct"]): Step {
    const { memory, kernel } = this.parts;
    const owner = offset(kernel.symbol("module_mutex").address, 8); // the second word of a struct mutex
    return until(
      `live patching has done what it has to for ${name}`,
      () => this.livepatch?.notified(at) !== 1 && memory.readNumber(owner) === 0,
    );
  }

  /** Removes a loaded module and takes its offer back, if nobody needs it. */
  discard(name: string): readonly Step[] {
    const struct = this.offers.get(name)?.struct;
    const state = () => struct?.getNumber("state");
    return [
      {
        what: `discard ${name}`,
        run: () => {
          if (state() !== MODULE_STATE.MODULE_STATE_LIVE || struct?.getNumber("refcnt") !== 0)
            return undefined;
          this.remove(name);
          const isGone = () => state() === MODULE_STATE.MODULE_STATE_UNFORMED;
          return [
            until(`${name} is gone`, isGone),
            act(`${name} is offered no more`, () => this.withdraw(name)),
          ];
        },
      },
    ];
  }

  /** Whether a module of that name is offered, loaded or not. */
  has(name: string): boolean {
    return this.offers.has(name);
  }

  /**
   * Counts one more who needs a module, or one less; false, and nothing is counted, if it is not loaded. Refuses one more of a
   * module that is going, as try_module_get() does.
   */
  use(name: string, by: 1 | -1): boolean {
    const struct = this.offers.get(name)?.struct;
    const state = struct?.getNumber("state");
    if (struct === undefined || state === MODULE_STATE.MODULE_STATE_UNFORMED) return false;
    if (by > 0 && state === MODULE_STATE.MODULE_STATE_GOING) refuse("module-going", { name });
    struct.set("refcnt", struct.getNumber("refcnt") + by);
    return true;
  }

  /** The module whose struct module is at `at`, if one is offered or loaded. */
  at(at: Addr): { readonly image: Image; readonly state: string } | undefined {
    const offer = [...this.offers.values()].find(({ struct }) => struct.at === at);
    if (offer === undefined) return undefined;
    const number = offer.struct.getNumber("state");
    const state = Object.entries(MODULE_STATE).find(([, value]) => value === number)?.[0] ?? "";
    return { image: offer.image, state };
  }

  map(name: string): Addr | undefined {
    const offer = this.offers.get(name);
    // One that is being inserted here is not among those that guest code finds, and yet is there.
    if (offer?.struct.getNumber("state") !== MODULE_STATE.MODULE_STATE_UNFORMED) return undefined;
    this.mapImage(offer.image);
    return offer.struct.at;
  }

  unmap(module: Addr): void {
    const { ftrace, code, memory } = this.parts;
    const offer = [...this.offers.values()].find(({ struct }) => struct.at === module);
    if (offer === undefined || !code.images.includes(offer.image)) return;
    ftrace.removeImage(offer.image);
    code.removeImage(offer.image);
    unload(memory, offer.image);
  }

  /** Those that are loaded, the latest first, as the kernel lists them. */
  get loaded(): readonly LoadedModule[] {
    const { memory, kernel } = this.parts;
    const found: LoadedModule[] = [];
    let at = memory.readNumber(kernel.symbol("modules").address) ?? 0;
    while (at !== 0 && found.length < this.offers.size) {
      const struct = new StructView(memory, MODULE, at as Addr);
      const states = Object.keys(MODULE_STATE) as (keyof typeof MODULE_STATE)[];
      const state = states.find((name) => MODULE_STATE[name] === struct.getNumber("state"));
      found.push({
        name: struct.getText("name"),
        state: state ?? "MODULE_STATE_UNFORMED",
        users: struct.getNumber("refcnt"),
      });
      at = struct.getNumber("next");
    }
    return found;
  }

  /** What live patching relocates against the kernel, which is there before any module. */
  private referToKernel(image: Image): void {
    const { kernel } = this.parts;
    for (const relocation of image.livepatch) {
      if (relocation.object !== VMLINUX) continue;
      const { symbol, at } = relocation;
      const { address } = theOne(image.name, symbol, locate(kernel, symbol));
      const bytes = fieldBytes(relocation, address);
      image.bytes(at, bytes.length).set(bytes);
    }
  }

  private mapImage(image: Image): void {
    const { memory, code, ftrace } = this.parts;
    load(memory, image);
    code.addImage(image);
    ftrace.addImage(image);
  }
}

function isUnformed({ struct }: Offer): boolean {
  return struct.getNumber("state") === MODULE_STATE.MODULE_STATE_UNFORMED;
}
