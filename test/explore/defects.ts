// Things that are wrong in unwinders, tables and guest code, each with where an audit has to notice it.
//
// An unwinder's is a walk that decides otherwise in one place; a table's changes what is found for an address; code's
// changes a line of a source in asm/ before it is assembled.

import { type Addr, hex } from "../../src/base/addr.ts";
import type { Cell, Mode } from "../../src/explore/findings.ts";
import { RET_STACK } from "../../src/kernel/layout.ts";
import type { Lab } from "../../src/lab.ts";
import { framePointerUnwinder } from "../../src/unwind/framePointer.ts";
import { type CfaRegister, frameless, type OrcEntry, type OrcRule } from "../../src/unwind/orc/entry.ts";
import { OrcTable, sorted } from "../../src/unwind/orc/table.ts";
import { OrcWalk, orcUnwinder } from "../../src/unwind/orcWalker.ts";
import { HARDWARE_FRAME_SIZE } from "../../src/unwind/savedRegisters.ts";
import type { OrcLookup, Start, UnwindContext, Unwinder, Walk } from "../../src/unwind/walk.ts";
import type { SiteState } from "../../src/workloads.ts";
import { decode, MAX_LENGTH } from "../../src/x86/decode.ts";

/** What an audit has to find: a place with one of these verdicts, where the system without the defect has none. */
export interface Finding {
  readonly mode: Mode;
  readonly cells: readonly Cell[];
  /** As addresses are printed. */
  readonly at: RegExp;
}

export type Kind = "unwinder" | "table" | "code";

export interface Defect {
  readonly name: string;
  /** Which workloads show it: what the sites do, and the calls; by default all that are not interrupted. */
  readonly state: SiteState;
  readonly calls?: RegExp;
  readonly found: Finding;
  /** Default: ORC, as it is. */
  readonly unwinder?: (lab: Lab) => Unwinder;
  readonly edit?: (source: string, text: string) => string;
}

type WalkClass = new (context: UnwindContext) => OrcWalk;

function walker(Class: WalkClass): () => Unwinder {
  return () => ({ name: "defective", walk: (context, start) => new Class(context).from(start) });
}

/** The ORC walk with `find` in the tables' place. */
function table(make: (find: OrcLookup["find"], lab: Lab) => OrcLookup["find"]): (lab: Lab) => Unwinder {
  return (lab) => {
    const find = make((at) => lab.orc.find(at), lab);
    return changed(() => ({ orc: { find } }));
  };
}

/** The ORC walk with another `recover`. */
function recovery(
  make: (lab: Lab, context: UnwindContext) => UnwindContext["recover"],
): (lab: Lab) => Unwinder {
  return (lab) => changed((context) => ({ recover: make(lab, context) }));
}

function changed(make: (context: UnwindContext) => Partial<UnwindContext>): Unwinder {
  const walk = (context: UnwindContext, start: Start): Walk =>
    orcUnwinder.walk(Object.assign(Object.create(context) as UnwindContext, make(context)), start);
  return { name: "defective", walk };
}

/** Replaces a line of `file`, or several, which have to be there once. */
function line(file: string, before: string, after: string): (source: string, text: string) => string {
  return (source, text) => {
    if (source !== file) return text;
    if (text.split(before).length !== 2) throw new Error(`${file} has not one ${JSON.stringify(before)}`);
    return text.replace(before, () => after);
  };
}

/** The same in the function `name` only. */
function lineIn(file: string, name: string, before: string, after: string) {
  return (source: string, text: string): string => {
    if (source !== file) return text;
    const from = text.search(new RegExp(`^(?:un)?traced ${name}$`, "m"));
    const to = text.indexOf(`\ndone ${name}`, from);
    const body = text.slice(from, to);
    if (from < 0 || to < 0 || body.split(before).length !== 2)
      throw new Error(`${name} has not one ${JSON.stringify(before)}`);
    return text.slice(0, from) + body.replace(before, () => after) + text.slice(to);
  };
}

/** Whether `at` is in the function. */
function isIn(lab: Lab, name: string, at: Addr): boolean {
  const { address, size } = lab.symbol(name);
  return at >= address && at < address + size;
}

function isTrampoline(lab: Lab, at: Addr): boolean {
  return lab.code.rangeAt(at)?.range.kind === "trampoline";
}

