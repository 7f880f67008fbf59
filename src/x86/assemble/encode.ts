// One instruction, all numbers known, to bytes: our own forms first, then Keystone, and each result checked.
//
// Where Keystone's encoding differs from GNU as's, it is brought to it here as far as that is one rewrite.

import { Mnemonic } from "iced-x86";
import { type Ask, checkEncoding, type Encoding } from "./check.ts";
import { fail } from "./fault.ts";
import { encodeForm } from "./forms.ts";
import type { KeystoneEncoder } from "./keystone.ts";
import { intelNames, NEEDS_SIZE, SUFFIXES } from "./mnemonic.ts";
import { isDefaultSegment, isHighByte, type MemoryOperand, type Operand, registerWidth } from "./operand.ts";

export class InstructionEncoder {
  private readonly keystone: KeystoneEncoder;
  private readonly known = new Map<string, Encoding>();

  constructor(keystone: KeystoneEncoder) {
    this.keystone = keystone;
  }

  /** The checked encoding of `ask`, which names no prefixes. Throws Fault. */
  encode(ask: Ask): Encoding {
    const text = showAsk(ask);
    const known = this.known.get(text);
    if (known) return known;
    refuseUnknown(ask);
    refuseUnsized(ask);
    refuseHighByte(ask);
    const respelt = respell(ask);
    const encoding = checkEncoding(respelt, encodeForm(respelt) ?? this.askKeystone(respelt));
    this.known.set(text, encoding);
    return encoding;
  }

  private askKeystone(ask: Ask): Uint8Array {
    const absolute = ask.operands.find((operand) => operand.kind === "memory" && isAbsolute(operand));
    if (!absolute || ask.mnemonic.startsWith("movabs"))
      return this.keystone.encode(showAsk(ask), ask.mnemonic);
    // Keystone makes absolute addresses rip-relative or eight bytes long: ask for rip and rewrite the ModRM byte.
    const operands = ask.operands.map((operand) =>
      operand === absolute ? { ...operand, base: "rip" } : operand,
    );
    const relative = { ...ask, operands };
    const { bytes, displacement } = checkEncoding(
      relative,
      this.keystone.encode(showAsk(relative), ask.mnemonic),
    );
    const modrm = displacement.offset - 1;
    const [before, after] = [bytes.subarray(0, modrm), bytes.subarray(displacement.offset)];
    return Uint8Array.from([...before, bytes[modrm]! - 1, SIB_ABSOLUTE, ...after]);
  }
}

/** No base, no index (Intel SDM vol. 2, table 2-3): in 64-bit code the only way to a plain address. */
const SIB_ABSOLUTE = 0x25;

function isAbsolute({ base, index }: MemoryOperand<bigint>): boolean {
  return base === null && index === null;
}

/** Canonical AT&T text; every number in hexadecimal, as Keystone reads no other. */
function showAsk({ mnemonic, operands }: Ask): string {
  return `${mnemonic} ${operands.map(showOperand).join(", ")}`;
}

function showOperand(operand: Operand<bigint>): string {
  if (operand.kind === "immediate") return `$${showNumber(operand.value)}`;
  const star = operand.indirect ? "*" : "";
  if (operand.kind === "register") return `${star}%${operand.name}`;
  const { segment, base, index, scale, displacement } = operand;
  const override = segment && !isDefaultSegment(segment, base) ? `%${segment}:` : "";
  const address = index ? `(${base ? `%${base}` : ""},%${index},${scale})` : base ? `(%${base})` : "";
  return `${star}${override}${displacement !== 0n || address === "" ? showNumber(displacement) : ""}${address}`;
}

function showNumber(value: bigint): string {
  return value < 0n ? `-0x${(-value).toString(16)}` : `0x${value.toString(16)}`;
}

