// Whom the engine is held against, and which of the differences are not its own.

import { isCanonical } from "../../src/base/addr.ts";
import { openHost as openHostReference } from "../../src/reference/host.ts";
import { isAmdHost, makersDifference } from "../../src/reference/makers.ts";
import type { Missing } from "../../src/reference/reference.ts";
import { nativeSkipReason } from "../native/oracle.ts";
import type { Batch } from "./batch.ts";
import { type Aspects, faultOf } from "./bulkEngine.ts";
import { HostOracle } from "./hostOracle.ts";
import { type Oracle, OUTCOME, type Outcomes, VECTORS } from "./outcomes.ts";
import { StepOracle } from "./stepOracle.ts";
import { UnicornOracle } from "./unicornOracle.ts";
import { explainUnicorn } from "./unicornVerdict.ts";

export interface Reference {
  readonly oracle: Oracle;
  /** It may be asked about what the host's processor does not have. */
  readonly anywhere: boolean;
  /** Undefined flags are to be the same, too, and so is the number of instructions. */
  readonly strict: boolean;
  /** Who decides where it differs, if there is anybody. */
  readonly arbiter?: Reference;
  /** What explains that case `n` differs, if something known does. */
  explain(batch: Batch, outcomes: Outcomes, n: number, aspects: Aspects): string | undefined;
}

/** The host's processor. Needs what test/native/oracle.ts needs. */
export async function openHost(): Promise<Reference> {
  const reference = await openHostReference();
  const anyStack = "missing" in reference || reference.anyStack;
  if (!("missing" in reference)) reference.close();
  return {
    oracle: await HostOracle.open(),
    anywhere: false,
    strict: false,
    explain: (batch, outcomes, n, aspects) =>
      (anyStack ? undefined : explainNoReturn(outcomes, n)) ?? explainHost(batch, outcomes, n, aspects),
  };
}

const SIGILL = 4;
/** Where rsp is in an outcome, in words. */
const RSP = 2 * 15;

/**
 * Some hosts fault where the kernel returns to user code whose stack pointer is not canonical: after an interrupt, say, which
 * is nobody's but chance's.
 */
function explainNoReturn({ words, starts }: Outcomes, n: number): string | undefined {
  const at = starts[n]!;
  const rsp = (BigInt(words[at + RSP + 1]!) << 32n) | BigInt(words[at + RSP]! >>> 0);
  // #GP, or what Linux makes of an iret that fails: an illegal instruction, whatever trap came last.
  const failed = words[at + OUTCOME.vector] === VECTORS["#GP"] || words[at + OUTCOME.signal] === SIGILL;
  return failed && !isCanonical(rsp)
    ? "the host does not return to a stack pointer that is not canonical"
    : undefined;
}

/** This engine, stepped: for its regions. */
export function openSteps(): Reference {
  return { oracle: new StepOracle(), anywhere: true, strict: true, explain: () => undefined };
}

/** Native Unicorn, with the host's processor to decide where there is one that can; or why there is none here. */
export async function openUnicorn(): Promise<Reference | Missing> {
  const oracle = await UnicornOracle.open();
  if ("missing" in oracle) return oracle;
  const unicorn = { oracle, strict: false, explain: explainUnicorn };
  return (await nativeSkipReason()) === undefined
    ? { ...unicorn, anywhere: false, arbiter: await openHost() }
    : { ...unicorn, anywhere: true };
}

export function close({ oracle, arbiter }: Reference): void {
  oracle.close();
  arbiter?.oracle.close();
}

/** By what AMD's processors do otherwise than Intel's manual. */
function explainHost(
  batch: Batch,
  { words, starts }: Outcomes,
  n: number,
  aspects: Aspects,
): string | undefined {
  const code = batch.codes[n]!;
  if (code.count > 1 || !isAmdHost()) return undefined;
  const found = makersDifference(code.bytes);
  if (found === undefined) return undefined;
  const onlyFlags = !aspects.stop && !aspects.rip && aspects.registers === 0 && !aspects.memory;
  if (found.differs === "flags of a fault" && !(onlyFlags && faultOf(code, words, starts[n]!) !== undefined))
    return undefined;
  return `AMD: ${found.name}`;
}