/** In the task's ret_stack, the innermost first. */
function entries(lab: Lab): { ret: Addr; slot: Addr }[] {
  const task = lab.kernel.current(lab.machine.vcpus[0]!)!;
  const depth = task.struct.getNumber("ret_depth");
  const from = task.struct.getNumber("ret_stack");
  const word = (at: number) => lab.machine.memory.readNumber(at as Addr) as Addr;
  return Array.from({ length: depth }, (_, n) => {
    const at = from + (depth - 1 - n) * RET_STACK.size;
    return { ret: word(at), slot: word(at + RET_STACK.fields.slot.offset) };
  });
}

/** The kernel's table with each entry changed, or left out. */
function kernelTable(change: (entry: OrcEntry, lab: Lab) => OrcEntry | undefined): (lab: Lab) => Unwinder {
  return table((find, lab) => {
    const entries = lab.orc.tableOf(lab.image).entries.flatMap((entry) => change(entry, lab) ?? []);
    const own = new OrcTable("defective", sorted(entries));
    return (at) => (lab.code.imageAt(at) === lab.image ? own.find(at) : find(at));
  });
}

/** The address of the instruction behind the one at `at`. */
function behind(lab: Lab, at: Addr): Addr {
  const decoded = decode(lab.machine.memory.read(at, MAX_LENGTH), at);
  if (decoded.kind !== "instruction") throw new Error(`no instruction at ${hex(at)}`);
  return decoded.instruction.next;
}

/** A walk that claims to be reliable, and is wrong. */
function violation(mode: Mode, at: RegExp): Finding {
  return { mode, cells: ["reliableWrong"], at };
}

/** A walk that doubts what there is no reason to doubt. */
function doubt(mode: Mode, at: RegExp): Finding {
  return { mode, cells: ["unreliableRight", "unreliableWrong"], at };
}

/** A walk that finds other frames than there are, and does not claim to be reliable, as it never did. */
function wrong(mode: Mode, at: RegExp): Finding {
  return { mode, cells: ["unreliableWrong"], at };
}

