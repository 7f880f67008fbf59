// Which differences from Unicorn are Unicorn's: its known faults (src/reference/unicornFaults.ts), and what its answers
// do not say. Each accounts for certain instructions, and for certain of what they leave; a difference that goes beyond is
// none of theirs.

import { addr } from "../../src/base/addr.ts";
import { bug } from "../../src/base/refuse.ts";
import { type Plan, planOf } from "../../src/reference/plan.ts";
import { UNICORN_FAULTS, UNICORN_LACKS } from "../../src/reference/unicornFaults.ts";
import { decode } from "../../src/x86/decode.ts";
import { FLAG, GPR, type Gpr } from "../../src/x86/register.ts";
import { CODE } from "../x86/cases-model.ts";
import { type Batch, FRAME_INDEX } from "./batch.ts";
import type { Aspects } from "./bulkEngine.ts";
import type { FuzzCode } from "./code.ts";
import { whole } from "./halves.ts";
import { OUTCOME, type Outcomes, PAGE_FAULT_VECTOR, VECTORS } from "./outcomes.ts";

const plans = new WeakMap<FuzzCode, Plan>();

/** The reason, if case `n` of the batch, which differs so, is accounted for. */
export function explainUnicorn(
  batch: Batch,
  { words, starts }: Outcomes,
  n: number,
  aspects: Aspects,
): string | undefined {
  const code = batch.codes[n]!;
  if (code.count > 1) return undefined;
  const plan = planFor(code);
  const vector = words[starts[n]! + OUTCOME.vector]!;
  const lacked = plan.features.some((feature) => UNICORN_LACKS.has(feature));
  if (vector === VECTORS["#UD"] && lacked) return `Unicorn does not know ${code.family}`;
  const before = (register: Gpr) => registerBefore(batch, n, register);
  return explainAnswer(code, vector, aspects) ?? explainFault(plan, aspects, before);
}

/** What is right of its answer, but less than a processor says. */
function explainAnswer(code: FuzzCode, vector: number, aspects: Aspects): string | undefined {
  const { fault, stop, rip, registers, flags, memory } = aspects;
  if (!stop || rip || registers !== 0 || flags !== 0 || memory || vector !== PAGE_FAULT_VECTOR)
    return undefined;
  if (fault?.vector === "#GP" || fault?.vector === "#SS")
    return "Unicorn takes an address that is not canonical for one that is not mapped";
  const both = code.accesses.some(({ read, write }) => read && write);
  return fault?.vector === "#PF" && both
    ? "Unicorn's page fault is a read's where an instruction reads and writes"
    : undefined;
}

function explainFault(plan: Plan, aspects: Aspects, before: (register: Gpr) => bigint): string | undefined {
  const { fault, stop, rip, registers, lowHalves, flags, memory } = aspects;
  const fields = [
    ...GPR.filter((_, r) => registers & (1 << r)),
    ...Object.entries(FLAG).flatMap(([name, bit]) => (flags & Number(bit) ? [name] : [])),
    ...(stop ? ["stop"] : []),
    ...(rip ? ["rip"] : []),
    ...(memory ? ["memory"] : []),
  ];
  const known = UNICORN_FAULTS.find(
    ({ shows, spoils, upperHalves }) =>
      shows(plan, fault, before) &&
      fields.every((field) => spoils.includes(field)) &&
      !(upperHalves === true && lowHalves !== 0),
  );
  return known === undefined ? undefined : `Unicorn: ${known.reason}`;
}

function registerBefore({ starts, words }: Batch, n: number, register: Gpr): bigint {
  const at = starts[n]! + 2 + 2 * FRAME_INDEX[register]!;
  return whole({ low: words[at]!, high: words[at + 1]! });
}

function planFor(code: FuzzCode): Plan {
  let plan = plans.get(code);
  if (plan === undefined) {
    const decoded = decode(code.bytes, addr(CODE));
    if (decoded.kind !== "instruction") bug("a case is no instruction");
    plan = planOf(decoded.instruction, code.bytes);
    plans.set(code, plan);
  }
  return plan;
}
