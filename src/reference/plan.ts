// What is known of an instruction before it is executed: what it writes, which flags it leaves undefined, whether
// anybody but this engine can be asked about it. From iced-x86's tables, not from what this engine makes of it.

import {
  type CpuidFeature,
  Decoder,
  DecoderOptions,
  Instruction as IcedInstruction,
  InstructionInfoFactory,
  MemorySizeExt,
  OpAccess,
  OpKind,
  Register,
  RegisterExt,
  type UsedMemory,
} from "iced-x86";
import { type Addr, isCanonical, offset, PAGE_SIZE, pageOf } from "../base/addr.ts";
import { sameBytes } from "../base/bytes.ts";
import { fetch } from "../machine/code.ts";
import type { Machine } from "../machine/machine.ts";
import { type Instruction, Mnemonic, mnemonicName, type Operand, printInstruction } from "../x86/decode.ts";
import { flagEffect, isShiftByCl } from "../x86/flagEffect.ts";
import { leaveToSystem } from "../x86/lift/system.ts";
import { definitionOf } from "../x86/lift/table.ts";
import { type Gpr, RCX } from "../x86/register.ts";
import { type MakersDifference, makersDifference } from "./makers.ts";

export interface Plan {
  readonly ip: Addr;
  readonly bytes: Uint8Array;
  /** As iced-x86 prints it. */
  readonly text: string;
  /** Undefined where there is none. */
  readonly instruction: Instruction | undefined;
  /** It can be fetched, but it is none. */
  readonly invalid: boolean;
  /** What the manual says it may write. */
  readonly writes: readonly Write[];
  /** Flags that the manual leaves undefined, by the low six bits of %cl; one for all if that does not matter. */
  readonly undefinedFlags: readonly number[];
  /** A repeated string instruction: each iteration is a step. */
  readonly repeats: boolean;
  /** Only the kernel may execute it; or, as cli may, it depends on more than the privilege level. */
  readonly privileged: boolean;
  readonly features: readonly CpuidFeature[];
  /** What processors of different makers do with it. */
  readonly makers: MakersDifference | undefined;
  /** Why nobody else is asked about it, whoever they are; undefined if somebody may be. */
  readonly aside: string | undefined;
}

/** A memory operand that is written, named or not. */
export interface Write {
  readonly base: Gpr | undefined;
  readonly index: Gpr | undefined;
  readonly scale: number;
  readonly displacement: bigint;
  readonly segment: "fs" | "gs" | undefined;
  /** Of the address before the segment's base is added, in bits. */
  readonly addressBits: 32 | 64;
  /** In bytes. */
  readonly size: number;
  /** The register with the bit offset of bts and its kin, which leads away from the operand. */
  readonly bits: Gpr | undefined;
}

/** The plans of a machine's instructions, remembered for as long as their bytes stay. */
export class Plans {
  private readonly machine: Machine;
  private readonly known = new Map<Addr, Plan>();

  constructor(machine: Machine) {
    this.machine = machine;
  }

  at(ip: Addr): Plan {
    const known = this.known.get(ip);
    if (known !== undefined && this.isUnchanged(known)) return known;
    const fetched = fetch(this.machine.memory, ip);
    if (fetched.kind !== "instruction") return nothing(ip, fetched.kind === "invalid");
    const bytes = this.machine.memory.read(ip, fetched.instruction.length);
    const plan = planOf(fetched.instruction, bytes);
    this.known.set(ip, plan);
    return plan;
  }

  private isUnchanged({ ip, bytes }: Plan): boolean {
    const { memory, host } = this.machine;
    const page = memory.find(ip);
    if (page?.access.execute !== true) return false;
    const within = ip - pageOf(ip);
    if (within + bytes.length > PAGE_SIZE) {
      const second = memory.find(offset(ip, bytes.length - 1));
      return second?.access.execute === true && sameBytes(memory.read(ip, bytes.length), bytes);
    }
    const from = page.frame.at + within;
    for (let n = 0; n < bytes.length; n++) if (host.u8[from + n] !== bytes[n]) return false;
    return true;
  }
}

/** What stops the machine with a value of ours. */
const OWN: ReadonlySet<Mnemonic> = new Set([Mnemonic.Vmcall, Mnemonic.Hlt]);

function asideOf(instruction: Instruction): string | undefined {
  const name = mnemonicName(instruction);
  const definition = definitionOf(instruction);
  if (definition !== undefined && definition.lift !== leaveToSystem)
    return OWN.has(instruction.mnemonic) ? name : undefined;
  const system = instruction.operands.find(({ kind }) => SYSTEM_OPERANDS.has(kind));
  return system === undefined ? name : `${name} of a ${system.kind} register`;
}

const SYSTEM_OPERANDS: ReadonlySet<Operand["kind"]> = new Set(["segment", "control", "debug"]);

/**
 * The instruction's name if the manual leaves its result undefined, with `cl` in %cl: words shifted by more than their
 * bits, and swapped words (SDM vol. 2, SHLD, SHRD, BSWAP).
 */
export function undefinedResult({ instruction }: Plan, cl: number): string | undefined {
  const mnemonic = instruction?.mnemonic;
  if (mnemonic !== Mnemonic.Bswap && mnemonic !== Mnemonic.Shld && mnemonic !== Mnemonic.Shrd)
    return undefined;
  const [first, second, count] = instruction!.operands;
  const word = [first, second].some((operand) => operand?.kind === "register" && operand.size === 2);
  const shifted = (count?.kind === "immediate" ? Number(count.value) : cl) & 31;
  return word && (mnemonic === Mnemonic.Bswap || shifted > 16)
    ? `${mnemonicName(instruction!)} with an undefined result`
    : undefined;
}