const UNWINDER_DEFECTS: readonly Defect[] = [
  {
    name: "looks up a return address where it returns to, not one byte before",
    state: "off",
    found: doubt("atRest", /^(lab|do)_exit/),
    unwinder: walker(
      class extends OrcWalk {
        protected override lookupAddress(): Addr {
          return this.ip;
        }
      },
    ),
  },
  {
    name: "looks up every address one byte before",
    state: "off",
    found: violation("preempted", /./),
    unwinder: walker(
      class extends OrcWalk {
        protected override lookupAddress(): Addr {
          return (this.ip - 1) as Addr;
        }
      },
    ),
  },
  {
    name: "takes what was interrupted for a return address",
    state: "off",
    found: violation("preempted", /./),
    unwinder: walker(
      class extends OrcWalk {
        protected override arrive(_: "return" | "interrupted", word: number, slot: Addr): boolean {
          return super.arrive("return", word, slot);
        }
      },
    ),
  },
  {
    name: "does not know that a trampoline returns to the start of a function",
    state: "new",
    found: doubt("atRest", /^ftrace_(regs_|ipmodify_)?caller/),
    unwinder: walker(
      class extends OrcWalk {
        protected override lookupAddress(): Addr {
          return this.exact ? this.ip : ((this.ip - 1) as Addr);
        }
        protected override isRedirected(): boolean {
          return false;
        }
      },
    ),
  },
  {
    name: "does not ask what a return address was before it was replaced",
    state: "rethook_trampoline",
    found: doubt("atRest", /^leaf/),
    unwinder: walker(
      class extends OrcWalk {
        protected override recovered(word: number): Addr {
          return word as Addr;
        }
      },
    ),
  },
  {
    name: "passes over return trampolines as if they were nobody's",
    state: "rethook_trampoline",
    found: violation("atRest", /^vfs_read/),
    unwinder: walker(
      class extends OrcWalk {
        protected override last(rule: OrcRule): Walk | undefined {
          return rule.type === "UNDEFINED" && this.trace.frames.length > 0
            ? this.trace.end()
            : super.last(rule);
        }
        protected override recovered(word: number): Addr {
          return word as Addr;
        }
      },
    ),
  },
  {
    name: "takes the innermost replaced return address, whoever's it is",
    state: "return_to_handler",
    found: doubt("atRest", /^mem_read/),
    unwinder: recovery((lab, context) => (address, slot) => {
      const known = lab.unwinding.returnTrampolines.has(address);
      return known ? entries(lab)[0]?.ret : context.recover(address, slot);
    }),
  },
  {
    name: "counts replaced return addresses, where a jump to a function makes two of one slot",
    state: "rethook_trampoline",
    found: doubt("atRest", /^leaf/),
    unwinder: recovery((lab) => {
      let count = 0;
      return (address) =>
        lab.unwinding.returnTrampolines.has(address) ? entries(lab)[count++]?.ret : address;
    }),
  },
  {
    name: "takes the outermost replaced return address, whoever's it is",
    state: "return_to_handler",
    found: doubt("atRest", /^mem_read/),
    unwinder: recovery((lab, context) => (address, slot) => {
      const known = lab.unwinding.returnTrampolines.has(address);
      return known ? entries(lab).at(-1)?.ret : context.recover(address, slot);
    }),
  },
  {
    name: "believes 6.1's ambiguous end",
    state: "return_to_handler",
    found: violation("atRest", /^return_to_handler/),
    unwinder: (lab) => {
      class Believing extends OrcWalk {
        protected override last(rule: OrcRule): Walk | undefined {
          return rule.type === "END_6_1" ? this.trace.end() : super.last(rule);
        }
      }
      // In 6.1's layout, what is not known is an end as well.
      const find = (at: Addr) => {
        const rule = lab.orc.find(at);
        const isEnd = rule?.type === "UNDEFINED" || rule?.type === "END_OF_STACK";
        return isEnd ? frameless("END_6_1") : rule;
      };
      return {
        name: "defective",
        walk: (context, start) =>
          new Believing(Object.assign(Object.create(context) as UnwindContext, { orc: { find } })).from(
            start,
          ),
      };
    },
  },
  {
    name: "takes code of which nothing is known for the end of the stack",
    state: "return_to_handler",
    found: violation("atRest", /^return_to_handler/),
    unwinder: walker(
      class extends OrcWalk {
        protected override last(rule: OrcRule): Walk | undefined {
          return rule.type === "UNDEFINED" ? this.trace.end() : super.last(rule);
        }
      },
    ),
  },
  {
    name: "forgets doubts",
    state: "rethook_trampoline",
    found: violation("atRest", /^rethook_trampoline/),
    unwinder: () => ({
      name: "defective",
      walk: (context, start) => ({ ...orcUnwinder.walk(context, start), doubt: null }),
    }),
  },
  {
    name: "keeps rbp where the frame has the caller's",
    state: "off",
    found: doubt("atRest", /^mem_read/),
    unwinder: walker(
      class extends OrcWalk {
        protected override callersBp(): number {
          return this.bp;
        }
      },
    ),
  },
  {
    name: "takes rbp from the word above it",
    state: "off",
    found: doubt("atRest", /^mem_read/),
    unwinder: walker(
      class extends OrcWalk {
        protected override callersBp(rule: OrcRule, cfa: Addr): number | undefined {
          return super.callersBp(rule, rule.bp.register === "prevsp" ? ((cfa + 8) as Addr) : cfa);
        }
      },
    ),
  },
  {
    name: "finds frames by rsp one word too far",
    state: "off",
    found: doubt("atRest", /^leaf/),
    unwinder: walker(
      class extends OrcWalk {
        protected override cfa(register: CfaRegister, offset: number): Addr | undefined {
          return super.cfa(register, register === "sp" ? offset + 8 : offset);
        }
      },
    ),
  },
  {
    name: "does not follow the interrupt stack's link",
    state: "traced",
    calls: /^loop 1,/,
    found: doubt("atRest", /^timer_tick/),
    unwinder: walker(
      class extends OrcWalk {
        protected override cfa(register: CfaRegister, offset: number): Addr | undefined {
          return super.cfa(register === "sp-indirect" ? "sp" : register, offset);
        }
      },
    ),
  },
  {
    name: "takes the end of the saved registers for rsp, which leads back to the same stack",
    state: "off",
    found: violation("preempted", /^leaf/),
    unwinder: walker(
      class extends OrcWalk {
        protected override cross(at: Addr, hardware: number): boolean {
          const whole = super.cross(at, hardware);
          this.sp = (at + hardware + HARDWARE_FRAME_SIZE) as Addr;
          return whole;
        }
      },
    ),
  },
  {
    name: "keeps the handler's rbp beyond saved registers",
    state: "off",
    found: doubt("preempted", /^mem_read/),
    unwinder: walker(
      class extends OrcWalk {
        protected override cross(at: Addr, hardware: number): boolean {
          const { bp } = this;
          const whole = super.cross(at, hardware);
          this.bp = bp;
          return whole;
        }
      },
    ),
  },
  {
    name: "takes what the hardware pushed for a whole pt_regs",
    state: "off",
    calls: /^fault|^loop 1,/,
    found: doubt("atRest", /^asm_/),
    unwinder: walker(
      class extends OrcWalk {
        protected override unwind(rule: OrcRule): boolean {
          return super.unwind(rule.type === "REGS_PARTIAL" ? { ...rule, type: "REGS" } : rule);
        }
      },
    ),
  },
  {
    name: "ends at every saved registers, as if they were user mode's",
    state: "off",
    found: violation("preempted", /./),
    unwinder: walker(
      class extends OrcWalk {
        protected override cross(): boolean {
          return false;
        }
      },
    ),
  },
  {
    name: "leaves out what was interrupted",
    state: "off",
    found: violation("preempted", /./),
    unwinder: () => ({
      name: "defective",
      walk: (context, start) => {
        const walk = orcUnwinder.walk(context, start);
        return { ...walk, frames: walk.frames.filter(({ kind }) => kind === "return") };
      },
    }),
  },
  {
    name: "starts a sleeping task's walk at its caller's frame",
    state: "off",
    calls: /^nap/,
    found: violation("sleeping", /^__schedule/),
    unwinder: () => ({
      name: "defective",
      walk: (context, start) => {
        const walk = orcUnwinder.walk(context, start);
        return start.from === "switched-out" ? { ...walk, frames: walk.frames.slice(1) } : walk;
      },
    }),
  },
];

