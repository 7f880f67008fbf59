// What to do about a call that stopped somewhere else than at its return: one clause for each way.

import { type Exit, PAGE_FAULT } from "../machine/exit.ts";

/** The next step after `exit`, to end a sentence with. */
export function adviseExit(exit: Exit): string {
  switch (exit.kind) {
    case "budget":
      return "raise the budget (--budget), or look for an endless loop there";
    case "unimplemented":
      return "build the code without that instruction, as kernel code is (gcc -mgeneral-regs-only)";
    case "hypercall":
      return "take the vmcall out, the laboratory ends its calls with it";
    case "interrupt":
      return "take the int out, or set up an interrupt table first";
    case "shutdown":
      return "check the interrupt table, the stacks that it names, and the handlers";
    case "mixed":
      return "let every vCPU serialise between the stores to that instruction, an int3 first";
    case "halt":
      return "take the hlt out, nothing would wake it";
    case "reached":
      return "run on from there";
    case "fault":
      return adviseFault(exit.fault);
  }
}

function adviseFault(fault: (Exit & { kind: "fault" })["fault"]): string {
  switch (fault.vector) {
    case "#DE":
      return "check the divisor, and that the quotient fits";
    case "#UD":
      return "an invalid instruction, or the ud2 of a BUG(): check what led there";
    case "#BP":
      return "an int3, or the padding past a function that does not return: check what led there";
    case "#DB":
    case "#OF":
    case "#BR":
    case "#NM":
      return "take out what raises it, the laboratory has no handler for it";
    case "#DF":
    case "#TS":
    case "#NP":
      return "check the interrupt table and the segments that it names";
    case "#GP":
    case "#SS":
      return "check for an address that is not canonical, and for misuse of the stack pointer";
    case "#PF":
      if (fault.errorCode & PAGE_FAULT.fetch)
        return "check the pointer, or the return address, that led there";
      return fault.errorCode & PAGE_FAULT.present
        ? "text and read-only data cannot be written, put it in .data"
        : "check the call's arguments and the pointers made from them, or map that memory first";
  }
}
