// Decoded instructions as records in host memory, and the step functions that execute them.
//
// One step function per form of instruction, compiled when the form is first met, so that stepping over new
// code compiles nothing. Records are made for a straight run at a time, and dropped when their bytes change.

import type { Addr } from "../base/addr.ts";
import { ModuleBuilder } from "../wasm/module.ts";
import { type Instruction, MAX_LENGTH, type Operand } from "../x86/decode.ts";
import { emitStep, formOf } from "../x86/lift/stepEmitter.ts";
import { definitionOf } from "../x86/lift/table.ts";
import { emitTracedStep } from "../x86/lift/traceEmitter.ts";
import { RECORD, STATE } from "../x86/state.ts";
import { type Fetched, fetch } from "./code.ts";
import type { Host, HostAddress } from "./host.ts";
import type { Memory } from "./memory.ts";
import type { Slots } from "./slots.ts";
import { SLOT } from "./trunk.ts";

/** How many records there are at most; all are dropped when they run out. */
const CAPACITY = 16384;
/** How many are reserved at a time. */
const BLOCK = 256;
/** Instructions decoded ahead, at most, so that their forms are compiled in one module. */
const AHEAD = 24;

interface Decoded {
  readonly at: HostAddress;
  readonly length: number;
  /** Of those that TypeScript executes, or may. */
  readonly instruction: Instruction | undefined;
}

export class Interpreter {
  /** What step functions made from now on trace, as bits (TRACED); to be followed by `dropAll`. */
  traced = 0;
  private readonly host: Host;
  private readonly memory: Memory;
  private readonly slots: Slots;
  private readonly recording: () => boolean;
  private readonly dropped: (ip: Addr) => void;
  private readonly forms = new Map<string, number>();
  private readonly records = new Map<Addr, Decoded>();
  private readonly free: HostAddress[] = [];

  /** `dropped` is told of every address whose record is no longer valid. */
  constructor(
    host: Host,
    memory: Memory,
    slots: Slots,
    recording: () => boolean,
    dropped: (ip: Addr) => void,
  ) {
    this.host = host;
    this.memory = memory;
    this.slots = slots;
    this.recording = recording;
    this.dropped = dropped;
  }

  /** How many forms have a step function. */
  get formCount(): number {
    return this.forms.size;
  }

  /** How many instructions are decoded. */
  get recordCount(): number {
    return this.records.size;
  }

  /** The record of the instruction at `ip`, decoded now if need be; or why it cannot be fetched. */
  prepare(ip: Addr): HostAddress | (Fetched & { kind: "fault" }) {
    const known = this.records.get(ip);
    if (known !== undefined) return known.at;
    const first = fetch(this.memory, ip);
    if (first.kind === "fault") return first;
    if (this.records.size > CAPACITY - AHEAD) this.dropAll();
    // Any of the bytes may be what made it invalid.
    if (first.kind === "invalid") return this.enter(ip, MAX_LENGTH, SLOT.invalid, undefined);
    const run = [first.instruction];
    for (let last = first.instruction; run.length < AHEAD && definitionOf(last)?.role === "straight"; ) {
      if (this.records.has(last.next)) break;
      const next = fetch(this.memory, last.next);
      if (next.kind !== "instruction") break;
      last = next.instruction;
      run.push(last);
    }
    this.compileForms(run);
    for (const instruction of run)
      this.enter(instruction.ip, instruction.length, this.slotOf(instruction), instruction);
    return this.records.get(ip)!.at;
  }

  /** Makes of `RECORD.size` bytes at `at` the record of one instruction at `ip` that memory does not have. */
  prepareApart(at: HostAddress, ip: Addr, decoded: Fetched & { kind: "instruction" | "invalid" }): void {
    if (decoded.kind === "invalid") {
      this.put(at, ip, MAX_LENGTH, SLOT.invalid, undefined);
      return;
    }
    const { instruction } = decoded;
    this.compileForms([instruction]);
    this.put(at, ip, instruction.length, this.slotOf(instruction), instruction);
  }

  /** The decoded instruction at `ip`, if it is one that TypeScript executes and has a record. */
  instructionAt(ip: Addr): Instruction | undefined {
    return this.records.get(ip)?.instruction;
  }

  /** Forgets what was decoded from bytes of `[at, at + size)`. */
  invalidate(at: Addr, size: number): void {
    // An instruction that starts before may reach in.
    for (let ip = at - MAX_LENGTH + 1; ip < at + size; ip++) {
      const record = this.records.get(ip as Addr);
      if (record !== undefined && ip + record.length > at) this.drop(ip as Addr);
    }
  }

