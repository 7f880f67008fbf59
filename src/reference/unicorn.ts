// Native Unicorn as a reference: a machine's memory in an engine of its own, stepped after this one.
//
// It runs with the kernel's rights and without paging, in a flat copy of what is mapped. So it judges no system
// instruction, and none that a user may not execute where the code is a user's. Where it does not know an instruction
// (its CPU model is an older one), or is known to be wrong (unicornFaults.ts), it says so.

import { type Addr, addr } from "../base/addr.ts";
import { bug } from "../base/refuse.ts";
import type { Fault } from "../machine/exit.ts";
import type { Access } from "../machine/memory.ts";
import type { Vcpu } from "../machine/vcpu.ts";
import { mnemonicName } from "../x86/decode.ts";
import { GPR, type Gpr, RCX } from "../x86/register.ts";
import type { MemoryImage } from "./memoryImage.ts";
import type { Plan } from "./plan.ts";
import {
  differingFields,
  type Left,
  type Missing,
  type PassedOver,
  type Reference,
  rangeDifferences,
  type Stop,
  type Verdict,
} from "./reference.ts";
import {
  KERNEL_FLAGS,
  type Range,
  RIP,
  readWords,
  type Stretch,
  stateOf,
  USER_FLAGS,
  WORDS,
} from "./stretch.ts";
import { UNICORN_FAULTS, UNICORN_LACKS, type UnicornFault } from "./unicornFaults.ts";
import {
  loadUnicorn,
  type NativeMemory,
  PROT,
  type UnicornCode,
  type UnicornContext,
  type UnicornEngine,
} from "./unicornLibrary.ts";

const FETCHES: ReadonlySet<UnicornCode> = new Set(["UC_ERR_FETCH_UNMAPPED", "UC_ERR_FETCH_PROT"]);

const NOTHING: readonly Uint8Array[] = [];
/** Whatever else it stops for is no fault of the guest's. */
const NO_FAULT: readonly Fault["vector"][] = [];

/** What `uc_err` may mean. It takes an address that is not canonical for one that is not mapped. */
const STOPS: Readonly<Partial<Record<UnicornCode, Omit<Stop, "text">>>> = {
  // What reads before it writes has only read by then.
  UC_ERR_READ_UNMAPPED: { vectors: ["#PF", "#GP", "#SS"], access: ["read", "write"], present: false },
  UC_ERR_WRITE_UNMAPPED: { vectors: ["#PF", "#GP", "#SS"], access: ["write"], present: false },
  UC_ERR_FETCH_UNMAPPED: { vectors: ["#PF", "#GP"], access: ["fetch"], present: false },
  UC_ERR_READ_PROT: { vectors: ["#PF"], access: ["read"], present: true },
  UC_ERR_WRITE_PROT: { vectors: ["#PF"], access: ["write"], present: true },
  UC_ERR_FETCH_PROT: { vectors: ["#PF"], access: ["fetch"], present: true },
  UC_ERR_INSN_INVALID: { vectors: ["#UD"] },
  UC_ERR_EXCEPTION: { vectors: ["#DE", "#GP", "#SS", "#BP", "#OF", "#BR", "#NM", "#DB"] },
};

/** The library's engine as a reference, or why there is none. */
export async function openUnicorn(): Promise<UnicornReference | Missing> {
  const unicorn = await loadUnicorn();
  return "missing" in unicorn ? unicorn : new UnicornReference(`Unicorn ${unicorn.version}`, unicorn.open());
}

export class UnicornReference implements Reference {
  readonly name: string;
  private readonly engine: UnicornEngine;
  private readonly fresh: UnicornContext;
  private image: MemoryImage | undefined;
  private copy: NativeMemory | undefined;
  private flags = KERNEL_FLAGS;

  constructor(name: string, engine: UnicornEngine) {
    this.name = name;
    this.engine = engine;
    this.fresh = engine.saveContext();
  }

  leaves(
    { instruction, invalid, privileged, features }: Plan,
    { system: { user } }: Vcpu,
  ): string | undefined {
    // It ends the whole process over some of them: cmp with a lock prefix, for one.
    if (invalid) return "(invalid encoding)";
    if (instruction === undefined) return undefined;
    const unknown = features.some((feature) => UNICORN_LACKS.has(feature));
    return unknown || (user && privileged) ? mnemonicName(instruction) : undefined;
  }

  async load(image: MemoryImage, vcpu: Vcpu): Promise<void> {
    const { engine } = this;
    if (this.image?.isLaidOutAs(image) !== true) this.map(image);
    this.image = image;
    for (const { at, size, access } of image.copyTo(this.memory()))
      if (access.execute) engine.forget(at, size);
    engine.restoreContext(this.fresh); // or an exception would still be pending
    const words = new BigInt64Array(WORDS);
    readWords(image.machine.host, vcpu, words);
    engine.writeState(words);
    engine.writeBase("fs", vcpu.fsBase);
    engine.writeBase("gs", vcpu.gsBase);
    this.flags = vcpu.system.user ? USER_FLAGS : KERNEL_FLAGS;
  }

