// This host's own processor as a reference: a machine's memory at its own addresses in a child process, which
// single-steps through what was executed here (host.S).
//
// Needs Linux on x86-64. It judges what a user's code may execute, with a user's rights; nothing that enters the
// kernel, or that the kernel has a hand in, is ever executed there, nor anything that is not decoded here first.
// Refuses memory in the kernel's half, and what the child cannot map.

import { readFileSync } from "node:fs";
import { addr, hex, isCanonical, PAGE_SIZE } from "../base/addr.ts";
import { bug, refuse } from "../base/refuse.ts";
import { type Fault, PAGE_FAULT } from "../machine/exit.ts";
import { VECTOR } from "../machine/system/exception.ts";
import type { Vcpu } from "../machine/vcpu.ts";
import { Mnemonic, mnemonicName } from "../x86/decode.ts";
import { GPR } from "../x86/register.ts";
import { missingHostFeature } from "./hostFeature.ts";
import { ANSWER, ANSWER_WORDS, type Bases, frameOf, HostProcess, stateOfAnswer } from "./hostProcess.ts";
import { isAmdHost } from "./makers.ts";
import type { MemoryImage } from "./memoryImage.ts";
import type { Plan } from "./plan.ts";
import {
  differingFields,
  type Left,
  type Missing,
  type Reference,
  rangeDifferences,
  type Stop,
  type Verdict,
} from "./reference.ts";
import { type Range, RFLAGS, RIP, type Stretch, stateOf, USER_FLAGS, WORDS } from "./stretch.ts";

const SINGLE_STEP = VECTOR["#DB"];
/** IF and the bit that is always set. */
const FIXED_FLAGS = 0x202n;
const OWN_THERE = "(an address at which the host has something of its own)";
const NO_RETURN = "(a stack pointer that is not canonical, which this host does not return to)";
const NOP = 0x90;
/** The trap flag would be in what it pushes. */
const PUSHES_FLAGS: ReadonlySet<Mnemonic> = new Set([Mnemonic.Pushf, Mnemonic.Pushfq]);

/** The host's processor, or why it cannot be asked. */
export async function openHost(): Promise<HostReference | Missing> {
  if (process.platform !== "linux") return { missing: `this host runs ${process.platform}, not Linux` };
  if (process.arch !== "x64") return { missing: `this host's processor is ${process.arch}, not x86-64` };
  const nothing = await HostProcess.start({ runs: [], size: 0 }, { fs: 0n, gs: 0n });
  if (!(nothing instanceof HostProcess)) return { missing: nothing.why };
  nothing.close();
  return new HostReference(await goesOnWithAnyStack());
}

/** Where a program of one instruction is put, to see what becomes of it. */
const PROBE = addr(0x1000_0000);

/** Whether user code that the kernel has interrupted goes on with a stack pointer that is not canonical. Not everywhere. */
async function goesOnWithAnyStack(): Promise<boolean> {
  const access = { write: true, execute: true, user: true };
  const runs = [{ at: PROBE, offset: 0, size: PAGE_SIZE, access }];
  const process = await HostProcess.start({ runs, size: PAGE_SIZE }, { fs: 0n, gs: 0n });
  if (!(process instanceof HostProcess)) return true; // whoever has a program there hears of that
  process.write(new Uint8Array(PAGE_SIZE).fill(NOP));
  const state = new BigInt64Array(WORDS);
  state[GPR.indexOf("rsp")] = BigInt.asIntN(64, 1n << 63n);
  state[RIP] = BigInt(PROBE);
  state[RFLAGS] = FIXED_FLAGS;
  const frame = new BigInt64Array(WORDS);
  frameOf(state, frame);
  process.send(BigInt64Array.of(...frame, BigInt(PROBE), FIXED_FLAGS, 0n));
  const answer = await process.receive(8 * ANSWER_WORDS);
  process.close();
  return answer !== undefined && stopOf(answer) === undefined;
}

