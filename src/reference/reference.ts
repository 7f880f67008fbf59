// What lockstep asks of whoever else can execute x86-64 code, and how the two are compared, step by step.

import type { Addr } from "../base/addr.ts";
import { type Fault, PAGE_FAULT } from "../machine/exit.ts";
import type { Vcpu } from "../machine/vcpu.ts";
import { FLAG, GPR } from "../x86/register.ts";
import type { ByteDifference, MemoryImage } from "./memoryImage.ts";
import type { Plan } from "./plan.ts";
import { type Range, RFLAGS, type State, type Stretch, WORDS } from "./stretch.ts";

/** Why there is no such reference here, in one line. */
export interface Missing {
  readonly missing: string;
}

export interface Reference {
  /** As a message names it: `Unicorn 2.0.1`. */
  readonly name: string;
  /**
   * Why it is not asked about an instruction that may be executed elsewhere, by `vcpu` as it is; undefined if it is asked.
   */
  leaves(plan: Plan, vcpu: Vcpu): string | undefined;
  /** Makes its registers and memory those of the vCPU and its machine. Refuses what it cannot have. */
  load(image: MemoryImage, vcpu: Vcpu): Promise<void>;
  /** Executes what was executed here, until something is different. */
  follow(stretch: Stretch): Promise<Verdict>;
  /** The known fault of its own, if there is one, of which it may come that step `n` has left something else in memory. */
  excuse(stretch: Stretch, n: number): string | undefined;
  /** Its memory, in the order of the image that it was loaded from. */
  memory(): Uint8Array;
  close(): void;
}

export interface Verdict {
  /**
   * Steps that ended alike, from the first on. Fewer than there are, without a reason below, if a known fault may have
   * spoilt its memory: then it has to be loaded again.
   */
  readonly agreed: number;
  /** What the reference made of the next one, if it is not the same. */
  readonly deviation?: Deviation;
  readonly faults: readonly PassedOver[];
  /** Why the reference went no further, if it broke down. */
  readonly lost?: string;
}

/** A difference that is the reference's own fault, and known. */
export interface PassedOver {
  readonly step: number;
  readonly reason: string;
}

export interface Deviation {
  readonly state: State;
  readonly stop: Stop | undefined;
  /** What differs: registers and flags by name, `stop`, `memory`. */
  readonly fields: readonly string[];
  /** Of what the instruction writes. */
  readonly memory: readonly ByteDifference[];
}

/** How a reference says that an instruction did not retire. */
export interface Stop {
  /** In its own words. */
  readonly text: string;
  /** What it may mean, in ours. */
  readonly vectors: readonly Fault["vector"][];
  /** Of #PF, what is known. */
  readonly access?: readonly ("read" | "write" | "fetch")[];
  readonly present?: boolean;
  readonly address?: Addr;
}

/** What a reference left of a step: a state in the stretch's layout, and the same memory in halves. */
export interface Left {
  readonly words: BigInt64Array;
  readonly halves: Int32Array;
  readonly stop: Stop | undefined;
  /** What is where the step writes: as long as that, in the order of the stretch's ranges. */
  readonly ranges: readonly Uint8Array[];
}

/** Names of what differs after step `n` of `stretch`, of the flags only those in `flags`; empty if all is alike. */
export function differingFields(stretch: Stretch, n: number, left: Left, flags: number): string[] {
  const { halves, stop, ranges } = left;
  const ours = 2 * WORDS * (n + 1);
  const compared = flags & ~stretch.undefinedFlags[n]!;
  const unlike = (stretch.halves[ours + 2 * RFLAGS]! ^ halves[2 * RFLAGS]!) & compared;
  let same = unlike === 0;
  for (let half = 0; half < 2 * RFLAGS && same; half++) same = stretch.halves[ours + half] === halves[half];
  const written = stretch.ranges[n]!;
  for (let r = 0; r < written.length && same; r++) same = sameRange(written[r]!, ranges[r]!);
  const fault = stretch.faulted(n);
  if (same && fault === undefined && stop === undefined) return [];

  const names = [...GPR, "rip"].filter((_, word) =>
    [2 * word, 2 * word + 1].some((half) => stretch.halves[ours + half] !== halves[half]),
  );
  const flagNames = Object.entries(FLAG).flatMap(([name, bit]) => (unlike & Number(bit) ? [name] : []));
  const memory = written.every((range, r) => sameRange(range, ranges[r]!)) ? [] : ["memory"];
  return [...names, ...flagNames, ...(sameStop(fault, stop) ? [] : ["stop"]), ...memory];
}

/** The bytes of a step's ranges that a reference has otherwise. */
export function rangeDifferences(written: readonly Range[], theirs: readonly Uint8Array[]): ByteDifference[] {
  return written.flatMap(({ at, bytes }, r) =>
    [...bytes].flatMap((ours, n) =>
      ours === theirs[r]![n] ? [] : [{ at: (at + n) as Addr, ours, theirs: theirs[r]![n]! }],
    ),
  );
}

/** Whether a reference's stop may be `fault`. */
function sameStop(fault: Fault | undefined, stop: Stop | undefined): boolean {
  if (fault === undefined || stop === undefined) return fault === stop;
  if (!stop.vectors.includes(fault.vector)) return false;
  if (fault.vector !== "#PF") return true;
  const { errorCode, address } = fault;
  const access = errorCode & PAGE_FAULT.fetch ? "fetch" : errorCode & PAGE_FAULT.write ? "write" : "read";
  const present = (errorCode & PAGE_FAULT.present) !== 0;
  return (
    (stop.access ?? [access]).includes(access) &&
    (stop.present ?? present) === present &&
    (stop.address ?? address) === address
  );
}

function sameRange({ bytes }: Range, theirs: Uint8Array): boolean {
  for (let n = 0; n < bytes.length; n++) if (bytes[n] !== theirs[n]) return false;
  return true;
}
