// One random instruction, described.
//
// What was built is decoded again: everything said of it comes from the decoded bytes, so that prefixes
// put in front cannot make a description wrong. An attempt that cannot be encoded, decodes to something that is left
// out, or is not lifted in this form, is undefined: the caller tries again.

import {
  type Code,
  Decoder,
  DecoderOptions,
  FlowControl,
  Instruction,
  InstructionInfoFactory,
  MemorySizeExt,
  Mnemonic,
  OpAccess,
  OpKind,
  Register,
  RegisterExt,
} from "iced-x86";
import { addr } from "../../src/base/addr.ts";
import { decode } from "../../src/x86/decode.ts";
import { flagEffect, isShiftByCl } from "../../src/x86/flagEffect.ts";
import { definitionOf } from "../../src/x86/lift/table.ts";
import { CODE, FS_BASE, GS_BASE } from "../x86/cases-model.ts";
import type { Access, FuzzCode, TargetSource } from "./code.ts";
import type { Form } from "./forms.ts";
import { halves } from "./halves.ts";
import { build } from "./operands.ts";
import type { Random } from "./random.ts";

const scratch = new Instruction();
const factory = new InstructionInfoFactory();

const STRAIGHT = [FlowControl.Next, FlowControl.Interrupt, FlowControl.Exception];

export class InstructionMaker {
  private readonly codes: ReadonlySet<Code>;

  constructor(included: readonly Form[]) {
    this.codes = new Set(included.map(({ code }) => code));
  }

  /** One attempt at a random instruction of the form, to stand at `ip`. */
  make(random: Random, form: Form, ip: number = CODE): FuzzCode | undefined {
    const bytes = build(random, form, ip);
    return bytes === undefined ? undefined : this.describe(bytes, form, ip);
  }

  private describe(bytes: Uint8Array, form: Form, ip: number): FuzzCode | undefined {
    const decoder = new Decoder(64, bytes, DecoderOptions.None);
    decoder.ip = BigInt(ip);
    decoder.decodeOut(scratch);
    decoder.free();
    if (scratch.length !== bytes.length || !this.codes.has(scratch.code)) return undefined;
    if (scratch.mnemonic !== form.mnemonic) return undefined; // `--only` keeps its word
    // With 0x66 AMD's near branches are 16 bits wide, Intel's are not.
    if (!STRAIGHT.includes(scratch.flowControl) && bytes.subarray(0, -1).includes(0x66)) return undefined;
    const decoded = decode(bytes, addr(ip));
    if (decoded.kind !== "instruction" || definitionOf(decoded.instruction) === undefined) return undefined;
    return describe(bytes, decoded.instruction.addressSize);
  }
}

function describe(bytes: Uint8Array, addressSize: 4 | 8): FuzzCode | undefined {
  const { mnemonic } = scratch;
  const size = firstOperandSize();
  const countInCl = isShiftByCl(scratch);
  // A 64-bit store with a 0x66 too many, across two pages: silicon stores its first part before the second faults.
  if (mnemonic === Mnemonic.Movbe && size === 8 && bytes.subarray(0, 4).includes(0x66)) return undefined;
  const wideShift = mnemonic === Mnemonic.Shld || mnemonic === Mnemonic.Shrd;
  // For 16 bits, counts above 16 leave everything undefined (SDM vol. 2, SHLD).
  if (wideShift && size === 2 && !countInCl && (scratch.immediate8 & 31) > 16) return undefined;
  const scans = (mnemonic === Mnemonic.Bsf || mnemonic === Mnemonic.Bsr) && size === 4;
  const locked = scratch.hasLockPrefix || (mnemonic === Mnemonic.Xchg && scratch.memorySize !== 0);
  const repeated = scratch.isStringInstruction && (scratch.hasRepPrefix || scratch.hasRepnePrefix);
  return {
    bytes,
    count: 1,
    code: scratch.code,
    mnemonic,
    family: familyOf(),
    accesses: accessesOf(locked, repeated, addressSize),
    target: targetOf(),
    branches: !STRAIGHT.includes(scratch.flowControl),
    calls: scratch.flowControl === FlowControl.IndirectCall,
    repeated,
    size,
    countInCl,
    undefinedFlags: undefinedFlagsOf(countInCl),
    scanDestination: scans ? RegisterExt.number(scratch.op0Register) : -1,
  };
}

