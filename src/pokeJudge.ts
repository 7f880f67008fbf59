// What is wrong with how calls go through a site that is rewritten: of each, a sentence.
//
// Expected is what was executed at the site: each call or breakpoint there entails what it stands for, once.

import { type Addr, offset } from "./base/addr.ts";
import { hexBytes, sameBytes } from "./base/bytes.ts";
import { BP_PATCHING_DESC, OPCODE, TEXT_POKE_LOC } from "./ftrace/layout.ts";
import { NOP5, SITE_SIZE } from "./ftrace/site.ts";
import type { Lab } from "./lab.ts";
import { describeFault, type Exit } from "./machine/exit.ts";
import { Kept } from "./machine/kept.ts";
import { StructView } from "./machine/struct.ts";
import type { Vcpu } from "./machine/vcpu.ts";
import { printInstruction } from "./x86/decode.ts";

/** What is at the site when it is executed. */
export type Fetched = "nop" | "call" | "int3" | "torn";

/** By vCPU. */
interface Counts {
  /** How often it has executed what is at the site. */
  readonly passed: readonly number[];
  /** Calls of the handler that this stands for. */
  readonly owed: readonly number[];
  /** Calls that have come back. */
  readonly returned: readonly number[];
}

export interface PokeJudgeParts {
  readonly lab: Lab;
  /** The first of its bytes. */
  readonly site: Addr;
  /** What it is while it is on. */
  readonly call: Uint8Array;
}

export class PokeJudge {
  private readonly lab: Lab;
  private readonly site: Addr;
  private readonly call: Uint8Array;
  private readonly counts: Kept<Counts>;
  private readonly bodies: Addr;
  private readonly handled: Addr;
  private readonly desc: StructView<keyof typeof BP_PATCHING_DESC.fields>;

  constructor({ lab, site, call }: PokeJudgeParts) {
    const { machine } = lab;
    this.lab = lab;
    this.site = site;
    this.call = call;
    const none = machine.vcpus.map(() => 0);
    this.counts = new Kept<Counts>(machine.keeper, { passed: none, owed: none, returned: none });
    this.bodies = lab.symbol("poked_bodies").address;
    this.handled = lab.symbol("poked_handled").address;
    this.desc = new StructView(machine.memory, BP_PATCHING_DESC, lab.symbol("bp_desc").address);
  }

  /** What guest memory does not have of all this: calls that came back, their bodies have counted. */
  key(): string {
    const { passed, owed } = this.counts.value;
    return `${passed.join()} ${owed.join()}`;
  }

  /** What `bytes` are, which a vCPU has fetched at the site, or `into` it. */
  classify(bytes: Uint8Array, into: number): Fetched {
    if (into !== 0) return "torn";
    if (bytes[0] === OPCODE.INT3_INSN_OPCODE) return "int3";
    if (sameBytes(bytes, NOP5)) return "nop";
    return sameBytes(bytes, this.call) ? "call" : "torn";
  }

  /** `vcpu` has fetched that at `rip`. */
  fetched(vcpu: Vcpu, rip: Addr, bytes: Uint8Array, what: Fetched): string | undefined {
    const n = vcpu.index;
    if (what === "torn") {
      const text = printInstruction(bytes, rip);
      return `vCPU ${n} fetches torn bytes at ${this.name(rip)}: ${hexBytes(bytes)}, ${text}`;
    }
    const { passed, owed, returned } = this.counts.value;
    const owes = what === "call" || (what === "int3" && this.standsForCall()) ? 1 : 0;
    this.counts.value = {
      passed: passed.with(n, passed[n]! + 1),
      owed: owed.with(n, owed[n]! + owes),
      returned,
    };
    if (passed[n] === returned[n]) return undefined;
    return `call ${returned[n]! + 1} of vCPU ${n} passes the site twice`;
  }

  /** Execution on `vcpu` has stopped with `exit`, or not. */
  exited(vcpu: Vcpu, exit: Exit | undefined): string | undefined {
    const { kernel } = this.lab;
    if (exit === undefined || kernel.returned(exit)) return undefined;
    const left = kernel.answer(vcpu, exit);
    if (left === "answered") return undefined;
    if (left.kind === "panic") return `vCPU ${vcpu.index}: kernel BUG: ${left.text}`;
    const taken = kernel.exception(vcpu, left);
    if (taken === undefined) return `vCPU ${vcpu.index}: ${this.lab.describe(left)}`;
    const { fault, ip } = taken;
    return `vCPU ${vcpu.index} has no way on from ${describeFault(fault)} at ${this.name(ip)}`;
  }

  /** Where a trampoline was freed there are its bytes still, and nobody has a right to them. */
  place({ index, rip }: Vcpu): string | undefined {
    return this.lab.code.isText(rip) ? undefined : `vCPU ${index} is at ${this.name(rip)}, where no code is`;
  }

  /** A call has come back. */
  returned(vcpu: Vcpu): string | undefined {
    const { passed, owed, returned } = this.counts.value;
    const n = vcpu.index;
    const calls = returned[n]! + 1;
    this.counts.value = { passed, owed, returned: returned.with(n, calls) };
    const [bodies, handled] = [this.bodies, this.handled].map(
      (counts) => this.lab.machine.memory.readNumber(offset(counts, 8 * n)) ?? Number.NaN,
    );
    const which = `call ${calls} of vCPU ${n}`;
    if (bodies !== calls) return `${which} comes back, and ${bodies} bodies were executed there`;
    if (handled !== owed[n])
      return `${which} comes back after ${handled} calls of the handler, not ${owed[n]}, all calls together`;
    const [argument, result] = [vcpu.get("rbx"), vcpu.get("rax")];
    return result === 2n * argument ? undefined : `${which}, of ${argument}, comes back with ${result}`;
  }

  /** Everybody is done, with `calls` each; the site is to be `wanted`. */
  atEnd(calls: number, wanted: Uint8Array): string | undefined {
    const [waiting] = this.lab.kernel.agenda.pending;
    if (waiting !== undefined) return `the poker waits for ever: ${waiting.what}`;
    const text = this.lab.machine.memory.read(this.site, SITE_SIZE);
    if (!sameBytes(text, wanted)) return `the site is ${hexBytes(text)} in the end, not ${hexBytes(wanted)}`;
    const { returned } = this.counts.value;
    const lost = returned.findIndex((count) => count !== calls);
    if (lost >= 0) return `vCPU ${lost} has come back from ${returned[lost]} calls`;
    const refs = this.desc.getNumber("refs");
    return refs === 0 ? undefined : `the poke's description is still held ${refs} times`;
  }

  /** Whether a breakpoint at the site has to do what a call does, by the poke that is under way. */
  private standsForCall(): boolean {
    if (this.desc.getNumber("refs") === 0) return false;
    const vec = this.desc.getNumber("vec") as Addr;
    const loc = new StructView(this.lab.machine.memory, TEXT_POKE_LOC, vec);
    return loc.getNumber("ip") === this.site && loc.getNumber("opcode") === OPCODE.CALL_INSN_OPCODE;
  }

  private name(at: Addr): string {
    return this.lab.code.describe(at);
  }
}
