// Which segment an access goes through, where 64-bit mode still tells: bad addresses raise #SS or #GP.

import { type Instruction, Mnemonic } from "./decode.ts";
import { RBP, RSP } from "./register.ts";

/** Instructions that write to the stack besides their memory operand, if they have one; and those that read. */
const PUSHES = [Mnemonic.Push, Mnemonic.Pushf, Mnemonic.Pushfq, Mnemonic.Call, Mnemonic.Enter];
const POPS = [Mnemonic.Pop, Mnemonic.Popf, Mnemonic.Popfq, Mnemonic.Ret, Mnemonic.Leave, Mnemonic.Enter];

/** True if the instruction's write (or its read) is an access to ss: implicit, or by rsp or rbp without an override. */
export function usesStackSegment({ mnemonic, memory }: Instruction, write: boolean): boolean {
  if ((write ? PUSHES : POPS).includes(mnemonic)) return true;
  return memory !== undefined && memory.segment === undefined && (memory.base === RSP || memory.base === RBP);
}
