// Every way in which execution stops, as values. Guest code cannot throw.

import { type Addr, hex } from "../base/addr.ts";
import { hexBytes } from "../base/bytes.ts";
import type { MixedFetch } from "./staleCode.ts";

/** Error-code bits of #PF (SDM vol. 3, 4.7). */
export const PAGE_FAULT = { present: 1, write: 2, user: 4, fetch: 16 } as const;

export type Fault =
  | { readonly vector: "#DE" | "#UD" | "#BR" | "#NM" }
  /** Traps of an instruction: saved rip is the one after it. */
  | { readonly vector: "#BP" | "#OF" }
  /** A trap but for instruction breakpoints and the general-detect condition. */
  | { readonly vector: "#DB"; readonly trap: boolean }
  | { readonly vector: "#GP" | "#SS" | "#TS" | "#NP" | "#DF"; readonly errorCode: number }
  /** `address` is what CR2 gets; `size` in bytes, of the access, where that is known. */
  | { readonly vector: "#PF"; readonly errorCode: number; readonly address: Addr; readonly size?: number };

export type Exit =
  /** An address given to `run` as `until` was reached, and not executed. */
  | { readonly kind: "reached"; readonly ip: Addr }
  | { readonly kind: "budget"; readonly ip: Addr }
  /** vmcall was executed at `ip`; rip is behind it. */
  | { readonly kind: "hypercall"; readonly ip: Addr }
  | { readonly kind: "halt"; readonly ip: Addr }
  | { readonly kind: "fault"; readonly ip: Addr; readonly fault: Fault }
  /** int n was executed at `ip`, rip is behind it, or an interrupt came before it; and there is no interrupt table. */
  | { readonly kind: "interrupt"; readonly ip: Addr; readonly vector: number }
  /** An exception during the delivery of a double fault: nothing can run any more. */
  | { readonly kind: "shutdown"; readonly ip: Addr }
  /** Bytes were fetched that were never in memory together, and the machine was told to stop at that. Nothing was executed. */
  | { readonly kind: "mixed"; readonly ip: Addr; readonly fetch: MixedFetch }
  /** Not lifted. `text` is the instruction as iced-x86 prints it. */
  | { readonly kind: "unimplemented"; readonly ip: Addr; readonly bytes: Uint8Array; readonly text: string };

/** One line for people; `name` describes code addresses. */
export function describeExit(exit: Exit, name: (ip: Addr) => string = hex): string {
  const at = name(exit.ip);
  switch (exit.kind) {
    case "reached":
      return `reached ${at}`;
    case "budget":
      return `out of budget at ${at}`;
    case "hypercall":
      return `hypercall at ${at}`;
    case "halt":
      return `halted at ${at}`;
    case "interrupt":
      return `interrupt ${exit.vector} without an interrupt table at ${at}`;
    case "shutdown":
      return `shut down by a triple fault at ${at}`;
    case "mixed":
      return `mixed fetch on vCPU ${exit.fetch.vcpu} at ${at}: ${exit.fetch.text} (${hexBytes(exit.fetch.bytes)})`;
    case "unimplemented":
      return `unimplemented instruction at ${at}: ${exit.text} (${hexBytes(exit.bytes)})`;
    case "fault":
      return `${describeFault(exit.fault)} at ${at}`;
  }
}

export function describeFault(fault: Fault): string {
  switch (fault.vector) {
    case "#PF": {
      const how =
        fault.errorCode & PAGE_FAULT.fetch ? "fetch" : fault.errorCode & PAGE_FAULT.write ? "write" : "read";
      const why = fault.errorCode & PAGE_FAULT.present ? "not permitted there" : "not mapped";
      const much = fault.size === undefined ? "" : ` of ${fault.size} bytes`;
      return `#PF: ${how}${much} at ${hex(fault.address)}, ${why},`;
    }
    case "#GP":
    case "#SS":
    case "#TS":
    case "#NP":
    case "#DF":
      return `${fault.vector}(${fault.errorCode})`;
    default:
      return fault.vector;
  }
}
