// Fetching for one vCPU: decoded instructions, if the code that runs may fetch them.
//
// They are memory's, and shared; or for the one under way, where this vCPU has not seen what others stored, its own.

import { type Addr, isCanonical, pageOf } from "../base/addr.ts";
import { bug } from "../base/refuse.ts";
import { type Instruction, printInstruction } from "../x86/decode.ts";
import { RECORD } from "../x86/state.ts";
import { fetch, isInvalidOnPage } from "./code.ts";
import { fetchStale, type StaleFetch } from "./contest.ts";
import type { Fault } from "./exit.ts";
import type { FetchLog } from "./fetchLog.ts";
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
  /** What was fetched otherwise than memory has it; and where its record is, once needed. */
  private stale: StaleFetch | undefined;
  private record: HostAddress | undefined;

  constructor(host: Host, memory: Memory, interpreter: Interpreter, system: RegisterFile) {
    this.host = host;
    this.memory = memory;
    this.interpreter = interpreter;
    this.system = system;
  }

  /** The decoded instruction at `ip`, or why the code that runs may not fetch it. */
  prepare(ip: Addr): HostAddress | Fault {
    if (this.stale?.ip === ip) return this.prepareStale(this.stale);
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

  /** Chooses the bytes of the instruction at `ip`: undefined if they are what memory has. */
  choose(log: FetchLog, ip: Addr): StaleFetch | undefined {
    return fetchStale(this.memory, log, ip, (at) => this.may(at));
  }

  /** Until it is called again, what was chosen at an address is what is there. */
  use(chosen: StaleFetch | undefined): void {
    this.stale = chosen;
  }

  /** The instruction at `ip`, if there is one. */
  instruction(ip: Addr): Instruction | undefined {
    const known = this.stale?.ip === ip ? undefined : this.interpreter.instructionAt(ip);
    if (known !== undefined) return known;
    const fetched = this.stale?.ip === ip ? this.stale.decoded : fetch(this.memory, ip);
    return fetched.kind === "instruction" ? fetched.instruction : undefined;
  }

  /** The bytes at `ip` and how iced-x86 prints them, for an instruction that cannot be executed here. */
  disassemble(ip: Addr): { bytes: Uint8Array; text: string } {
    const instruction = this.instruction(ip);
    if (instruction === undefined) return { bytes: new Uint8Array(), text: "(bad)" };
    const bytes = this.stale?.ip === ip ? this.stale.bytes : this.memory.read(ip, instruction.length);
    return { bytes, text: printInstruction(bytes, ip) };
  }

  /** Whether code of this level may be fetched from `ip`: the level that the vCPU is at, if none is given. */
  may(ip: Addr, user = this.system.user): boolean {
    return this.fault(ip, user) === undefined;
  }

  private prepareStale({ ip, bytes, decoded }: StaleFetch): HostAddress | Fault {
    if (decoded.kind === "truncated")
      return this.fault((ip + bytes.length) as Addr) ?? bug("a fetch that ends where it may go on");
    this.record ??= this.host.reserve(RECORD.size);
    this.interpreter.prepareApart(this.record, ip, decoded);
    return this.record;
  }

  private fault(at: Addr, user = this.system.user): Fault | undefined {
    if (!isCanonical(at)) return { vector: "#GP", errorCode: 0 }; // behind the last byte that has an address
    const errorCode = this.system.fetchDenial(this.memory.find(at), user);
    return errorCode === undefined ? undefined : { vector: "#PF", errorCode, address: at, size: 1 };
  }
}