export class HostReference implements Reference {
  readonly name = "the host's CPU";
  private process: HostProcess | undefined;
  private image: MemoryImage | undefined;
  private bases: Bases = { fs: 0n, gs: 0n };
  /** What is mapped in the child besides the program. */
  private own: readonly { from: bigint; to: bigint }[] = [];
  /** Whether it can be asked what comes of a stack pointer that is not canonical. */
  readonly anyStack: boolean;

  constructor(anyStack: boolean) {
    this.anyStack = anyStack;
  }

  leaves({ instruction, invalid, privileged, features, makers }: Plan, vcpu: Vcpu): string | undefined {
    const { user } = vcpu.system;
    if (!this.anyStack && !isCanonical(vcpu.get("rsp"))) return NO_RETURN;
    if (invalid) return "(invalid encoding)"; // to us: who knows what it is to the processor
    if (instruction === undefined) return undefined;
    const name = mnemonicName(instruction);
    if (PUSHES_FLAGS.has(instruction.mnemonic) || (privileged && !user)) return name;
    const missing = missingHostFeature(features);
    if (missing !== undefined) return `${name} (this processor has no ${missing})`;
    return makers?.differs === "end" && isAmdHost() ? `${name} (AMD: ${makers.name})` : undefined;
  }

  async load(image: MemoryImage, vcpu: Vcpu): Promise<void> {
    const bases = { fs: vcpu.fsBase, gs: vcpu.gsBase };
    const sameBases = bases.fs === this.bases.fs && bases.gs === this.bases.gs;
    if (!sameBases || this.process === undefined || this.image?.isLaidOutAs(image) !== true)
      await this.restart(image, bases);
    this.image = image;
    const copy = this.memory();
    if (image.copyTo(copy).length > 0) this.running.write(copy);
  }

  async follow(stretch: Stretch): Promise<Verdict> {
    const count = this.canFault(stretch.fault) ? stretch.count : stretch.count - 1;
    const faults = count < stretch.count ? [{ step: count, reason: OWN_THERE }] : [];
    if (count === 0) return { agreed: stretch.count, faults };
    const { running } = this;
    running.send(stepsOf(stretch, count));
    let verdict: Verdict = { agreed: stretch.count, faults };
    for (let n = 0; n < count; n++) {
      const left = await this.answer(stretch.ranges[n]!);
      if (left === undefined) return { agreed: Math.min(n, verdict.agreed), faults: [], lost: running.lost };
      const fields = verdict.deviation === undefined ? differingFields(stretch, n, left, USER_FLAGS) : [];
      if (fields.length > 0) {
        const memory = rangeDifferences(stretch.ranges[n]!, left.ranges);
        const deviation = { state: stateOf(left.words), stop: left.stop, fields, memory };
        verdict = { agreed: n, deviation, faults: [] };
      }
      // As the child decides it: whatever differs, it goes on as long as it comes to the next step.
      if (left.stop !== undefined || left.words[RIP] !== stretch.words[WORDS * (n + 1) + RIP]) break;
    }
    return verdict;
  }

  excuse(): undefined {}

  memory(): Uint8Array {
    return this.running.read();
  }

  /** Of the child, while there is one. */
  get pid(): number | undefined {
    return this.process?.pid;
  }

  close(): void {
    this.process?.close();
    this.process = undefined;
  }

  private get running(): HostProcess {
    return this.process ?? bug("the reference has no memory yet");
  }

  private async restart(image: MemoryImage, bases: Bases): Promise<void> {
    this.close();
    const high = image.runs.find(({ at }) => at < 0);
    if (high !== undefined) refuse("host-half", { address: hex(high.at) });
    for (const base of [bases.fs, bases.gs])
      if (base >= 1n << 47n) refuse("host-half", { address: `0x${base.toString(16)}` });
    const started = await HostProcess.start(image, bases);
    if (!(started instanceof HostProcess)) {
      const run = started.mapping === undefined ? undefined : image.runs[started.mapping];
      refuse("host-memory", { where: run === undefined ? "" : ` from ${hex(run.at)} on`, why: started.why });
    }
    this.process = started;
    this.bases = bases;
    this.own = ownRanges(started, image);
  }