/** Nothing can be fetched there, or what can is no instruction: to execute it is a fault. */
function nothing(ip: Addr, invalid: boolean): Plan {
  return {
    ip,
    bytes: new Uint8Array(),
    text: invalid ? "(bad)" : "(not to be fetched)",
    instruction: undefined,
    invalid,
    writes: [],
    undefinedFlags: [0],
    repeats: false,
    privileged: false,
    features: [],
    makers: undefined,
    aside: undefined,
  };
}

/** Whether it may be executed depends on more than the privilege level, or it goes out of this world. */
const SENSITIVE: ReadonlySet<Mnemonic> = new Set([Mnemonic.Cli, Mnemonic.Sti, Mnemonic.In, Mnemonic.Out]);
const COUNTS = Array.from({ length: 64 }, (_, count) => count);

/** The plan of an instruction that was made of `bytes`. */
export function planOf(instruction: Instruction, bytes: Uint8Array): Plan {
  const { ip, mnemonic } = instruction;
  const iced = new IcedInstruction();
  const decoder = new Decoder(64, bytes, DecoderOptions.None);
  decoder.ip = BigInt.asUintN(64, BigInt(ip));
  decoder.decodeOut(iced);
  const counts = isShiftByCl(iced) ? COUNTS : [0];
  const undefinedFlags = counts.map((count) => flagEffect(iced, count).undefined);
  const privileged = iced.isPrivileged || SENSITIVE.has(mnemonic);
  const features = [...iced.cpuidFeatures()];
  const writes = writesOf(iced);
  decoder.free();
  iced.free();
  const repeats =
    instruction.repeat !== undefined && instruction.operands.some(({ kind }) => kind === "string");
  const text = printInstruction(bytes, ip);
  const makers = makersDifference(bytes);
  const aside = asideOf(instruction);
  return {
    ip,
    bytes,
    text,
    instruction,
    invalid: false,
    writes,
    undefinedFlags,
    repeats,
    privileged,
    features,
    makers,
    aside,
  };
}

const WRITES: ReadonlySet<OpAccess> = new Set([
  ...[OpAccess.Write, OpAccess.CondWrite, OpAccess.ReadWrite, OpAccess.ReadCondWrite],
]);

function writesOf(iced: IcedInstruction): Write[] {
  // Of a repeated one, iced leaves the size open; here it is one iteration.
  iced.hasRepPrefix = false;
  iced.hasRepnePrefix = false;
  const factory = new InstructionInfoFactory();
  const info = factory.info(iced);
  const bits = bitOffset(iced);
  const writes = info.usedMemory().flatMap((used) => {
    const write = WRITES.has(used.access) ? [writeOf(used, bits)] : [];
    used.free();
    return write;
  });
  info.free();
  factory.free();
  return writes;
}

function writeOf(used: UsedMemory, bits: Gpr | undefined): Write {
  const gpr = (register: Register) =>
    register === Register.None ? undefined : RegisterExt.number(RegisterExt.fullRegister(register));
  const narrow = [used.base, used.index].some(
    (register) => register !== Register.None && RegisterExt.size(register) === 4,
  );
  return {
    base: gpr(used.base),
    index: gpr(used.index),
    scale: used.scale,
    displacement: BigInt.asIntN(64, used.displacement),
    segment: used.segment === Register.FS ? "fs" : used.segment === Register.GS ? "gs" : undefined,
    addressBits: narrow ? 32 : 64,
    size: MemorySizeExt.size(used.memorySize),
    bits,
  };
}

function bitOffset(iced: IcedInstruction): Gpr | undefined {
  const { mnemonic } = iced;
  if (mnemonic !== Mnemonic.Bts && mnemonic !== Mnemonic.Btr && mnemonic !== Mnemonic.Btc) return undefined;
  if (iced.op0Kind !== OpKind.Memory || iced.op1Kind !== OpKind.Register) return undefined;
  return RegisterExt.number(RegisterExt.fullRegister(iced.op1Register));
}

/** Where a write goes, with the registers as they are before; undefined if that is not canonical. */
export function addressOf(
  write: Write,
  registers: BigInt64Array,
  from: number,
  bases: { readonly fsBase: bigint; readonly gsBase: bigint },
): Addr | undefined {
  const { base, index, scale, displacement, segment, addressBits, size, bits } = write;
  let sum = displacement;
  if (base !== undefined) sum += registers[from + base]!;
  if (index !== undefined) sum += registers[from + index]! * BigInt(scale);
  // Whole operands further, as far as the bit offset says (SDM vol. 1, 4.6.1; vol. 2, 3.1.1.9).
  if (bits !== undefined)
    sum += (BigInt.asIntN(8 * size, registers[from + bits]!) >> BigInt(Math.log2(8 * size))) * BigInt(size);
  sum = BigInt.asUintN(addressBits, sum);
  if (segment !== undefined) sum += segment === "fs" ? bases.fsBase : bases.gsBase;
  const linear = BigInt.asIntN(64, sum);
  return isCanonical(linear) ? (Number(linear) as Addr) : undefined;
}

/** The flags that the manual leaves undefined after `plan`, with the registers as they are before. */
export function undefinedFlagsOf({ undefinedFlags }: Plan, registers: BigInt64Array, from: number): number {
  return undefinedFlags.length === 1
    ? undefinedFlags[0]!
    : undefinedFlags[Number(registers[from + RCX]! & 63n)]!;
}
