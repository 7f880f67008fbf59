// Trampolines: copies of the templates in asm/ftrace.S, one for each ops, which call its handler and name it.

import { type Addr, hex, offset, toWord } from "../base/addr.ts";
import { bug } from "../base/refuse.ts";
import type { CodeMap, CodeRange } from "../image/codeMap.ts";
import type { Image } from "../image/image.ts";
import type { Memory } from "../machine/memory.ts";
import type { Pool } from "../machine/pool.ts";
import type { FTRACE_OPS_FLAG } from "./layout.ts";
import type { FtraceOps } from "./ops.ts";
import { callBytes } from "./site.ts";

/** Arguments only; the same for whoever may change where the traced function goes on; all registers. */
export const TEMPLATES = {
  plain: "ftrace_caller",
  ipmodify: "ftrace_ipmodify_caller",
  regs: "ftrace_regs_caller",
} as const;
export type TemplateKind = keyof typeof TEMPLATES;

/** What all of `callers` can do with. */
export function templateFor(callers: readonly FtraceOps[]): TemplateKind {
  const anyHas = (name: keyof typeof FTRACE_OPS_FLAG) => callers.some((ops) => ops.has(name));
  if (anyHas("FTRACE_OPS_FL_SAVE_REGS")) return "regs";
  return anyHas("FTRACE_OPS_FL_IPMODIFY") ? "ipmodify" : "plain";
}

const MOVABS_RDX = [0x48, 0xba];

export interface TrampolineParts {
  readonly image: Image;
  readonly memory: Memory;
  /** Executable, within 2 GiB of the handlers and of every site. */
  readonly text: Pool;
  readonly code: CodeMap;
}

/** Makes a copy that hands `ops` to `handler`, and makes it known in the code map. */
export function makeTrampoline(
  { image, memory, text, code }: TrampolineParts,
  kind: TemplateKind,
  ops: Addr,
  handler: Addr,
): CodeRange {
  const name = TEMPLATES[kind];
  const template = image.symbol(name);
  const bytes = image.functionBytes(template).slice();
  const holeAt = (label: string) => image.symbol(`${name}_${label}`).address - template.address;
  const at = holeAt("ops");
  if (MOVABS_RDX.some((byte, n) => bytes[at + n] !== byte)) bug(`no movabs to rdx at ${name}_ops`);
  new DataView(bytes.buffer).setBigUint64(at + MOVABS_RDX.length, toWord(ops), true);
  const address = text.take(bytes.length);
  const call = holeAt("call");
  bytes.set(callBytes(offset(address, call), handler), call);
  memory.write(address, bytes);
  const range: CodeRange = {
    name: `ftrace_trampoline_${hex(address).slice(-8)}`,
    address,
    size: bytes.length,
    kind: "trampoline",
    template: template.address,
  };
  code.addRange(range);
  return range;
}

/** Takes it back: nobody is in it, and nothing leads there. */
export function freeTrampoline({ text, code }: TrampolineParts, range: CodeRange): void {
  code.removeRange(range);
  text.give(range.address, range.size);
}
