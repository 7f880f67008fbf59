// What this engine did in a row: the state before the first instruction and after each, and what each wrote.
//
// A reference follows it. So whatever is left to it (flags that are undefined, the way that a faulting instruction
// leaves things) goes from here to there, and what is made of it cannot differ later for that reason.

import { type Addr, isCanonical, PAGE_SIZE, pageOf } from "../base/addr.ts";
import type { Fault } from "../machine/exit.ts";
import type { Host } from "../machine/host.ts";
import type { Machine } from "../machine/machine.ts";
import type { Vcpu } from "../machine/vcpu.ts";
import { FLAG, GPR, type RegisterName, STATUS_FLAGS } from "../x86/register.ts";
import { STATE } from "../x86/state.ts";
import { addressOf, type Plan, undefinedFlagsOf, type Write } from "./plan.ts";

/** Words of a state: sixteen registers by number, rip, rflags. */
export const WORDS = 18;
export const RIP = 16;
export const RFLAGS = 17;

/** Flags that are compared whatever the privilege level: what no instruction of a user may read otherwise. */
export const USER_FLAGS = Number(STATUS_FLAGS | FLAG.DF);
/** All that a reference with the kernel's rights is compared in. Never TF: it is the references' own. */
export const KERNEL_FLAGS = Number(
  STATUS_FLAGS | FLAG.DF | FLAG.IF | FLAG.IOPL | FLAG.NT | FLAG.AC | FLAG.ID,
);
const STATUS = Number(STATUS_FLAGS);

/** Registers, rip and rflags by name. */
export type State = Readonly<Record<RegisterName | "rip" | "rflags", bigint>>;

/** Bytes that an instruction may have written, and what was there afterwards. */
export interface Range {
  readonly at: Addr;
  readonly bytes: Uint8Array;
}

interface Place {
  /** Undefined if it is not canonical. */
  readonly at: Addr | undefined;
  readonly size: number;
}

const NO_PLACES: readonly Place[] = [];
const NO_RANGES: readonly Range[] = [];

export class Stretch {
  /** State n is the one before step n; the words in the order of `WORDS`. */
  readonly words: BigInt64Array;
  /** The same memory, in halves, low ones first. */
  readonly halves: Int32Array;
  readonly limit: number;
  readonly plans: Plan[] = [];
  /** Flags that mean nothing after each step. */
  readonly undefinedFlags: number[] = [];
  readonly ranges: (readonly Range[])[] = [];
  /** What the last step came to instead of retiring. */
  fault: Fault | undefined;
  private readonly machine: Machine;
  private readonly vcpu: Vcpu;

  /** Begins at the vCPU's state; room for `limit` steps. */
  constructor(machine: Machine, vcpu: Vcpu, limit: number) {
    this.limit = limit;
    this.machine = machine;
    this.vcpu = vcpu;
    this.words = new BigInt64Array(WORDS * (limit + 1));
    this.halves = new Int32Array(this.words.buffer);
    this.save();
  }

  /** Steps, the last one included that faults. */
  get count(): number {
    return this.plans.length;
  }

  /** Executes `plan`'s instruction, at which the vCPU is. An exit that is no fault leaves no step. */
  step(plan: Plan): ReturnType<Vcpu["step"]> {
    const { vcpu, words } = this;
    const from = WORDS * this.count;
    const places =
      plan.writes.length === 0 ? NO_PLACES : plan.writes.map((write) => placeOf(write, words, from, vcpu));
    const unknown = undefinedFlagsOf(plan, words, from);
    const before = vcpu.rip;
    const exit = vcpu.step();
    if (exit !== undefined && exit.kind !== "fault") return exit;
    this.plans.push(plan);
    const retired = exit === undefined;
    // Between the iterations of a repeated one the flags are the ones before it (SDM vol. 2, REP); silicon may differ.
    this.undefinedFlags.push(!retired ? 0 : plan.repeats && vcpu.rip === before ? STATUS : unknown);
    this.ranges.push(places.length === 0 ? NO_RANGES : this.read(places));
    this.save();
    this.fault = exit?.fault;
    return exit;
  }

  /** Where step `n` begins. */
  ip(n: number): Addr {
    return this.plans[n]!.ip;
  }

  /** The state before step `n`. */
  state(n: number): State {
    return stateOf(this.words.subarray(WORDS * n, WORDS * (n + 1)));
  }

  /** Whether step `n` faulted. */
  faulted(n: number): Fault | undefined {
    return n === this.count - 1 ? this.fault : undefined;
  }

  private save(): void {
    readWords(this.machine.host, this.vcpu, this.words, WORDS * this.count);
  }

  /** What is there now, as far as anything is: of a store that faults, it may be the first page alone. */
  private read(places: readonly Place[]): Range[] {
    const { memory } = this.machine;
    return places.flatMap(({ at, size }) => {
      if (at === undefined || size === 0 || !isCanonical(at + size - 1)) return [];
      if (memory.isMapped(at, size)) return [{ at, bytes: memory.read(at, size) }];
      const here = Math.min(size, pageOf(at) + PAGE_SIZE - at);
      return memory.isMapped(at, here) ? [{ at, bytes: memory.read(at, here) }] : [];
    });
  }
}

/** Writes the vCPU's state into `words` from `at` on. */
export function readWords(host: Host, vcpu: Vcpu, words: BigInt64Array, at = 0): void {
  const { i64 } = host;
  const cpu = vcpu.cpu >> 3;
  for (let n = 0; n < GPR.length; n++) words[at + n] = i64[cpu + n]!;
  words[at + RIP] = i64[(vcpu.cpu + STATE.rip) >> 3]!;
  words[at + RFLAGS] = vcpu.rflags;
}

/** The words of a state by name. */
export function stateOf(words: BigInt64Array): State {
  const entries = [...GPR, "rip", "rflags"].map((name, n) => [name, BigInt.asUintN(64, words[n]!)]);
  return Object.fromEntries(entries) as State;
}

function placeOf(write: Write, words: BigInt64Array, from: number, vcpu: Vcpu): Place {
  return { at: addressOf(write, words, from, vcpu), size: write.size };
}