/** The same instruction in the words that make Keystone choose GNU as's encoding. */
function respell(ask: Ask): Ask {
  const { mnemonic, operands } = ask;
  const [first, last] = [operands[0], operands.at(-1)];
  if (mnemonic === "int" && first?.kind === "immediate" && first.value === 3n)
    return { mnemonic: "int3", operands: [] };
  if (/^(enterq|verrw|verww)$/.test(mnemonic)) return { mnemonic: mnemonic.slice(0, -1), operands };
  // Keystone takes eight bytes for any number that `mov` moves to a 64-bit register.
  if (
    mnemonic === "mov" &&
    first?.kind === "immediate" &&
    last?.kind === "register" &&
    registerWidth(last.name) === 8
  )
    return first.value === BigInt.asIntN(32, first.value) ? { mnemonic: "movq", operands } : ask;
  // Selectors have 16 bits: as in GNU as the 32-bit form serves, but for storing 16 bits into a register.
  const segment = operands.findIndex((operand) => operand.kind === "register" && isSegment(operand.name));
  const other = operands[1 - segment];
  if (/^mov[wlq]?$/.test(mnemonic) && segment >= 0 && other) {
    const suffix = SUFFIXES[mnemonic.slice(3)];
    const width = other.kind === "register" ? registerWidth(other.name) : 2;
    if (suffix && width !== suffix) fail(`'${mnemonic}' does not fit its operands`);
    return {
      mnemonic: "mov",
      operands: operands.map((operand) => as32(operand, segment === 1 ? [2, 8] : [8])),
    };
  }
  if (
    mnemonic.startsWith("xchg") &&
    [first, last].every((operand) => operand?.kind === "register" && operand.name === "rax")
  )
    return { mnemonic: "nop", operands: [] };
  if (/^(sldt|str)$/.test(mnemonic))
    return { mnemonic, operands: operands.map((operand) => as32(operand, [8])) };
  if (/^(lar|lsl)$/.test(mnemonic) && first && last?.kind === "register" && registerWidth(last.name) === 4)
    return { mnemonic, operands: [as32(first, [2]), last] };
  return ask;
}

function isSegment(name: string): boolean {
  return /^[cdefgs]s$/.test(name);
}

/** A general register of one of these widths as its 32-bit part; anything else as it is. */
function as32(operand: Operand<bigint>, widths: readonly number[]): Operand<bigint> {
  if (operand.kind !== "register" || !widths.includes(registerWidth(operand.name) ?? 0)) return operand;
  const numbered = /^r\d+/.exec(operand.name)?.[0];
  return { ...operand, name: numbered ? `${numbered}d` : `e${operand.name.replace(/^r/, "")}` };
}

function refuseUnknown({ mnemonic }: Ask): void {
  for (const { name } of intelNames(mnemonic)) if (NAMES.has(name)) return;
  fail(`unknown mnemonic '${mnemonic}'`);
}

/** Every instruction's name that iced-x86 knows. */
const NAMES = new Set(Object.keys(Mnemonic).map((name) => name.toLowerCase()));

function refuseUnsized({ mnemonic, operands }: Ask): void {
  if (!NEEDS_SIZE.has(mnemonic) || !operands.some((operand) => operand.kind === "memory")) return;
  const counts = /^(sh|sa|ro|rc)[lr]$/.test(mnemonic); // a count in %cl says nothing of the size
  const sized =
    !/^mov[sz]x$/.test(mnemonic) &&
    operands.some((operand) => operand.kind === "register" && !(counts && operand.name === "cl"));
  if (!sized) fail(`'${mnemonic}' needs a size suffix here: b, w, l or q`);
}

/** Keystone exits the process over these. */
function refuseHighByte({ operands }: Ask): void {
  const registers = operands.flatMap((operand) => (operand.kind === "register" ? [operand.name] : []));
  const high = registers.find(isHighByte);
  if (!high) return;
  const address = operands.flatMap((operand) =>
    operand.kind === "memory" ? [operand.base ?? "", operand.index ?? ""] : [],
  );
  const extended =
    registers.find((name) => /^(spl|bpl|sil|dil)$|^r\d/.test(name) || registerWidth(name) === 8) ??
    address.find((name) => /^r\d/.test(name));
  if (extended) fail(`%${high} cannot stand beside %${extended}: no encoding has both`);
}
