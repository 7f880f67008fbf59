// Control and debug registers, segment bases, the access-control flag.

import { isCanonical } from "../../base/addr.ts";
import { CR0, CR4, FLAG, POPF_SYSTEM_FLAGS, RSP, STATUS_FLAGS } from "../../x86/register.ts";
import { type Execute, type Execution, GENERAL_PROTECTION, INVALID_OPCODE, kernel } from "./execution.ts";
import { DR6_FIXED, DR7_FIXED, isFault, type StateWord } from "./processor.ts";
import { moveSegment } from "./segment.ts";

const moveControl: Execute = kernel((x) => {
  const { cpu } = x;
  const names: Readonly<Record<number, StateWord>> = { 0: "cr0", 2: "cr2", 3: "cr3", 4: "cr4", 8: "cr8" };
  const toControl = x.instruction.operands[0]?.kind === "control";
  const word = names[x.number(toControl ? 0 : 1)];
  if (word === undefined) return INVALID_OPCODE;
  if (!toControl) return x.write(0, cpu.getWord(word), 8);
  const value = x.read(1, 8);
  if (isFault(value)) return value;
  // 64-bit code cannot turn paging or protection off.
  const kept = CR0.PG | CR0.PE;
  if (word === "cr0" && (value >> 32n !== 0n || (value & kept) !== kept)) return GENERAL_PROTECTION;
  if ((word === "cr8" && value > 15n) || (word === "cr4" && value >> 32n !== 0n)) return GENERAL_PROTECTION;
  cpu.setWord(word, value);
  return undefined;
});

/** Bits of dr6 and dr7 that can be written; the others are fixed (SDM vol. 3, 17.2). */
const WRITABLE = new Map([
  [6, 0xe00fn],
  [7, 0xffff23ffn],
]);
const GENERAL_DETECT = 1n << 13n;

/** dr4 and dr5 are other names of dr6 and dr7, unless debug extensions are on. */
const moveDebug: Execute = kernel((x) => {
  const toDebug = x.instruction.operands[0]?.kind === "debug";
  const number = x.number(toDebug ? 0 : 1);
  const alias = number === 4 || number === 5;
  if (number > 7 || (alias && (x.cpu.getWord("cr4") & CR4.DE) !== 0n)) return INVALID_OPCODE;
  const register = alias ? number + 2 : number;
  if ((x.cpu.getWord("dr", 7) & GENERAL_DETECT) !== 0n) {
    x.cpu.setWord("dr", x.cpu.getWord("dr", 6) | GENERAL_DETECT, 6);
    return { vector: "#DB", trap: false };
  }
  if (!toDebug) return x.write(0, x.cpu.getWord("dr", register), 8);
  const value = x.read(1, 8);
  if (isFault(value)) return value;
  if (register >= 6 && value >> 32n !== 0n) return GENERAL_PROTECTION;
  const fixed = register === 6 ? DR6_FIXED : register === 7 ? DR7_FIXED : 0n;
  x.cpu.setWord("dr", (value & (WRITABLE.get(register) ?? -1n)) | fixed, register);
  return undefined;
});

export const move: Execute = (x) => {
  const kinds = x.instruction.operands.map(({ kind }) => kind);
  if (kinds.includes("control")) return moveControl(x);
  if (kinds.includes("debug")) return moveDebug(x);
  return moveSegment(x);
};

export function readBase(word: StateWord): Execute {
  return (x) => {
    if ((x.cpu.getWord("cr4") & CR4.FSGSBASE) === 0n) return INVALID_OPCODE;
    return x.write(0, x.cpu.getWord(word), 8);
  };
}

export function writeBase(word: StateWord): Execute {
  return (x) => {
    if ((x.cpu.getWord("cr4") & CR4.FSGSBASE) === 0n) return INVALID_OPCODE;
    const value = x.read(0, x.size(0));
    if (isFault(value)) return value;
    if (!isCanonical(value)) return GENERAL_PROTECTION;
    x.cpu.setWord(word, value);
    return undefined;
  };
}

export function accessFlag(on: boolean): Execute {
  return (x) => {
    if (x.user) return INVALID_OPCODE;
    x.setFlag(FLAG.AC, on);
    return undefined;
  };
}

// ---- The interrupt flag, where it is more than a bit to change.

/** True where IF may be changed: at or above the level that IOPL names. */
function mayChangeInterruptFlag(x: Execution): boolean {
  return !x.user || (x.cpu.rflags & FLAG.IOPL) === FLAG.IOPL;
}

export const clearInterruptFlag: Execute = (x) => {
  if (!mayChangeInterruptFlag(x)) return GENERAL_PROTECTION;
  x.setFlag(FLAG.IF, false);
  return undefined;
};

export const setInterruptFlag: Execute = (x) => {
  if (!mayChangeInterruptFlag(x)) return GENERAL_PROTECTION;
  if ((x.cpu.rflags & FLAG.IF) === 0n) x.cpu.setWord("shadow", BigInt.asUintN(64, BigInt(x.next)));
  x.setFlag(FLAG.IF, true);
  return undefined;
};

/** popf of 64 and 16 bits. Outside the kernel IOPL stays, and IF as IOPL says. */
export function popFlags(size: 2 | 8): Execute {
  return (x) => {
    const { cpu } = x;
    const at = BigInt.asIntN(64, cpu.getRegister(RSP));
    const image = cpu.readLinear(at, size, x.user);
    if (isFault(image)) return image.vector === "#GP" ? { vector: "#SS", errorCode: 0 } : image;
    let changed = STATUS_FLAGS | POPF_SYSTEM_FLAGS;
    if (x.user) changed &= ~FLAG.IOPL;
    if (!mayChangeInterruptFlag(x)) changed &= ~FLAG.IF;
    if (size === 2) changed &= 0xffffn;
    cpu.rflags = (cpu.rflags & ~(changed | FLAG.RF)) | (image & changed);
    cpu.setRegister(RSP, BigInt.asUintN(64, cpu.getRegister(RSP) + BigInt(size)));
    return undefined;
  };
}