  /** False if an access that faults here does not in the child. */
  private canFault(fault: Fault | undefined): boolean {
    if (fault?.vector !== "#PF") return true;
    const at = BigInt.asUintN(64, BigInt(fault.address));
    return !this.own.some(({ from, to }) => at + 15n >= from && at < to);
  }

  /** What the child says of its next step. */
  private async answer(ranges: readonly Range[]): Promise<Left | undefined> {
    const sizes = ranges.map(({ bytes }) => Math.ceil(bytes.length / 8));
    const extra = sizes.reduce((sum, size) => sum + size, 0);
    const answer = await this.running.receive(8 * (ANSWER_WORDS + extra));
    if (answer === undefined) return undefined;
    const words = new BigInt64Array(WORDS);
    stateOfAnswer(answer, words);
    let at = ANSWER_WORDS;
    const bytes = ranges.map((range, r) => {
      const found = new Uint8Array(answer.buffer, 8 * at, range.bytes.length);
      at += sizes[r]!;
      return found;
    });
    return { words, halves: new Int32Array(words.buffer), stop: stopOf(answer), ranges: bytes };
  }
}

/** The message that makes the child do the first `count` steps of `stretch`. */
function stepsOf(stretch: Stretch, count: number): BigInt64Array {
  const frame = new BigInt64Array(WORDS);
  frameOf(stretch.words.subarray(0, WORDS), frame);
  const message = [...frame];
  for (let n = 0; n < count; n++) {
    const ranges = stretch.ranges[n]!;
    const flags = (stretch.words[WORDS * n + RFLAGS]! & BigInt(USER_FLAGS)) | FIXED_FLAGS;
    message.push(BigInt(stretch.ip(n)), flags, BigInt(ranges.length));
    for (const { at, bytes } of ranges) message.push(BigInt(at), BigInt(bytes.length));
  }
  return BigInt64Array.from(message);
}

const NAMES = new Map(Object.entries(VECTOR).map(([name, vector]) => [vector as number, name]));

/** Undefined for a single step's trap: the instruction retired. */
function stopOf(answer: BigInt64Array): Stop | undefined {
  const vector = Number(answer[ANSWER.trap]);
  if (vector === SINGLE_STEP) return undefined;
  const name = NAMES.get(vector) ?? `vector ${vector}`;
  const code = Number(answer[ANSWER.error]);
  const vectors = [name as Fault["vector"]];
  if (name !== "#PF") return { text: name, vectors };
  const how = code & PAGE_FAULT.fetch ? "fetch" : code & PAGE_FAULT.write ? "write" : "read";
  const address = addr(answer[ANSWER.cr2]!);
  // Of the kernel's half, Linux says to every user that it is mapped.
  const present = address < 0 ? undefined : (code & PAGE_FAULT.present) !== 0;
  const text = `#PF: ${how} at ${hex(address)}`;
  return { text, vectors, access: [how], address, ...(present === undefined ? {} : { present }) };
}

/** Everything that the child has mapped but the program's memory. */
function ownRanges({ pid }: HostProcess, image: MemoryImage): { from: bigint; to: bigint }[] {
  const given = new Set(image.runs.map(({ at }) => BigInt(at)));
  return [...readFileSync(`/proc/${pid}/maps`, "latin1").matchAll(/^([0-9a-f]+)-([0-9a-f]+)/gm)]
    .map(([, from, to]) => ({ from: BigInt(`0x${from}`), to: BigInt(`0x${to}`) }))
    .filter(({ from }) => !given.has(from));
}
