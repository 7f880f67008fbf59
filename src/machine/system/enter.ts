// enter where it may fault half-way: each push and each read is an access of its own, in the processor's order, and what was
// pushed before one that faults stays in memory. The registers change when all is done.

import { bug } from "../../base/refuse.ts";
import { Code } from "../../x86/decode.ts";
import { RBP, RSP } from "../../x86/register.ts";
import { type Execute, onStack } from "./execution.ts";
import { isFault } from "./processor.ts";

export const enter: Execute = (x) => {
  const { cpu, user, instruction } = x;
  const [room, nesting] = instruction.operands;
  if (room?.kind !== "immediate" || nesting?.kind !== "nesting") return bug("enter without its operands");
  const size = instruction.code === Code.Enterw_imm16_imm8 ? 2n : 8n;
  const mask = (1n << (8n * size)) - 1n;
  let top = cpu.getRegister(RSP);
  const push = (value: bigint) => {
    top -= size;
    return cpu.writeBytes(top, value & mask, Number(size), user);
  };
  const rbp = cpu.getRegister(RBP);
  const frame = top - size;
  let fault = push(rbp);
  for (let n = 1; n < nesting.level && fault === undefined; n++) {
    const outer = cpu.readLinear(rbp - size * BigInt(n), Number(size), user);
    fault = isFault(outer) ? outer : push(outer);
  }
  if (nesting.level > 0) fault ??= push(frame);
  top -= room.value;
  fault ??= cpu.checkWrite(top, 1, user);
  if (fault !== undefined) return onStack(fault);
  cpu.setRegister(RSP, top);
  cpu.setRegister(RBP, (rbp & ~mask) | (frame & mask));
  return undefined;
};
