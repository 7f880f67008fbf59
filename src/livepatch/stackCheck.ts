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
import type { Core } from "./core.ts";

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

/** What the transition under way would have tasks leave; nothing if there is none. */
export function leaving(core: Core): readonly Range[] {
  const { transition, stacks } = core;
  if (transition === undefined) return [];
  const objects = transition.patch.objects.filter(({ isPatched }) => isPatched);
  return objects.flatMap(({ functions }) =>
    functions.flatMap((func) => {
      const { name, place } = func;
      if (place === undefined) return [];
      if (transition.target === "KLP_UNPATCHED")
        return core.isWeakened("newest-entry") ? [] : [{ name, low: place.new, size: place.newSize }];
      const below = stacks.below(func).flatMap((other) => other.place ?? []);
      const bodies = [
        ...below.map((other) => ({ name, low: other.new, size: other.newSize })),
        { name, low: place.old, size: place.oldSize },
      ];
      // Where a transition was forced, tasks may have stayed in any of them.
      return core.state.forces > 0 ? bodies : bodies.slice(0, 1);
    }),
  );
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
  for (const [n, frame] of frames.entries()) {
    const { address, slot } = frame;
    const name = inRange(address, ranges);
    if (name !== undefined) return { name, address, slot, pending: false };
    const at = parts.pending ? pendingIp(frame, frames[n + 1], parts.code) : undefined;
    const to = at === undefined ? undefined : (parts.memory.readNumber(at) as Addr | undefined);
    const going = to === undefined ? undefined : inRange(to, ranges);
    if (going !== undefined) return { name: going, address: to!, slot: at!, pending: true };
  }
  return undefined;
}

function inRange(address: Addr, ranges: readonly Range[]): string | undefined {
  return ranges.find(({ low, size }) => address >= low && address < low + size)?.name;
}

/**
 * Where the trampoline at `frame` has regs->ip. While it calls its handler, pt_regs is right above the address that this returns to.
 * Where it was interrupted itself, the return address of the function that called it says where pt_regs is, or is going to be: that
 * is only walked by ORC, which finds the function there and not in a frame that the trampoline has made for others.
 */
function pendingIp(
  { kind, address, slot }: Frame,
  traced: Frame | undefined,
  code: CodeMap,
): Addr | undefined {
  const template = code.rangeAt(address)?.range?.template ?? address;
  const name = code.symbolAt(template)?.symbol.name;
  const distance = name === undefined ? undefined : RETURN_OF[name];
  if (distance === undefined) return undefined;
  const { offset: ip } = PT_REGS.fields.ip;
  if (kind === "return") return offset(slot, 8 + ip);
  return traced === undefined ? undefined : offset(traced.slot, ip - distance);
}
