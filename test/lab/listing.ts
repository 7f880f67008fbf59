// A reader of listings: what someone counts who follows Capstone's text with a finger, without any engine.

import type { Addr } from "../../src/base/addr.ts";
import type { Lab } from "../../src/lab.ts";
import { type Disassembler, formatLines } from "../../src/x86/disassemble.ts";

/** The listing of what is in guest memory now, one instruction a line: `0xffffffff81000220: 55  pushq %rbp`. */
export function listMemory(lab: Lab, disassembler: Disassembler, at: Addr, size: number): string[] {
  return formatLines(disassembler.disassemble(lab.machine.memory.read(at, size), at));
}

export function listFunction(lab: Lab, disassembler: Disassembler, name: string): string[] {
  const { address, size } = lab.symbol(name);
  return listMemory(lab, disassembler, address, size);
}

/** Mnemonic and operands of a formatted line. */
export function textOf(line: string): string {
  return /^0x[0-9a-f]{16}: (?:[0-9a-f]{2} )+ *(.*)$/.exec(line)![1]!;
}

export function addressOf(line: string): string {
  return line.slice(0, 18);
}

/**
 * The lines read from the first one until a `ret`, which is read too. `jumps` says for each conditional jump, in the order in
 * which they are come by, whether it jumps.
 */
export function readPath(listing: readonly string[], jumps: readonly boolean[] = []): string[] {
  const path: string[] = [];
  let met = 0;
  for (let at = 0; ; ) {
    const line = listing[at];
    if (line === undefined) throw new Error("the listing ends before a ret");
    path.push(line);
    const [mnemonic, target] = textOf(line).split(/\s+/) as [string, string?];
    if (/^retq?$/.test(mnemonic)) break;
    at++;
    if (!mnemonic.startsWith("j")) continue;
    const jump = mnemonic === "jmp" || jumps[met++];
    if (jump === undefined) throw new Error(`nothing is said of ${textOf(line)}`);
    if (!jump) continue;
    at = listing.findIndex((other) => addressOf(other) === target);
    if (at < 0) throw new Error(`${textOf(line)} leaves the listing`);
  }
  if (met < jumps.length) throw new Error(`${jumps.length} jumps are spoken of, and ${met} are there`);
  return path;
}