const TABLE_DEFECTS: readonly Defect[] = [
  {
    name: "a function's entries hold from one instruction later",
    state: "off",
    found: doubt("atRest", /^vfs_read/),
    unwinder: kernelTable((entry, lab) =>
      isIn(lab, "vfs_read", entry.address) ? { ...entry, address: behind(lab, entry.address) } : entry,
    ),
  },
  {
    name: "every entry holds from one byte later",
    state: "off",
    found: violation("atRest", /./),
    unwinder: table((find) => (at) => find((at - 1) as Addr)),
  },
  {
    name: "every entry holds from one byte earlier",
    state: "off",
    found: doubt("atRest", /^(lab|do)_exit/),
    unwinder: table((find) => (at) => find((at + 1) as Addr)),
  },
  {
    name: "the entry behind a push is missing",
    state: "off",
    found: doubt("atRest", /^loop/),
    unwinder: kernelTable((entry, lab) =>
      isIn(lab, "loop", entry.address) && entry.cfa.register === "sp" && entry.cfa.offset === 16
        ? undefined
        : entry,
    ),
  },
  {
    name: "a frame is one word larger",
    state: "off",
    found: doubt("atRest", /^sys_read/),
    unwinder: kernelTable((entry, lab) =>
      isIn(lab, "sys_read", entry.address) && entry.cfa.register === "bp"
        ? { ...entry, cfa: { ...entry.cfa, offset: entry.cfa.offset + 8 } }
        : entry,
    ),
  },
  {
    name: "where the caller's rbp was saved is lost",
    state: "off",
    found: doubt("atRest", /^mem_read/),
    unwinder: kernelTable((entry, lab) =>
      isIn(lab, "mem_read", entry.address) ? { ...entry, bp: { register: "undefined", offset: 0 } } : entry,
    ),
  },
  {
    name: "a module has the entries of the build before",
    state: "new",
    found: doubt("atRest", /\[asm_new\]/),
    unwinder: table((find, lab) => (at) => {
      const stale = lab.code.imageAt(at)?.name === "asm_new";
      return find(stale ? ((at + 16) as Addr) : at);
    }),
  },
  {
    name: "trampolines have no entries",
    state: "new",
    found: doubt("atRest", /^ftrace_(regs_|ipmodify_)?caller/),
    unwinder: table((find, lab) => (at) => (isTrampoline(lab, at) ? undefined : find(at))),
  },
  {
    name: "trampolines have the traced function's caller for theirs, who is lost",
    state: "new",
    found: violation("atRest", /^klp_ftrace_handler/),
    unwinder: table((find, lab) => (at) => {
      const rule = find(at);
      const isOff = rule !== undefined && isTrampoline(lab, at);
      return isOff ? { ...rule, cfa: { ...rule.cfa, offset: rule.cfa.offset + 8 } } : rule;
    }),
  },
  {
    name: "trampolines have the entries of the function behind the template",
    state: "traced",
    found: violation("atRest", /^ftrace_(regs_|ipmodify_)?caller/),
    unwinder: table((find, lab) => (at) => {
      const made = lab.code.rangeAt(at);
      return made === undefined ? find(at) : find(lab.symbol("return_hook_handler").address);
    }),
  },
  {
    name: "a table of 6.1's layout, which says `end` where nothing is known",
    state: "off",
    found: doubt("atRest", /^leaf/),
    unwinder: table((find) => (at) => {
      const rule = find(at);
      return rule?.type === "END_OF_STACK" ? frameless("END_6_1") : rule;
    }),
  },
  {
    name: "saved registers are described as a frame",
    state: "off",
    found: doubt("preempted", /./),
    unwinder: kernelTable((entry) =>
      entry.type === "REGS" ? { ...entry, type: "CALL", signal: false } : entry,
    ),
  },
  {
    name: "an entry point's hardware frame is one word off",
    state: "off",
    calls: /^fault/,
    found: doubt("atRest", /^asm_exc_/),
    unwinder: kernelTable((entry) =>
      entry.type === "REGS_PARTIAL"
        ? { ...entry, cfa: { ...entry.cfa, offset: entry.cfa.offset + 8 } }
        : entry,
    ),
  },
];

