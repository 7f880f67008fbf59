// Fetching for one vCPU: decoded instructions, if the code that runs may fetch them.

import { type Addr, pageOf } from "../base/addr.ts";
import { bug } from "../base/refuse.ts";
import { RECORD } from "../x86/state.ts";
import { isInvalidOnPage } from "./code.ts";
import type { Fault } from "./exit.ts";
import type { Host, HostAddress } from "./host.ts";
import type { Interpreter } from "./interpreter.ts";
import type { Memory } from "./memory.ts";
import type { RegisterFile } from "./registerFile.ts";
import { SLOT } from "./trunk.ts";

export class Fetcher {
  private readonly host: Host;
  private readonly memory: Memory;
  private readonly interpreter: Interpreter;
  private readonly system: RegisterFile;

  constructor(host: Host, memory: Memory, interpreter: Interpreter, system: RegisterFile) {
    this.host = host;
    this.memory = memory;
    this.interpreter = interpreter;
    this.system = system;
  }

  /** The decoded instruction at `ip`, or why the code that runs may not fetch it. */
  prepare(ip: Addr): HostAddress | Fault {
    const denied = this.fault(ip);
    if (denied !== undefined) return denied;
    const record = this.interpreter.prepare(ip);
    if (typeof record !== "number") {
      return this.fault(record.address) ?? bug("a fetch that fails where it may be made");
    }
    const last = (ip + this.host.i32[(record + RECORD.length) >> 2]! - 1) as Addr;
    const beyond = pageOf(last) === pageOf(ip) ? undefined : this.fault(pageOf(last));
    // What is invalid was given the longest length; its bytes on the first page may be enough to tell.
    const invalid = this.host.i32[(record + RECORD.slot) >> 2] === SLOT.invalid;
    if (beyond === undefined || (invalid && isInvalidOnPage(this.memory, ip))) return record;
    return beyond;
  }

  may(ip: Addr): boolean {
    return this.fault(ip) === undefined;
  }

  private fault(at: Addr): Fault | undefined {
    const errorCode = this.system.fetchDenial(this.memory.find(at));
    return errorCode === undefined ? undefined : { vector: "#PF", errorCode, address: at, size: 1 };
  }
}
