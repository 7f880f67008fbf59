// What a trace must say, from stepping an untraced machine: addresses by iced-x86's account of what each instruction
// uses and the registers before it, values from memory before and after.

import {
  Decoder,
  DecoderOptions,
  FlowControl,
  InstructionInfoFactory,
  MemorySizeExt,
  Mnemonic,
  OpAccess,
  Register,
} from "iced-x86";
import { type Addr, addr, toWord } from "../../src/base/addr.ts";
import type { Machine } from "../../src/machine/machine.ts";
import type { TraceEvent } from "../../src/machine/trace.ts";
import type { Vcpu } from "../../src/machine/vcpu.ts";
import { GPR } from "../../src/x86/register.ts";

/** Bytes by address. */
type Bytes = ReadonlyMap<number, number>;

export interface Expected {
  readonly ip: Addr;
  readonly length: number;
  readonly reads: Bytes;
  readonly writes: Bytes;
  /** How many bytes its accesses have in all. */
  readonly accessed: number;
  readonly flow: "none" | "branch" | "call" | "return";
  /** Where it went, and rsp before and after. */
  readonly to: Addr;
  readonly before: Addr;
  readonly after: Addr;
  /** Of a conditional branch whose target is not the next instruction. */
  readonly taken: boolean | undefined;
}

const factory = new InstructionInfoFactory();
const READS = [OpAccess.Read, OpAccess.ReadWrite, OpAccess.ReadCondWrite, OpAccess.CondRead];
const WRITES = [OpAccess.Write, OpAccess.ReadWrite, OpAccess.ReadCondWrite, OpAccess.CondWrite];

interface Use {
  readonly address: Addr;
  readonly size: number;
  readonly access: OpAccess;
}

/** Steps `vcpu` once, and says what a trace has to say of it; undefined if no instruction retired. */
export function stepExpecting(machine: Machine, vcpu: Vcpu): Expected | undefined {
  const { rip, rsp, instructions } = vcpu;
  const bytes = machine.memory.read(rip, 15);
  const decoder = new Decoder(64, bytes, DecoderOptions.None);
  decoder.ip = toWord(rip);
  const instruction = decoder.decode();
  const { length } = instruction;
  const flowControl = instruction.mnemonic === Mnemonic.Vmcall ? FlowControl.Next : instruction.flowControl;
  const target = instruction.nearBranchTarget;
  const next = instruction.nextIP;
  const repeated = instruction.hasRepPrefix || instruction.hasRepnePrefix;
  const string = repeated && instruction.isStringInstruction;
  const uses =
    string && vcpu.get("rcx") === 0n ? [] : usesOf(vcpu, string ? bytes.subarray(1) : bytes, rip, string);
  for (const object of [instruction, decoder]) object.free();

  const reads = bytesOf(machine, uses, READS);
  vcpu.step();
  if (vcpu.instructions === instructions) return undefined;
  const writes = bytesOf(machine, uses, WRITES);
  const sizes = uses.map(
    ({ size, access }) => size * (Number(READS.includes(access)) + Number(WRITES.includes(access))),
  );
  const conditional = flowControl === FlowControl.ConditionalBranch && target !== next;
  return {
    ip: rip,
    length,
    reads,
    writes,
    accessed: sizes.reduce((sum, size) => sum + size, 0),
    flow: FLOWS.get(flowControl) ?? "none",
    to: vcpu.rip,
    before: rsp,
    after: vcpu.rsp,
    taken: conditional ? toWord(vcpu.rip) === target : undefined,
  };
}

const FLOWS = new Map<FlowControl, Expected["flow"]>([
  [FlowControl.ConditionalBranch, "branch"],
  [FlowControl.UnconditionalBranch, "branch"],
  [FlowControl.IndirectBranch, "branch"],
  [FlowControl.Call, "call"],
  [FlowControl.IndirectCall, "call"],
  [FlowControl.Return, "return"],
]);

/** Accesses by the registers as they are. An iteration of a repeated instruction is what it is without the prefix. */
function usesOf(vcpu: Vcpu, bytes: Uint8Array, ip: Addr, iteration: boolean): Use[] {
  const decoder = new Decoder(64, bytes, DecoderOptions.None);
  decoder.ip = toWord(ip) + (iteration ? 1n : 0n);
  const instruction = decoder.decode();
  const info = factory.info(instruction);
  const uses = info.usedMemory().flatMap((used): Use[] => {
    const { base, index, scale, displacement, segment, access } = used;
    const size = MemorySizeExt.size(used.memorySize);
    let address = displacement + BigInt(scale) * registerValue(vcpu, index) + registerValue(vcpu, base);
    if (segment === Register.GS) address += vcpu.gsBase;
    used.free();
    return access === OpAccess.NoMemAccess
      ? []
      : [{ address: addr(BigInt.asIntN(64, address)), size, access }];
  });
  for (const object of [info, instruction, decoder]) object.free();
  return uses;
}

function registerValue(vcpu: Vcpu, register: Register): bigint {
  if (register === Register.None) return 0n;
  if (register === Register.AL) return vcpu.get("rax") & 0xffn; // xlat
  return vcpu.get(GPR[register - Register.RAX]!);
}

function bytesOf(machine: Machine, uses: readonly Use[], kinds: readonly OpAccess[]): Bytes {
  const bytes = new Map<number, number>();
  for (const { address, size, access } of uses) {
    if (!kinds.includes(access)) continue;
    for (const [n, byte] of machine.memory.read(address, size).entries()) bytes.set(address + n, byte);
  }
  return bytes;
}

/** The bytes of the reads, or of the writes, among `events`; of several to one place the last. */
export function tracedBytes(events: readonly TraceEvent[], kind: "read" | "write"): Map<number, number> {
  const bytes = new Map<number, number>();
  for (const event of events) {
    if (event.kind !== kind) continue;
    for (let n = 0; n < event.size; n++)
      bytes.set(event.address + n, Number((event.value >> BigInt(8 * n)) & 0xffn));
  }
  return bytes;
}

/** Does the traced writes again, in order. */
export function replay(machine: Machine, events: Iterable<TraceEvent>): void {
  for (const event of events) {
    if (event.kind !== "write") continue;
    const bytes = Uint8Array.from({ length: event.size }, (_, n) =>
      Number((event.value >> BigInt(8 * n)) & 0xffn),
    );
    machine.memory.write(event.address, bytes);
  }
}

/** The events of each instruction, which begin with its own; and what comes before the first. */
export function byInstruction(events: Iterable<TraceEvent>): TraceEvent[][] {
  const groups: TraceEvent[][] = [];
  for (const event of events) {
    if (event.kind === "instruction" || event.kind === "delivery" || groups.length === 0) groups.push([]);
    groups.at(-1)!.push(event);
  }
  return groups;
}
