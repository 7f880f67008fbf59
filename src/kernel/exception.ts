// Exceptions as the kernel takes them: which entry each vector has, and what a taken one was.

import { type Addr, addr, offset } from "../base/addr.ts";
import { bug } from "../base/refuse.ts";
import type { Fault } from "../machine/exit.ts";
import type { Memory } from "../machine/memory.ts";
import { PT_REGS } from "../machine/ptRegs.ts";
import { StructView } from "../machine/struct.ts";
import { VECTOR } from "../machine/system/exception.ts";
import { VECTORS } from "./layout.ts";

/** Numbers of the interrupt stacks in a TSS. */
const IST = { none: 0, doubleFault: 1, nmi: 2 } as const;

const gate = (vector: number, symbol: string, ist: number = IST.none) => ({ vector, symbol, ist });

/** The entry code of every vector that has any (asm/entry.S). */
export const GATES = [
  gate(VECTOR["#DE"], "asm_exc_divide_error"),
  gate(VECTOR["#DB"], "asm_exc_debug"),
  gate(VECTOR.NMI, "asm_exc_nmi", IST.nmi),
  gate(VECTOR["#BP"], "asm_exc_int3"),
  gate(VECTOR["#OF"], "asm_exc_overflow"),
  gate(VECTOR["#BR"], "asm_exc_bounds"),
  gate(VECTOR["#UD"], "asm_exc_invalid_op"),
  gate(VECTOR["#NM"], "asm_exc_device_not_available"),
  gate(VECTOR["#DF"], "asm_exc_double_fault", IST.doubleFault),
  gate(VECTOR["#TS"], "asm_exc_invalid_tss"),
  gate(VECTOR["#NP"], "asm_exc_segment_not_present"),
  gate(VECTOR["#SS"], "asm_exc_stack_segment"),
  gate(VECTOR["#GP"], "asm_exc_general_protection"),
  gate(VECTOR["#PF"], "asm_exc_page_fault"),
  gate(VECTORS.DEVICE_VECTOR, "asm_common_interrupt"),
  gate(VECTORS.TIMER_VECTOR, "asm_sysvec_apic_timer_interrupt"),
  gate(VECTORS.CALL_FUNCTION_VECTOR, "asm_sysvec_call_function"),
  gate(VECTORS.RESCHEDULE_VECTOR, "asm_sysvec_reschedule_ipi"),
] as const;

export interface TakenException {
  readonly fault: Fault;
  /** The instruction that raised it; for #DB the one behind. */
  readonly ip: Addr;
  readonly regs: StructView<keyof typeof PT_REGS.fields>;
}

/** Here only instructions raise these that are there for it, and the saved ip is the one behind: int3, or `int n`. */
const BY_INSTRUCTION: readonly Fault["vector"][] = ["#BP", "#OF", "#BR", "#NM"];
const INT = 0xcd;

/** What `vector` was, of the registers that its entry code saved at `at`. */
export function takenException(memory: Memory, at: Addr, vector: number, cr2: bigint): TakenException {
  const name = (Object.keys(VECTOR) as (keyof typeof VECTOR)[]).find((key) => VECTOR[key] === vector);
  if (name === undefined || name === "NMI") return bug(`an exception with vector ${vector}`);
  const regs = new StructView(memory, PT_REGS, at);
  const ip = regs.getNumber("ip") as Addr;
  const fault = faultOf(name, regs.getNumber("orig_ax"), cr2);
  if (!BY_INSTRUCTION.includes(name)) return { fault, ip, regs };
  // An int3 may be gone again: what was fetched is not always what memory has.
  const before = offset(ip, -2);
  const [first, second] = memory.isMapped(before, 2) ? memory.read(before, 2) : [];
  const length = first === INT && second === vector ? 2 : 1;
  return { fault, ip: offset(ip, -length), regs };
}

function faultOf(vector: Fault["vector"], errorCode: number, cr2: bigint): Fault {
  switch (vector) {
    case "#PF":
      return { vector, errorCode, address: addr(cr2) };
    case "#GP":
    case "#SS":
    case "#TS":
    case "#NP":
    case "#DF":
      return { vector, errorCode };
    case "#DB":
      return { vector, trap: true };
    default:
      return { vector };
  }
}