const CODE_DEFECTS: readonly Defect[] = [
  {
    name: "return_to_handler is hinted as an end of the stack",
    state: "return_to_handler",
    found: violation("atRest", /^return_to_handler/),
    edit: lineIn("return.S", "return_to_handler", "unwind_hint_undefined", "unwind_hint_end_of_stack"),
  },
  {
    name: "return_to_handler is hinted to have its caller's address above",
    state: "return_to_handler",
    found: violation("preempted", /^return_to_handler/),
    edit: lineIn("return.S", "return_to_handler", "unwind_hint_undefined", "unwind_hint_func 16"),
  },
  {
    name: "rethook_trampoline is hinted with its frame one word off",
    state: "rethook_trampoline",
    found: doubt("atRest", /^rethook_trampoline\+0x[^0]/),
    edit: lineIn("return.S", "rethook_trampoline", "	unwind_hint_func\n", "	unwind_hint_func 16\n"),
  },
  {
    name: "rethook_trampoline leaves its slot as it finds it, so that the replaced address is lost there",
    state: "rethook_trampoline",
    found: doubt("atRest", /^rethook_trampoline\+0x[^0]/),
    edit: lineIn("return.S", "rethook_trampoline", "push $rethook_trampoline", "push $0"),
  },
  {
    name: "rethook_trampoline gives its entry up before the caller's address is back",
    state: "rethook_trampoline",
    found: doubt("atRest", /^rethook_trampoline\+0x[^0]/),
    edit: lineIn(
      "return.S",
      "rethook_trampoline",
      "	mov %rdx, 8(%rbp)",
      "	decl TASK_RET_DEPTH(%rax)\n	nop\n	incl TASK_RET_DEPTH(%rax)\n	mov %rdx, 8(%rbp)",
    ),
  },
  {
    name: "a return address is replaced before what it was is recorded",
    state: "return_to_handler",
    found: doubt("atRest", /^return_hook_handler/),
    edit: lineIn(
      "return.S",
      "return_hook_handler",
      "	mov PT_REGS_SP(%rcx), %r9",
      "	mov PT_REGS_SP(%rcx), %r9\n	mov %rdx, (%r9)\n",
    ),
  },
  {
    name: "the entry of a replaced return address names another slot",
    state: "rethook_trampoline",
    found: doubt("atRest", /^leaf/),
    edit: (source, text) =>
      source === "return.S"
        ? text.replaceAll("	mov %r9, RET_STACK_SLOT(%rax)", "	mov %rsp, RET_STACK_SLOT(%rax)")
        : text,
  },
  {
    name: "a handler leaves the return address replaced, without a word to anybody",
    state: "traced",
    found: doubt("atRest", /^ftrace_stub/),
    edit: lineIn(
      "ftrace.S",
      "ftrace_stub",
      "	ret",
      "	mov PT_REGS_SP(%rcx), %rax\n	movq $return_to_handler, (%rax)\n	nop\n	mov %rsi, (%rax)\n	ret",
    ),
  },
  {
    name: "the trampoline's frame record of the traced function lacks its caller",
    state: "return_to_handler",
    calls: /^leaf 1,/,
    unwinder: () => framePointerUnwinder,
    found: wrong("atRest", /^return_hook_handler\+0x4/),
    edit: line("ftrace.S", "	mov %rsi, PT_REGS_BX(%rsp)", "	movq $0, PT_REGS_BX(%rsp)"),
  },
  {
    name: "the trampoline's own frame record lacks the traced function",
    state: "return_to_handler",
    calls: /^leaf 1,/,
    unwinder: () => framePointerUnwinder,
    found: wrong("atRest", /^return_hook_handler\+0x4/),
    edit: line("ftrace.S", "	mov %rdi, PT_REGS_R12(%rsp)", "	movq $0, PT_REGS_R12(%rsp)"),
  },
  {
    name: "entry code does not mark its registers for frame pointers",
    state: "off",
    unwinder: () => framePointerUnwinder,
    found: violation("preempted", /./),
    edit: line("entry.S", "	lea 1(%rsp), %rbp			# for frame-pointer walks", "	nop #"),
  },
  {
    name: "a function that sleeps has no frame for frame pointers",
    state: "off",
    calls: /^nap/,
    unwinder: () => framePointerUnwinder,
    found: violation("sleeping", /^__schedule/),
    edit: (source, text) =>
      source === "shapes.S"
        ? text.replace(
            "traced nap\n	frame_begin\n	call schedule\n	frame_end",
            "traced nap\n	call schedule",
          )
        : text,
  },
  {
    name: "the handler of return hooks is wrongly hinted in its middle",
    state: "return_to_handler",
    found: doubt("atRest", /^return_hook_handler/),
    edit: lineIn(
      "return.S",
      "return_hook_handler",
      "	shl $4, %rax",
      "	unwind_hint_func 1000\n	shl $4, %rax",
    ),
  },
  {
    name: "the way to the interrupt stack is hinted as if the registers were there",
    state: "off",
    calls: /^loop 1,/,
    found: doubt("atRest", /^timer_tick/),
    edit: line("entry.S", "unwind_hint_regs_indirect", "unwind_hint_regs"),
  },
  {
    name: "the NMI's entry has no hint",
    state: "off",
    found: doubt("atRest", /./),
    calls: /^loop 1,/,
    edit: lineIn("entry.S", "asm_exc_nmi", "	unwind_hint_iret_regs 0\n", ""),
  },
  {
    name: "an exception's entry is hinted without the error code",
    state: "off",
    calls: /^fault/,
    found: doubt("atRest", /^asm_exc_/),
    edit: line("entry.S", "unwind_hint_iret_regs 8", "unwind_hint_iret_regs 0"),
  },
  {
    name: "nothing says that stacks end in lab_call",
    state: "off",
    found: doubt("atRest", /^leaf/),
    edit: lineIn("entry.S", "lab_call", "	unwind_hint_end_of_stack\n", ""),
  },
];

const ofKind = (kind: Kind, defects: readonly Defect[]) => defects.map((defect) => ({ ...defect, kind }));

export const DEFECTS = [
  ...ofKind("unwinder", UNWINDER_DEFECTS),
  ...ofKind("table", TABLE_DEFECTS),
  ...ofKind("code", CODE_DEFECTS),
];
