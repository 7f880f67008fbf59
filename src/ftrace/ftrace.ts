// Call-site records, and the ops that sites are directed to.
//
// Sites are rewritten while no vCPU runs: each is between two instructions then.

import { type Addr, hex } from "../base/addr.ts";
import { refuse } from "../base/refuse.ts";
import type { CodeMap, CodeRange } from "../image/codeMap.ts";
import type { Image } from "../image/image.ts";
import type { Heap } from "../machine/heap.ts";
import { Keeper, Kept } from "../machine/kept.ts";
import type { Memory } from "../machine/memory.ts";
import { StructView } from "../machine/struct.ts";
import { FTRACE_OPS } from "./layout.ts";
import { callBytes, expectBytes, NOP5, rewrite } from "./site.ts";
import { makeTrampoline } from "./trampoline.ts";

/** One call site: `ip` is the first of its five bytes. */
export interface FtraceRecord {
  readonly ip: Addr;
  readonly symbol: string;
  /** Whom it calls; undefined while it is a NOP. */
  readonly ops: FtraceOps | undefined;
}

export interface FtraceOps {
  /** In guest memory. */
  readonly struct: StructView<keyof typeof FTRACE_OPS.fields>;
  readonly trampoline: CodeRange;
}

/** A record, whose ops are looked up: they go with the machine's snapshots. */
class Site implements FtraceRecord {
  readonly ip: Addr;
  readonly symbol: string;
  private readonly state: Kept<State>;

  constructor(ip: Addr, symbol: string, state: Kept<State>) {
    this.ip = ip;
    this.symbol = symbol;
    this.state = state;
  }

  get ops(): FtraceOps | undefined {
    return this.state.value.ops.get(this.ip);
  }
}

interface State {
  readonly records: ReadonlyMap<Addr, FtraceRecord>;
  /** Of sites that are on. */
  readonly ops: ReadonlyMap<Addr, FtraceOps>;
}

export interface FtraceParts {
  /** The kernel's image, which has the trampoline's template and `__fentry__`. */
  readonly image: Image;
  readonly memory: Memory;
  readonly code: CodeMap;
  /** For structures. */
  readonly heap: Heap;
  /** For trampolines: executable, within 2 GiB of every site. */
  readonly text: Heap;
  /** Of the machine; without one, records follow no snapshots. */
  readonly keeper?: Keeper;
}

export class Ftrace {
  private readonly parts: FtraceParts;
  private readonly state: Kept<State>;

  constructor(parts: FtraceParts) {
    this.parts = parts;
    this.state = new Kept<State>(parts.keeper ?? new Keeper(), { records: new Map(), ops: new Map() });
    this.addImage(parts.image);
  }

  /** By address. */
  get records(): FtraceRecord[] {
    return [...this.state.value.records.values()].sort((a, b) => a.ip - b.ip);
  }

  /** The site at `ip`, if one is there. */
  at(ip: Addr): FtraceRecord | undefined {
    return this.state.value.records.get(ip);
  }

  /** Takes over the recorded sites of a loaded image: each `call __fentry__` becomes a NOP. */
  addImage(image: Image): void {
    const { memory, image: kernel } = this.parts;
    const fentry = kernel.symbol("__fentry__").address;
    const records = image.mcountLocations.map((ip): FtraceRecord => {
      const found = image.symbolAt(ip);
      if (found === undefined) refuse("site-without-function", { site: hex(ip), image: image.name });
      expectBytes(memory, ip, callBytes(ip, fentry));
      return new Site(ip, found.symbol.name, this.state);
    });
    // Nothing is refused from here on: all sites are taken over, or none.
    for (const { ip } of records) memory.write(ip, NOP5);
    const { records: before, ops } = this.state.value;
    this.state.value = {
      records: new Map([...before, ...records.map((record) => [record.ip, record] as const)]),
      ops,
    };
  }

  /** Forgets the sites of an image that is going to be unloaded, whatever they do: nothing executes them any more. */
  removeImage(image: Image): void {
    const gone = new Set(image.mcountLocations);
    const without = <V>(map: ReadonlyMap<Addr, V>) => new Map([...map].filter(([ip]) => !gone.has(ip)));
    const { records, ops } = this.state.value;
    this.state.value = { records: without(records), ops: without(ops) };
  }

  /** The site of the function that begins at `address`. */
  siteOf(address: Addr, name: string): FtraceRecord {
    const record = this.at(address) ?? this.at((address + ENDBR_SIZE) as Addr);
    return record?.symbol === name ? record : refuse("no-fentry", { func: name });
  }

  /** An ops with a trampoline of its own; `handler` is guest code, `own` is the handler's to interpret. */
  makeOps(handler: Addr, own: Addr): FtraceOps {
    const { heap, image, memory, text, code } = this.parts;
    const struct = new StructView(memory, FTRACE_OPS, heap.allocate(FTRACE_OPS.size));
    struct.set("func", handler);
    struct.set("private", own);
    return { struct, trampoline: makeTrampoline(image, memory, text, code, struct.at) };
  }

  /** Directs the site, which must be off, to `ops`. */
  enable(record: FtraceRecord, ops: FtraceOps): void {
    rewrite(this.parts.memory, record.ip, NOP5, callBytes(record.ip, ops.trampoline.address));
    this.direct(record.ip, ops);
  }

  /** Makes the site a NOP again. */
  disable(record: FtraceRecord): void {
    if (record.ops === undefined) refuse("site-is-off", { func: record.symbol });
    rewrite(this.parts.memory, record.ip, callBytes(record.ip, record.ops.trampoline.address), NOP5);
    this.direct(record.ip, undefined);
  }

  private direct(ip: Addr, to: FtraceOps | undefined): void {
    const { records, ops } = this.state.value;
    const next = new Map(ops);
    if (to === undefined) next.delete(ip);
    else next.set(ip, to);
    this.state.value = { records, ops: next };
  }
}

/** Where indirect-branch tracking is on, the site comes after `endbr64`. */
const ENDBR_SIZE = 4;
