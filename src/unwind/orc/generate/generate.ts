// ORC from machine code: what the stack is before every instruction that can be reached, as rules and findings.
//
// As the kernel's build makes it. Nothing is chosen silently: where paths disagree or an instruction's effect on the
// stack is not known, the entries say UNDEFINED, and a finding says why.

import type { Addr } from "../../../base/addr.ts";
import { PT_REGS } from "../../../machine/ptRegs.ts";
import { Mnemonic } from "../../../x86/decode.ts";
import { RBP, RSP } from "../../../x86/register.ts";
import { mergeEqual, type OrcEntry, type OrcRule, UNDEFINED } from "../entry.ts";
import { sorted } from "../table.ts";
import type { Code } from "./code.ts";
import type { Step } from "./effect.ts";
import type { FindingKind, OrcFinding } from "./finding.ts";
import { Flow } from "./flow.ts";
import type { StackState } from "./state.ts";
import { CALLERS_RBP, fromCfa, sameValue } from "./value.ts";

export interface Generated {
  /** By address, none repeating the rule before it. UNDEFINED between functions and where nothing leads. */
  readonly entries: readonly OrcEntry[];
  /** By address. */
  readonly findings: readonly OrcFinding[];
}

const BEHIND: readonly FindingKind[] = ["falls-through", "runs-out", "call-inside"];

/** The ORC of `code`. */
export function generateOrc(code: Code): Generated {
  return new Generation(code).generate();
}

class Generation {
  private readonly code: Code;
  private readonly flow: Flow;
  private readonly findings: OrcFinding[] = [];

  constructor(code: Code) {
    this.code = code;
    this.flow = new Flow(code);
  }

  generate(): Generated {
    const reached = [...this.flow.states.keys()].sort((a, b) => a - b);
    const entries = reached.flatMap((at) => this.visit(at));
    for (const [at, states] of this.flow.conflicts) this.findings.push({ kind: "contradiction", at, states });
    this.findings.sort((a, b) => a.at - b.at);
    return { entries: mergeEqual(sorted(entries)), findings: this.findings };
  }

  /** The entry of an instruction, and that of its end if nothing is reached there; its findings are noted. */
  private visit(at: Addr): OrcEntry[] {
    const state = this.flow.states.get(at)!;
    const step = this.code.step(at);
    const rule = state.rule();
    const wrong = rule && this.wrongAt(at, step, state);
    if (rule !== undefined && wrong !== undefined)
      this.findings.push({ kind: wrong, at, states: [{ from: at, rule }] });
    if (rule !== undefined) this.noteLoss(at, rule);
    // Where execution goes astray behind an instruction, its own state is still known.
    const doubted = wrong !== undefined && !BEHIND.includes(wrong);
    const entry = { address: at, ...(doubted ? UNDEFINED : (rule ?? UNDEFINED)) };
    const next = step?.instruction.next;
    return next === undefined || this.flow.states.has(next)
      ? [entry]
      : [entry, { address: next, ...UNDEFINED }];
  }

  /** Notes an instruction behind which the stack's state is not known any more. */
  private noteLoss(at: Addr, rule: OrcRule): void {
    const edge = this.flow.edges(at).find(({ to }) => !this.code.parts.hints.has(to));
    if (edge === undefined || edge.state.rule() !== undefined) return;
    this.findings.push({ kind: edge.state.missing(), at, states: [{ from: at, rule }] });
  }

  private wrongAt(ip: Addr, step: Step | undefined, state: StackState): FindingKind | undefined {
    if (step === undefined) return "runs-out";
    const { mnemonic, operands } = step.instruction;
    const target = operands[0]?.kind === "target" ? operands[0].at : undefined;
    const successors = this.flow.successors(step, state);
    if (mnemonic !== Mnemonic.Int3) {
      if (successors.some((to) => this.flow.fallsThrough(ip, to))) return "falls-through";
      if (successors.some((to) => this.code.step(to) === undefined)) return "runs-out";
    }
    switch (step.effects.flow) {
      case "return":
        return this.wrongReturn(ip, step, state);
      case "indirect-jump":
        return successors.length === 0 ? this.wrongTail(state, undefined) : undefined;
      case "jump":
      case "conditional-jump":
        return target !== undefined && this.flow.isTailCall(ip, target)
          ? this.wrongTail(state, target)
          : undefined;
      case "call":
        return target !== undefined && this.isInside(target) ? "call-inside" : undefined;
      default:
        return undefined;
    }
  }

  private wrongReturn(
    ip: Addr,
    { instruction: { mnemonic } }: Step,
    state: StackState,
  ): FindingKind | undefined {
    const top = fromCfa(state.get(RSP));
    if (mnemonic !== Mnemonic.Ret) {
      const expected = { REGS: PT_REGS.fields.ip.offset, REGS_PARTIAL: 0, CALL: NaN };
      const wanted = expected[state.type as keyof typeof expected];
      return mnemonic === Mnemonic.Iretq && wanted !== undefined && top !== wanted
        ? "iret-unbalanced"
        : undefined;
    }
    // A hint at a return: it is meant as a jump to what lies on top of the stack.
    if (state.type === "CALL")
      return isAsAtEntry(state) || this.code.parts.hints.has(ip) ? undefined : "return-unbalanced";
    return hasRegisters(state) ? "return-with-registers" : undefined;
  }

  private wrongTail(state: StackState, target: Addr | undefined): FindingKind | undefined {
    if (state.type === "CALL") return isAsAtEntry(state) ? undefined : "tail-unbalanced";
    const hinted = target !== undefined && this.code.parts.hints.has(target);
    return hasRegisters(state) && !hinted ? "tail-with-registers" : undefined;
  }

  private isInside(target: Addr): boolean {
    const inside = this.code.functionAt(target);
    return inside !== undefined && inside.address !== target && !this.code.parts.hints.has(target);
  }
}

function isAsAtEntry(state: StackState): boolean {
  return fromCfa(state.get(RSP)) === -8 && sameValue(state.get(RBP), CALLERS_RBP);
}

function hasRegisters({ type }: StackState): boolean {
  return type === "REGS" || type === "REGS_PARTIAL";
}
