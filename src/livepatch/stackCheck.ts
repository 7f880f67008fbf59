// Whether a task may be switched: that nothing which it would be leaving is on its stack, nor on its way there.
//
// Of the functions of the patch, only those are looked for that the task would leave: the original or the replacement below
// when patching, the new one when unpatching. Besides the addresses on the stack, those count that a trampoline is going to
// return to and has not written there yet, as its handler was preempted: upstream does not see them.

import { type Addr, offset } from "../base/addr.ts";
import type { CodeMap } from "../image/codeMap.ts";
import type { Memory } from "../machine/memory.ts";
import { PT_REGS } from "../machine/ptRegs.ts";
import type { Frame } from "../unwind/walk.ts";

/** What is looked for. */
export interface Range {
  readonly name: string;
  readonly low: Addr;
  readonly size: number;
}

export interface Found {
  readonly name: string;
  /** The address that is in its range. */
  readonly address: Addr;
  /** Where that lies. */
  readonly slot: Addr;
  /** It is in a trampoline's pt_regs. */
  readonly pending: boolean;
}

/** From a trampoline's pt_regs up to its return address into the traced function (asm/ftrace.S). */
const RETURN_OF: Readonly<Record<string, number>> = {
  ftrace_caller: PT_REGS.size + 8,
  ftrace_ipmodify_caller: PT_REGS.size + 8,
  ftrace_regs_caller: PT_REGS.size + 40,
};

export interface StackCheckParts {
  readonly memory: Memory;
  readonly code: CodeMap;
  /** Whether addresses that are pending in a trampoline count. */
  readonly pending: boolean;
}

/** The first thing on the stack that one of `ranges` has. */
export function findOnStack(
  frames: readonly Frame[],
  ranges: readonly Range[],
  parts: StackCheckParts,
): Found | undefined {
  for (const [n, { address, slot }] of frames.entries()) {
    const name = inRange(address, ranges);
    if (name !== undefined) return { name, address, slot, pending: false };
    const at = parts.pending ? pendingIp(address, frames[n + 1], parts.code) : undefined;
    const to = at === undefined ? undefined : (parts.memory.readNumber(at) as Addr | undefined);
    const going = to === undefined ? undefined : inRange(to, ranges);
    if (going !== undefined) return { name: going, address: to!, slot: at!, pending: true };
  }
  return undefined;
}

function inRange(address: Addr, ranges: readonly Range[]): string | undefined {
  return ranges.find(({ low, size }) => address >= low && address < low + size)?.name;
}

/** Where the trampoline at `address` has regs->ip, by the frame of the function that called it. */
function pendingIp(address: Addr, traced: Frame | undefined, code: CodeMap): Addr | undefined {
  if (traced === undefined) return undefined;
  const range = code.rangeAt(address)?.range;
  const at = range?.template ?? address;
  const name = code.symbolAt(at)?.symbol.name;
  const distance = name === undefined ? undefined : RETURN_OF[name];
  return distance === undefined ? undefined : offset(traced.slot, PT_REGS.fields.ip.offset - distance);
}