function firstOperandSize(): number {
  if (scratch.opCount === 0) return 0;
  const kind = scratch.op0Kind;
  if (kind === OpKind.Register) return RegisterExt.size(scratch.op0Register);
  return kind === OpKind.Memory ? MemorySizeExt.size(scratch.memorySize) : 0;
}

function familyOf(): string {
  const name = Mnemonic[scratch.mnemonic]!.toLowerCase();
  if (scratch.conditionCode === 0 || /^(loop|str|cmpxchg)/.test(name)) return name;
  return `${/^(cmov|set|j)/.exec(name)?.[0] ?? name}cc`;
}

function targetOf(): TargetSource {
  switch (scratch.flowControl) {
    case FlowControl.IndirectBranch:
    case FlowControl.IndirectCall:
      return scratch.op0Kind === OpKind.Register
        ? { register: RegisterExt.number(RegisterExt.fullRegister(scratch.op0Register)) }
        : "memory";
    case FlowControl.Return:
      return "stack";
    default:
      return "none";
  }
}

const BIT_TESTS = [Mnemonic.Bt, Mnemonic.Bts, Mnemonic.Btr, Mnemonic.Btc];
const READS = [OpAccess.Read, OpAccess.CondRead, OpAccess.ReadWrite, OpAccess.ReadCondWrite];
const WRITES = [OpAccess.Write, OpAccess.CondWrite, OpAccess.ReadWrite, OpAccess.ReadCondWrite];

function accessesOf(locked: boolean, repeated: boolean, addressSize: 4 | 8): Access[] {
  const info = factory.info(scratch);
  const accesses: Access[] = [];
  for (const used of info.usedMemory()) {
    const { base, index, segment, displacement, access } = used;
    const bitOffset =
      BIT_TESTS.includes(scratch.mnemonic) && scratch.op1Kind === OpKind.Register && scratch.op1Register;
    const registers = [base, index].filter((register) => register !== Register.None);
    // A bit offset can lead away from an address of 32 bits that no register is part of.
    const narrow =
      registers.some((register) => RegisterExt.size(register) === 4) ||
      (bitOffset !== false && addressSize === 4);
    accesses.push({
      base: base === Register.None ? -1 : RegisterExt.number(base),
      index: index === Register.None ? -1 : RegisterExt.number(index),
      byteIndex: index !== Register.None && RegisterExt.size(index) === 1,
      shift: Math.log2(used.scale),
      displacement: halves(displacement),
      segment: segment === Register.FS ? FS_BASE : segment === Register.GS ? GS_BASE : 0,
      narrow,
      // Repeated string instructions have no size of their own there.
      size: MemorySizeExt.size(used.memorySize) || MemorySizeExt.size(scratch.memorySize),
      read: READS.includes(access),
      write: WRITES.includes(access),
      bits: bitOffset ? RegisterExt.number(bitOffset) : -1,
      locked,
      repeated,
    });
    used.free();
  }
  info.free();
  return accesses;
}

/** Of the scratch instruction. */
function undefinedFlagsOf(countInCl: boolean): FuzzCode["undefinedFlags"] {
  if (!countInCl) {
    const flags = flagEffect(scratch, 0).undefined;
    return (_, fault) => (fault === undefined ? flags : 0);
  }
  const byCount = Int32Array.from({ length: 64 }, (_, count) => flagEffect(scratch, count).undefined);
  return (cl, fault) => (fault === undefined ? byCount[cl & 63]! : 0);
}