  /** Forgets every record; step functions stay. */
  dropAll(): void {
    for (const ip of [...this.records.keys()]) this.drop(ip);
  }

  private drop(ip: Addr): void {
    this.free.push(this.records.get(ip)!.at);
    this.records.delete(ip);
    this.dropped(ip);
  }

  private compileForms(run: readonly Instruction[]): void {
    const recording = this.recording();
    const module = new ModuleBuilder();
    module.importMemory("host", "memory", { minimum: 1 });
    const added: { form: string; name: string }[] = [];
    for (const instruction of run) {
      const form = this.formOf(instruction);
      const definition = definitionOf(instruction);
      if (definition === undefined || this.forms.has(form) || added.some((other) => other.form === form))
        continue;
      const name = `s${added.length}`;
      const step =
        this.traced === 0
          ? emitStep(instruction, definition.lift, recording)
          : emitTracedStep(instruction, definition.lift, recording, this.traced);
      module.function(step, name);
      added.push({ form, name });
    }
    if (added.length === 0) return;
    const compiled = new WebAssembly.Module(module.encode());
    const { exports } = new WebAssembly.Instance(compiled, { host: { memory: this.host.memory } });
    for (const { form, name } of added) {
      const slot = this.slots.reserve();
      this.slots.fill(slot, exports[name]!);
      this.forms.set(form, slot);
    }
  }

  private slotOf(instruction: Instruction): number {
    return definitionOf(instruction) ? this.forms.get(this.formOf(instruction))! : SLOT.unimplemented;
  }

  private formOf(instruction: Instruction): string {
    const form = formOf(instruction, this.recording());
    return this.traced === 0 ? form : `${form}/traced ${this.traced}`;
  }

  private enter(ip: Addr, length: number, slot: number, instruction: Instruction | undefined): HostAddress {
    if (this.free.length === 0) this.reserve();
    const at = this.free.pop()!;
    const alone = instruction !== undefined && definitionOf(instruction)?.role === "alone";
    this.records.set(ip, { at, length, instruction: alone ? instruction : undefined });
    this.put(at, ip, length, slot, instruction);
    return at;
  }

  private reserve(): void {
    const first = this.host.reserve(BLOCK * RECORD.size);
    for (let n = BLOCK - 1; n >= 0; n--) this.free.push(first + n * RECORD.size);
  }

  private put(
    at: HostAddress,
    ip: Addr,
    length: number,
    slot: number,
    instruction: Instruction | undefined,
  ): void {
    const { host } = this;
    host.i32[(at + RECORD.slot) >> 2] = slot;
    host.i32[(at + RECORD.length) >> 2] = length;
    host.setNumber(at + RECORD.ip, ip);
    if (instruction !== undefined) this.fill(at, instruction);
  }

  private fill(at: HostAddress, { next, operands, memory }: Instruction): void {
    const { host } = this;
    const setInt = (field: number, value: number) => {
      host.i32[(at + field) >> 2] = value;
    };
    host.setNumber(at + RECORD.next, next);
    operands.forEach((operand, n) => {
      this.fillOperand(at, operand, n);
    });
    if (memory === undefined) return;
    host.i64[(at + RECORD.displacement) >> 3] = memory.displacement;
    setInt(RECORD.base, memory.base === undefined ? STATE.zero : STATE.gpr + 8 * memory.base);
    setInt(RECORD.index, memory.index === undefined ? STATE.zero : STATE.gpr + 8 * memory.index);
    setInt(RECORD.shift, memory.shift);
    const segment =
      memory.segment === "fs" ? STATE.fsBase : memory.segment === "gs" ? STATE.gsBase : STATE.zero;
    setInt(RECORD.segment, segment);
  }

  private fillOperand(at: HostAddress, operand: Operand, n: number): void {
    const { host } = this;
    if (operand.kind === "register") {
      host.i32[(at + RECORD.operand + 4 * n) >> 2] = STATE.gpr + 8 * operand.reg + (operand.high ? 1 : 0);
    } else if (operand.kind === "immediate") {
      host.i64[(at + RECORD.immediate) >> 3] = BigInt.asIntN(64, operand.value);
    } else if (operand.kind === "target") {
      host.setNumber(at + RECORD.target, operand.at);
    }
  }
}
