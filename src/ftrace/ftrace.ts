// Call-site records, and the ops that sites are directed to.
//
// Sites are rewritten while no vCPU runs: each is between two instructions then.

import { type Addr, hex } from "../base/addr.ts";
import { refuse } from "../base/refuse.ts";
import type { CodeMap, CodeRange } from "../image/codeMap.ts";
import type { Image } from "../image/image.ts";
import type { Heap } from "../machine/heap.ts";
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
  ops: FtraceOps | undefined;
}

export interface FtraceOps {
  /** In guest memory. */
  readonly struct: StructView<keyof typeof FTRACE_OPS.fields>;
  readonly trampoline: CodeRange;
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
}

export class Ftrace {
  private readonly parts: FtraceParts;
  private readonly byIp = new Map<Addr, FtraceRecord>();

  constructor(parts: FtraceParts) {
    this.parts = parts;
    this.addImage(parts.image);
  }

  /** By address. */
  get records(): FtraceRecord[] {
    return [...this.byIp.values()].sort((a, b) => a.ip - b.ip);
  }

  /** The site at `ip`, if one is there. */
  at(ip: Addr): FtraceRecord | undefined {
    return this.byIp.get(ip);
  }

  /** Takes over the recorded sites of a loaded image: each `call __fentry__` becomes a NOP. */
  addImage(image: Image): void {
    const { memory, image: kernel } = this.parts;
    const fentry = kernel.symbol("__fentry__").address;
    const records = image.mcountLocations.map((ip): FtraceRecord => {
      const found = image.symbolAt(ip);
      if (found === undefined) refuse("site-without-function", { site: hex(ip), image: image.name });
      expectBytes(memory, ip, callBytes(ip, fentry));
      return { ip, symbol: found.symbol.name, ops: undefined };
    });
    // Nothing is refused from here on: all sites are taken over, or none.
    for (const record of records) {
      memory.write(record.ip, NOP5);
      this.byIp.set(record.ip, record);
    }
  }

  /** The site of the function that begins at `address`. */
  siteOf(address: Addr, name: string): FtraceRecord {
    const record = this.byIp.get(address) ?? this.byIp.get((address + ENDBR_SIZE) as Addr);
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
    record.ops = ops;
  }

  /** Makes the site a NOP again. */
  disable(record: FtraceRecord): void {
    if (record.ops === undefined) refuse("site-is-off", { func: record.symbol });
    rewrite(this.parts.memory, record.ip, callBytes(record.ip, record.ops.trampoline.address), NOP5);
    record.ops = undefined;
  }
}

/** Where indirect-branch tracking is on, the site comes after `endbr64`. */
const ENDBR_SIZE = 4;