  async follow(stretch: Stretch): Promise<Verdict> {
    const faults: PassedOver[] = [];
    for (let n = 0; n < stretch.count; n++) {
      const left = this.step(stretch, n);
      const fields = differingFields(stretch, n, left, this.flags);
      if (fields.length > 0) {
        const known = knownFault(stretch, n, fields, left.halves);
        if (known === undefined) {
          const memory = rangeDifferences(stretch.ranges[n]!, left.ranges);
          return {
            agreed: n,
            deviation: { state: stateOf(left.words), stop: left.stop, fields, memory },
            faults,
          };
        }
        faults.push({ step: n, reason: known.reason });
        if (known.spoils.includes("memory")) return { agreed: n + 1, faults };
      }
      this.adopt(stretch, n + 1, left);
    }
    return { agreed: stretch.count, faults };
  }

  excuse(stretch: Stretch, n: number): string | undefined {
    return knownFault(stretch, n, ["memory"])?.reason;
  }

  memory(): Uint8Array {
    return this.copy?.bytes ?? bug("the reference has no memory yet");
  }

  close(): void {
    this.engine.close();
  }

  private map(image: MemoryImage): void {
    const { engine } = this;
    for (const { at, size } of this.image?.runs ?? []) engine.unmapMemory(at, size);
    if (this.copy !== undefined) engine.release(this.copy);
    this.copy = engine.allocate(image.size);
    for (const { at, offset, size, access } of image.runs)
      engine.mapNative(at, this.copy, offset, size, permissions(access));
  }

  private step(stretch: Stretch, n: number): Left {
    const { engine } = this;
    const ip = stretch.ip(n);
    let code = engine.step(ip);
    let state = engine.readState();
    const plan = stretch.plans[n]!;
    if (code === "UC_ERR_OK" && isDone(plan, state.words)) {
      // A finished REP takes it one more step, which sees that nothing is left to do.
      code = engine.step(ip);
      state = engine.readState();
    } else if (code === "UC_ERR_OK" && isState(stretch, n, state) && !isState(stretch, n + 1, state)) {
      // What writes to code that was translated together with it begins anew each time: translate it alone.
      code = engine.start(ip, addr(ip + plan.bytes.length), 0, 1);
      state = engine.readState();
    }
    // That nothing can be fetched where a branch went it says at once; here, the next step comes to it.
    if (FETCHES.has(code) && state.words[RIP] !== BigInt(ip)) code = "UC_ERR_OK";
    const stop = code === "UC_ERR_OK" ? undefined : { text: code, vectors: NO_FAULT, ...STOPS[code] };
    return { words: state.words, halves: state.halves, stop, ranges: this.rangesOf(stretch.ranges[n]!) };
  }

  /** What Unicorn has there: views. */
  private rangesOf(written: readonly Range[]): readonly Uint8Array[] {
    if (written.length === 0) return NOTHING;
    return written.map(({ at, bytes }) => {
      const place = this.placeOf(at);
      return this.memory().subarray(place, place + bytes.length);
    });
  }

  /** Takes over from here what is not compared, or known to be wrong there. */
  private adopt(stretch: Stretch, n: number, left: Left): void {
    if (!isState(stretch, n, left))
      this.engine.writeState(stretch.words.subarray(WORDS * n, WORDS * (n + 1)));
  }

  private placeOf(at: Addr): number {
    return (this.image ?? bug("the reference has no memory yet")).placeOf(at);
  }
}

/** Whether it is the state before step `n`, in every bit. */
function isState({ halves: ours }: Stretch, n: number, { halves }: Pick<Left, "halves">): boolean {
  const from = 2 * WORDS * n;
  for (let half = 0; half < 2 * WORDS; half++) if (ours[from + half] !== halves[half]) return false;
  return true;
}

/** The fault of Unicorn's that accounts for all the `fields` that differ after step `n`, with `halves` in its registers. */
function knownFault(
  stretch: Stretch,
  n: number,
  fields: readonly string[],
  halves?: Int32Array,
): UnicornFault | undefined {
  const plan = stretch.plans[n]!;
  const fault = stretch.faulted(n);
  const before = (register: Gpr) => BigInt.asUintN(64, stretch.words[WORDS * n + register]!);
  const ours = 2 * WORDS * (n + 1);
  const lowHalvesDiffer = GPR.some(
    (_, r) => halves !== undefined && stretch.halves[ours + 2 * r] !== halves[2 * r],
  );
  return UNICORN_FAULTS.find(
    ({ shows, spoils, upperHalves }) =>
      fields.every((field) => spoils.includes(field)) &&
      !(upperHalves === true && lowHalvesDiffer) &&
      shows(plan, fault, before),
  );
}

/** Whether a repeated string instruction has counted down and is still there. */
function isDone({ ip, repeats, instruction }: Plan, words: BigInt64Array): boolean {
  if (!repeats || words[RIP] !== BigInt(ip)) return false;
  return BigInt.asUintN(8 * instruction!.addressSize, words[RCX]!) === 0n;
}

function permissions({ write, execute }: Access): number {
  return PROT.READ + (write ? PROT.WRITE : 0) + (execute ? PROT.EXEC : 0);
}
