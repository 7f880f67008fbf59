// Machine code to AT&T listings: Capstone's text, iced-x86's lengths and addresses.
//
// iced-x86 is what the engine decodes with, so its lengths rule; where Capstone sees something else the line
// says so after a `#`. Refuses nothing: bytes that neither decodes are `(bad)`, one line each.

import type { Capstone, CapstoneInstruction } from "@alexaltea/capstone-js";
import { Decoder, Formatter, FormatterSyntax, type Instruction, OpKind } from "iced-x86";
import { type Addr, addr, hex, isCanonical, offset, toWord } from "../base/addr.ts";
import { hexBytes } from "../base/bytes.ts";

/** One instruction, or one byte that is none. */
export interface Line {
  readonly at: Addr;
  readonly bytes: Uint8Array;
  readonly text: string;
}

/** The name of what is at an address (`vfs_read`, `vfs_read+0x12`), if anything is. */
export type SymbolAt = (at: Addr) => string | undefined;

/** Instructions per call of Capstone: few, as after a disagreement it starts again. */
const BATCH = 64;

export class Disassembler {
  private readonly capstone: Capstone;

  constructor(capstone: Capstone) {
    this.capstone = capstone;
  }

  /** The lines of `bytes`, which lie at `at`; they cover every byte, in order. */
  disassemble(bytes: Uint8Array, at: Addr, symbolAt: SymbolAt = () => undefined): Line[] {
    const lines: Line[] = [];
    let listed = new Map<number, CapstoneInstruction>();
    const decoder = new Decoder(64, bytes, 0);
    try {
      for (let from = 0; from < bytes.length; ) {
        if (!listed.has(from)) listed = this.list(bytes, from, at);
        decoder.position = from;
        decoder.ip = toWord(at) + BigInt(from);
        const instruction = decoder.decode();
        const { length, text } = describe(instruction, listed.get(from), symbolAt);
        instruction.free();
        lines.push({ at: offset(at, from), bytes: bytes.slice(from, from + length), text });
        from += length;
      }
    } finally {
      decoder.free();
    }
    return lines;
  }

  /** Capstone's next instructions, by where they start in `bytes`; none if it cannot decode the first. */
  private list(bytes: Uint8Array, from: number, at: Addr): Map<number, CapstoneInstruction> {
    try {
      const code = bytes.subarray(from, from + 15 * BATCH);
      const instructions = this.capstone.disasm(code, toWord(at) + BigInt(from), BATCH);
      const start = ({ address }: CapstoneInstruction) => Number(BigInt.asIntN(64, address - BigInt(at)));
      return new Map(instructions.map((instruction) => [start(instruction), instruction]));
    } catch (error) {
      if (typeof error !== "string") throw error;
      return new Map();
    }
  }
}

/** Length and text of one instruction, from both decoders' view of it. */
function describe(
  instruction: Instruction,
  listed: CapstoneInstruction | undefined,
  symbolAt: SymbolAt,
): { length: number; text: string } {
  const text = listed && `${listed.mnemonic} ${listed.op_str}`.trim();
  if (instruction.isInvalid)
    return text
      ? { length: listed.size, text: `${text}  # iced-x86: not decodable` }
      : { length: 1, text: "(bad)" };
  const { length } = instruction;
  if (!text) return { length, text: `${format(instruction)}  # Capstone: not decodable` };
  if (listed.size !== length)
    return { length, text: `${format(instruction)}  # Capstone: ${text}, ${listed.size} bytes` };
  return { length, text: text + annotation(instruction, symbolAt) };
}

function format(instruction: Instruction): string {
  const formatter = new Formatter(FormatterSyntax.Gas);
  const text = formatter.format(instruction);
  formatter.free();
  return text;
}

/** As objdump does: ` <name>` after a branch's target, the address and ` <name>` after an rip-relative operand. */
function annotation(instruction: Instruction, symbolAt: SymbolAt): string {
  const branch = instruction.opCount > 0 && instruction.opKind(0) === OpKind.NearBranch64;
  if (!branch && !instruction.isIpRelMemoryOperand) return "";
  const word = branch ? instruction.nearBranchTarget : instruction.ipRelMemoryAddress;
  if (!isCanonical(word)) return "";
  const target = addr(word);
  const name = symbolAt(target);
  const shown = name === undefined ? "" : ` <${name}>`;
  return branch ? shown : `  # ${hex(target)}${shown}`;
}

let loaded: Promise<Disassembler> | null = null;

/** The disassembler, started once: some 120 ms the first time. */
export async function loadDisassembler(): Promise<Disassembler> {
  loaded ??= startCapstone();
  return loaded;
}

async function startCapstone(): Promise<Disassembler> {
  const { default: MCapstone } = await import("@alexaltea/capstone-js");
  const module = await MCapstone();
  const capstone = new module.Capstone(module.ARCH_X86, module.MODE_64);
  capstone.option(module.OPT_SYNTAX, module.OPT_SYNTAX_ATT);
  return new Disassembler(capstone);
}

/** `address: bytes  text`, one line each, the text in one column. */
export function formatLines(lines: readonly Line[]): string[] {
  const width = Math.max(0, ...lines.map(({ bytes }) => 3 * bytes.length - 1));
  return lines.map(({ at, bytes, text }) => `${hex(at)}: ${hexBytes(bytes).padEnd(width)}  ${text}`);
}
