// What walkers may ask of this kernel: words on the stacks that a task may be on, code, replaced return addresses.

import type { Addr } from "../base/addr.ts";
import type { CodeMap } from "../image/codeMap.ts";
import type { Memory } from "../machine/memory.ts";
import type { Vcpu } from "../machine/vcpu.ts";
import type { OrcLookup, StackInfo, Start, UnwindContext } from "../unwind/walk.ts";
import { RET_STACK } from "./layout.ts";
import type { Task } from "./task.ts";

export interface UnwindingParts {
  readonly memory: Memory;
  readonly code: CodeMap;
  readonly orc: OrcLookup;
  /** Where functions return to whose return address was replaced. */
  readonly returnTrampolines: ReadonlySet<Addr>;
}

/** For a walk of `task`, which may be on `stacks`. */
export class TaskContext implements UnwindContext {
  readonly orc: OrcLookup;
  private readonly parts: UnwindingParts;
  private readonly task: Task | undefined;
  private readonly stacks: readonly StackInfo[];

  constructor(parts: UnwindingParts, task: Task | undefined, stacks: readonly StackInfo[]) {
    this.parts = parts;
    this.orc = parts.orc;
    this.task = task;
    this.stacks = stacks;
  }

  read(at: Addr): number | undefined {
    return this.stackAt(at) === undefined ? undefined : this.parts.memory.readNumber(at);
  }

  stackAt(at: Addr): StackInfo | undefined {
    for (const stack of this.stacks) if (at >= stack.low && at < stack.high) return stack;
    return undefined;
  }

  isText(at: Addr): boolean {
    return this.parts.code.isText(at);
  }

  isTrampoline(at: Addr): boolean {
    return this.parts.code.rangeAt(at)?.range.kind === "trampoline";
  }

  isFunctionStart(at: Addr): boolean {
    return this.parts.code.symbolAt(at)?.offset === 0;
  }

  recover(address: Addr, slot: Addr): Addr | undefined {
    const { returnTrampolines, memory } = this.parts;
    if (!returnTrampolines.has(address)) return address;
    if (this.task === undefined) return undefined;
    const { struct } = this.task;
    const entries = struct.getNumber("ret_stack");
    for (let n = struct.getNumber("ret_depth") - 1; n >= 0; n--) {
      const entry = entries + n * RET_STACK.size;
      const word = (field: keyof typeof RET_STACK.fields) =>
        memory.readNumber((entry + RET_STACK.fields[field].offset) as Addr) as Addr;
      // A function that was tail-called has replaced what its caller had put there.
      if (word("slot") === slot && !returnTrampolines.has(word("ret"))) return word("ret");
    }
    return undefined;
  }
}

const EXTRA = { dx: "rdx", di: "rdi", r10: "r10", r13: "r13" } as const;

/** For a walk from the registers of `vcpu`, between two instructions. */
export function liveStart(vcpu: Vcpu): Start {
  return {
    from: "live",
    ip: vcpu.rip,
    sp: vcpu.rsp,
    bp: vcpu.getNumber("rbp"),
    register: (name) => vcpu.getNumber(EXTRA[name]),
  };
}
