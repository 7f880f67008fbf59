// Trampolines: copies of the template in asm/ftrace.S, one for each ops, which only its ops' address tells apart.

import { type Addr, hex, toWord } from "../base/addr.ts";
import { bug } from "../base/refuse.ts";
import type { CodeMap, CodeRange } from "../image/codeMap.ts";
import type { Image } from "../image/image.ts";
import type { Heap } from "../machine/heap.ts";
import type { Memory } from "../machine/memory.ts";

const TEMPLATE = "ftrace_regs_caller";
/** `movabs $0, %rdx`: the immediate is the ops' place. */
const OPS_INSTRUCTION = "ftrace_regs_caller_ops";
const MOVABS_RDX = [0x48, 0xba];

/** Makes a copy that hands `ops` to its handler, and makes it known in `code`. */
export function makeTrampoline(
  image: Image,
  memory: Memory,
  text: Heap,
  code: CodeMap,
  ops: Addr,
): CodeRange {
  const template = image.symbol(TEMPLATE);
  const bytes = image.functionBytes(template).slice();
  const at = image.symbol(OPS_INSTRUCTION).address - template.address;
  if (MOVABS_RDX.some((byte, n) => bytes[at + n] !== byte)) bug(`no movabs to rdx at ${OPS_INSTRUCTION}`);
  new DataView(bytes.buffer).setBigUint64(at + MOVABS_RDX.length, toWord(ops), true);
  const address = text.allocate(bytes.length);
  memory.write(address, bytes);
  const name = `ftrace_trampoline_${hex(address).slice(-8)}`;
  const range: CodeRange = {
    name,
    address,
    size: bytes.length,
    kind: "trampoline",
    template: template.address,
  };
  code.addRange(range);
  return range;
}
