// Where AMD's processors do otherwise than Intel's manual, which the engine follows: what an AMD host cannot judge.
//
// Each entry was measured on a host of each maker. Nothing else may differ: a fuzzer's difference that no entry covers
// is one.

import { readFileSync } from "node:fs";
import {
  Decoder,
  DecoderOptions,
  FlowControl,
  type Instruction,
  MemorySizeExt,
  Mnemonic,
  OpKind,
} from "iced-x86";

export interface MakersDifference {
  readonly name: string;
  readonly intel: string;
  readonly amd: string;
  /** What differs: the status flags when it faults, or how it ends and all that follows from that. */
  readonly differs: "flags of a fault" | "end";
  readonly concerns: (instruction: Instruction, bytes: Uint8Array) => boolean;
  /** A case (test/cases/README.md) as Intel's manual has it. */
  readonly example: string;
}

const BRANCHES = [FlowControl.UnconditionalBranch, FlowControl.ConditionalBranch, FlowControl.Call];
const INDIRECT = [FlowControl.IndirectBranch, FlowControl.IndirectCall, FlowControl.Return];
const COMPARISONS = [
  ...[Mnemonic.Cmpsb, Mnemonic.Cmpsw, Mnemonic.Cmpsd, Mnemonic.Cmpsq],
  ...[Mnemonic.Scasb, Mnemonic.Scasw, Mnemonic.Scasd, Mnemonic.Scasq],
];

export const MAKERS_DIFFERENCES: readonly MakersDifference[] = [
  {
    name: "near branches with an operand-size prefix",
    intel: "the prefix is ignored (SDM vol. 2, JMP, CALL, RET, Jcc)",
    amd: "rip is cut to 16 bits, and a return address has 2 bytes (APM vol. 3, Near Branches in 64-Bit Mode)",
    differs: "end",
    concerns: ({ flowControl }, bytes) =>
      [...BRANCHES, ...INDIRECT].includes(flowControl) && hasPrefix(bytes, 0x66),
    example: "66 eb 20 | jmp .+0x23 | => rip=+0x23",
  },
  {
    name: "loope and loopne with the other's prefix",
    intel: "the prefix is ignored",
    amd: "f3 makes a loope of loopne, f2 a loopne of loope",
    differs: "end",
    concerns: ({ mnemonic }, bytes) =>
      (mnemonic === Mnemonic.Loopne && hasPrefix(bytes, 0xf3)) ||
      (mnemonic === Mnemonic.Loope && hasPrefix(bytes, 0xf2)),
    example: "f3 e0 20 | loopne .+0x23 | rcx=2 zf=1 => rcx=1",
  },
  {
    name: "0f 0d with a register",
    intel: "a reserved no-op (SDM vol. 2, table A-3)",
    amd: "#UD (APM vol. 3, PREFETCH)",
    differs: "end",
    concerns: ({ op0Kind, opCount }, bytes) =>
      opCount > 0 && op0Kind === OpKind.Register && opcodeOf(bytes) === "0f0d",
    example: "0f 0d c0 | .byte 0x0f, 0x0d, 0xc0 | =>",
  },
  {
    name: "movsxd into 16 bits, from memory",
    intel: "reads 2 bytes (SDM vol. 2, MOVSXD)",
    amd: "reads 4 bytes",
    differs: "end",
    concerns: ({ mnemonic, op1Kind, memorySize }) =>
      mnemonic === Mnemonic.Movsxd && op1Kind === OpKind.Memory && MemorySizeExt.size(memorySize) === 2,
    example: "66 63 06 | movsxd (%rsi),%ax | rsi=data+0x1ffe rax=0 [data+0x1ffe]=0x1234:2 => rax=0x1234",
  },
  {
    name: "repeated cmps and scas that fault",
    intel: "the flags are those of before the instruction (SDM vol. 2, REP)",
    amd: "the flags are those of the last comparison that was completed",
    differs: "flags of a fault",
    concerns: ({ mnemonic, hasRepPrefix, hasRepnePrefix }) =>
      COMPARISONS.includes(mnemonic) && (hasRepPrefix || hasRepnePrefix),
    example:
      "f2 ae | repne scasb | rdi=data+0x1ffe rcx=9 cf=1 zf=1 => rcx=7 rdi=data+0x2000 fault=#PF(data+0x2000,read)",
  },
];

/** The entry that concerns the instruction at the beginning of `bytes`, if one does. */
export function makersDifference(bytes: Uint8Array): MakersDifference | undefined {
  const decoder = new Decoder(64, bytes, DecoderOptions.None);
  const instruction = decoder.decode();
  const own = bytes.subarray(0, instruction.length);
  const found = MAKERS_DIFFERENCES.find(({ concerns }) => concerns(instruction, own));
  instruction.free();
  decoder.free();
  return found;
}

let vendor: string | undefined;

/** Whether this host does as `MAKERS_DIFFERENCES` says of AMD. Linux only. */
export function isAmdHost(): boolean {
  vendor ??= /^vendor_id\s*:\s*(\S+)/m.exec(readFileSync("/proc/cpuinfo", "latin1"))?.[1] ?? "";
  return vendor === "AuthenticAMD" || vendor === "HygonGenuine";
}

const LEGACY = [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf0, 0xf2, 0xf3];

function prefixesOf(bytes: Uint8Array): Uint8Array {
  const end = bytes.findIndex((byte) => !LEGACY.includes(byte));
  return bytes.subarray(0, end);
}

/** Whether `prefix` is among the legacy prefixes of an instruction. */
export function hasPrefix(bytes: Uint8Array, prefix: number): boolean {
  return prefixesOf(bytes).includes(prefix);
}

/** Two bytes in hexadecimal, behind all prefixes. */
function opcodeOf(bytes: Uint8Array): string {
  let at = prefixesOf(bytes).length;
  if (bytes[at]! >> 4 === 4) at++; // REX
  return Buffer.from(bytes.subarray(at, at + 2)).toString("hex");
}
