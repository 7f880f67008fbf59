// Model-specific registers, by the numbers that rdmsr and wrmsr take (SDM vol. 4).

import { isCanonical } from "../../base/addr.ts";
import { EFER } from "../../x86/register.ts";
import type { Fault } from "../exit.ts";
import type { Processor, StateWord } from "./processor.ts";

interface Msr {
  readonly word: StateWord;
  /** An address, which must be canonical to be written. */
  readonly address?: boolean;
  /** Bits that may be set. */
  readonly mask?: bigint;
}

const MSRS = new Map<number, Msr>([
  [0x174, { word: "sysenterCs" }],
  [0x175, { word: "sysenterEsp", address: true }],
  [0x176, { word: "sysenterEip", address: true }],
  [0xc0000080, { word: "efer", mask: EFER.SCE | EFER.LME | EFER.LMA | EFER.NXE }],
  [0xc0000081, { word: "star" }],
  [0xc0000082, { word: "lstar", address: true }],
  [0xc0000083, { word: "cstar", address: true }],
  [0xc0000084, { word: "fmask", mask: 0xffffffffn }],
  [0xc0000100, { word: "fsBase", address: true }],
  [0xc0000101, { word: "gsBase", address: true }],
  [0xc0000102, { word: "kernelGsBase", address: true }],
  [0xc0000103, { word: "tscAux", mask: 0xffffffffn }],
]);

const TIME_STAMP_COUNTER = 0x10;
const GENERAL_PROTECTION: Fault = { vector: "#GP", errorCode: 0 };

export function readMsr(cpu: Processor, number: number, time: bigint): bigint | Fault {
  if (number === TIME_STAMP_COUNTER) return time;
  const msr = MSRS.get(number);
  return msr === undefined ? GENERAL_PROTECTION : cpu.getWord(msr.word);
}

export function writeMsr(cpu: Processor, number: number, value: bigint): Fault | undefined {
  const msr = MSRS.get(number);
  if (msr === undefined) return GENERAL_PROTECTION;
  if (msr.address && !isCanonical(value)) return GENERAL_PROTECTION;
  if (msr.mask !== undefined && (value & ~msr.mask) !== 0n) return GENERAL_PROTECTION;
  if (msr.word === "efer") {
    // Long mode cannot be left while paging is on, and that it is active is not for software to say.
    if ((value & EFER.LME) === 0n) return GENERAL_PROTECTION;
    cpu.setWord("efer", value | EFER.LMA);
  } else cpu.setWord(msr.word, value);
  return undefined;
}
