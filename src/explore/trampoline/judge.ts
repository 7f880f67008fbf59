// What a crossing has to look like from both sides: where the handler is called, and where the traced function goes on.

import { type Addr, offset, toWord } from "../../base/addr.ts";
import { SITE_SIZE } from "../../ftrace/site.ts";
import { SELECTOR } from "../../kernel/layout.ts";
import { PT_REGS } from "../../machine/ptRegs.ts";
import { StructView } from "../../machine/struct.ts";
import type { Vcpu } from "../../machine/vcpu.ts";
import { FLAG } from "../../x86/register.ts";
import type { Bench, Trampoline } from "./bench.ts";
import {
  type Clause,
  CONTRACTS,
  type Contract,
  FIELD_OF,
  type Field,
  FLAGS,
  SAVED_REGISTERS,
} from "./contract.ts";
import type { Values } from "./states.ts";

/** The state at a site that is being executed. */
export interface Entry {
  readonly registers: Values;
  readonly rflags: bigint;
  readonly rsp: Addr;
  /** Where the traced function returns to. */
  readonly parent: bigint;
}

export interface Difference {
  readonly what: string;
  readonly found: bigint;
  readonly expected: bigint;
}

/** What is not as it has to be. */
export interface Discrepancy {
  readonly clause: Clause;
  readonly why: string;
  readonly differences: readonly Difference[];
}

export function readEntry(bench: Bench): Entry {
  const { vcpu } = bench;
  return {
    registers: vcpu.registers(),
    rflags: vcpu.rflags,
    rsp: vcpu.rsp,
    parent: bench.word(vcpu.rsp),
  };
}

const STACK_ALIGN = 16;
const WORD = 8;

/** What the handler was called with. */
export interface Handled {
  readonly found: readonly Discrepancy[];
  /** Its pt_regs, if that is where it may be. */
  readonly regs: StructView<Field> | undefined;
}

/** At the first instruction of the handler. */
export function judgeCall(bench: Bench, trampoline: Trampoline, entry: Entry): Handled {
  const { vcpu, site } = bench;
  const contract = CONTRACTS[trampoline.kind];
  const found: Discrepancy[] = [];
  const add = (clause: Clause, why: string, differences: readonly Difference[]) => {
    const wrong = differences.filter((one) => one.found !== one.expected);
    if (wrong.length > 0) found.push({ clause, why, differences: wrong });
  };
  const { DF } = FLAG;
  add("flags", "the handler is called with DF set", [flag("DF", vcpu.rflags & DF, 0n)]);
  add("arguments", "the handler gets something else", [
    register(vcpu, "rdi", "ip", toWord(site.ip)),
    register(vcpu, "rsi", "parent ip", entry.parent),
    register(vcpu, "rdx", "ops", toWord(trampoline.passed)),
  ]);
  const { rsp } = vcpu;
  const returnsTo = offset(entry.rsp, -WORD);
  if (remainder(entry.rsp) === WORD)
    add("alignment", `rsp is no multiple of ${STACK_ALIGN} where the handler is called`, [
      { what: `rsp % ${STACK_ALIGN}`, found: BigInt(remainder(rsp + WORD)), expected: 0n },
    ]);
  const regs = vcpu.getNumber("rcx") as Addr;
  const lowest = offset(rsp, WORD);
  const highest = offset(returnsTo, -PT_REGS.size);
  if (!(regs >= lowest && regs <= highest && regs % WORD === 0)) {
    const expected = toWord(regs < lowest || Number.isNaN(regs) ? lowest : highest);
    const differences = [{ what: "rcx (regs)", found: vcpu.get("rcx"), expected }];
    found.push({
      clause: "arguments",
      why: "the handler's pt_regs is not in the trampoline's frame",
      differences,
    });
    return { found, regs: undefined };
  }
  const view = new StructView(bench.machine.memory, PT_REGS, regs);
  const field = (name: Field, expected: bigint): Difference => ({
    what: `regs->${name}`,
    found: view.get(name),
    expected,
  });
  add("pt_regs", "a field of pt_regs has something else", [
    ...contract.saved.map((name) => field(FIELD_OF[name], entry.registers[name])),
    field("ip", toWord(offset(site.ip, SITE_SIZE))),
    field("sp", toWord(entry.rsp)),
    ...(contract.whole
      ? [
          flag("regs->flags", view.get("flags"), entry.rflags),
          field("cs", BigInt(SELECTOR.KERNEL_CS)),
          field("ss", BigInt(SELECTOR.KERNEL_DS)),
        ]
      : []),
  ]);
  return { found, regs: view };
}

/** What the traced function has to find, if it is not what was at the site. */
export interface Expected {
  /** Where the call goes on. */
  readonly rip: Addr;
  readonly registers: Values;
  readonly rflags: bigint;
  /** Which clause promises the registers, and which the flags. */
  readonly clause: "kept" | "changed";
}

/** Where the traced function, or what takes its place, goes on; or wherever else the trampoline led. */
export function judgeReturn(vcpu: Vcpu, contract: Contract, entry: Entry, expected: Expected): Discrepancy[] {
  const found: Discrepancy[] = [];
  const rip = { what: "rip", found: toWord(vcpu.rip), expected: toWord(expected.rip) };
  if (vcpu.rsp !== entry.rsp) {
    const rsp = { what: "rsp", found: toWord(vcpu.rsp), expected: toWord(entry.rsp) };
    const by = vcpu.rsp - entry.rsp;
    const why = `it returns with rsp ${Math.abs(by)} bytes too ${by < 0 ? "low" : "high"}`;
    // Of registers nothing can be said there.
    return [{ clause: "stack", why, differences: rip.found === rip.expected ? [rsp] : [rsp, rip] }];
  }
  if (rip.found !== rip.expected)
    found.push({ clause: "ip", why: "the call goes on somewhere else", differences: [rip] });
  const differences = SAVED_REGISTERS.filter((name) => contract.kept.includes(name))
    .map((name) => ({ what: name, found: vcpu.get(name), expected: expected.registers[name] }))
    .filter((one) => one.found !== one.expected);
  const changed = expected.clause === "changed";
  if (differences.length > 0) {
    const why = changed
      ? "a register is not as the handler has left it"
      : "a register is not as it was at the site";
    found.push({ clause: changed ? "changes" : "registers", why, differences });
  }
  const mask = contract.keptFlags;
  if ((vcpu.rflags & mask) !== (expected.rflags & mask)) {
    const why = changed
      ? "the flags are not as the handler has left them"
      : "the flags are not as they were at the site";
    found.push({
      clause: changed ? "changes" : "flags",
      why,
      differences: [flag("flags", vcpu.rflags & mask, expected.rflags & mask)],
    });
  }
  return found;
}

function remainder(at: number): number {
  return ((at % STACK_ALIGN) + STACK_ALIGN) % STACK_ALIGN;
}

function register(vcpu: Vcpu, name: "rdi" | "rsi" | "rdx", what: string, expected: bigint): Difference {
  return { what: `${name} (${what})`, found: vcpu.get(name), expected };
}

function flag(what: string, found: bigint, expected: bigint): Difference {
  return { what, found: found & FLAGS, expected: expected & FLAGS };
}
