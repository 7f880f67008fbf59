// A copy of a trampoline at another address, made as ftrace makes one of a template: only what is known to depend on the
// address is put right.

import { addr, hex, offset, PAGE_SIZE, pagesOf } from "../../base/addr.ts";
import { MODULE_TEXT } from "../../image/layout.ts";
import { relocate } from "../../image/relocate.ts";
import type { Bench, Trampoline } from "./bench.ts";

/** Far from all that a distance in the code could lead to by chance. */
const COPY = addr(MODULE_TEXT + 0x1800_0000);
const INT3 = 0xcc;
const RX = { write: false, execute: true, user: false };

/** While `act` has the copy, which the site calls, the original's code is gone. Afterwards everything is as before. */
export function withCopy<T>(bench: Bench, trampoline: Trampoline, act: (copy: Trampoline) => T): T {
  const { machine, ftrace } = bench;
  const before = machine.snapshot();
  try {
    const { entry, size, low, high, fixups } = trampoline;
    const bytes = machine.memory.read(entry, size);
    for (const { offset: at, type, target, addend } of fixups) {
      const place = `${trampoline.name}+0x${at.toString(16)}`;
      const site = { bytes, at: offset(COPY, at), target, symbol: hex(target), place };
      relocate({ offset: at, type, addend, symbol: 0 }, site);
    }
    const template = bench.subject.origin(entry);
    ftrace.disable(bench.site);
    machine.memory.write(low, new Uint8Array(high - low).fill(INT3));
    machine.memory.map(COPY, pagesOf(COPY, size).length * PAGE_SIZE, RX);
    machine.memory.write(COPY, bytes);
    const name = `copy of ${trampoline.name}`;
    bench.addCode({ name, address: COPY, size, kind: "trampoline", template });
    const ops = ftrace.makeDirect({ name, target: COPY });
    const { kind, handlers, passed } = trampoline;
    const place = { entry: COPY, size, low: COPY, high: offset(COPY, size) };
    const copy = { ...{ name, kind, ops, handlers, passed, fixups }, ...place };
    ftrace.enable(bench.site, ops);
    return act(copy);
  } finally {
    machine.restore(before);
    before.dispose();
  }
}
