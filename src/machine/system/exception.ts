// Delivery of exceptions and interrupts through the IDT (SDM vol. 3, 6.12 to 6.15).
//
// What goes wrong on the way is an exception in turn: two of them make #DF, and one more shuts the
// processor down. Nothing is written unless the whole frame can be, but that the handler's segment was accessed.

import { type Addr, addr, isCanonical } from "../../base/addr.ts";
import { FLAG, RSP } from "../../x86/register.ts";
import { EMPTY_RIP } from "../../x86/state.ts";
import type { Fault } from "../exit.ts";
import { markAccessed, readDescriptor, readGate, readTssStack } from "./descriptor.ts";
import { isFault, type Processor } from "./processor.ts";

/** Vectors by the names that the manual gives them (SDM vol. 3, table 6-1). */
export const VECTOR = {
  "#DE": 0,
  "#DB": 1,
  NMI: 2,
  "#BP": 3,
  "#OF": 4,
  "#BR": 5,
  "#UD": 6,
  "#NM": 7,
  "#DF": 8,
  "#TS": 10,
  "#NP": 11,
  "#SS": 12,
  "#GP": 13,
  "#PF": 14,
} as const;

export interface Event {
  readonly vector: number;
  /** Pushed if given. */
  readonly errorCode?: number;
  /** `software` is int n, int3, into: the gate's privilege level is checked. */
  readonly source: "fault" | "trap" | "software" | "external" | "nonmaskable";
  /** Of a software interrupt: the instruction, which is where a fault of the delivery resumes. */
  readonly ip?: Addr;
}

/** The event that a fault is; #DB and #BP are traps, which resume behind the instruction. */
export function eventOf(fault: Fault): Event {
  const vector = VECTOR[fault.vector];
  if (fault.vector === "#BP" || fault.vector === "#OF") return { vector, source: "software" };
  if (fault.vector === "#DB") return { vector, source: fault.trap ? "trap" : "fault" };
  return "errorCode" in fault
    ? { vector, source: "fault", errorCode: fault.errorCode }
    : { vector, source: "fault" };
}

/**
 * Delivers `event`, or what comes of trying, and says which. `shutdown` is the end of the processor (SDM vol. 3,
 * 6.15, #DF).
 */
export function deliver(cpu: Processor, event: Event): Event | "shutdown" {
  for (let current = event; ; ) {
    const fault = enter(cpu, current);
    if (fault === undefined) return current;
    if (fault.vector === "#PF") cpu.setWord("cr2", BigInt(fault.address));
    if (isException(current) && current.vector === VECTOR["#DF"]) return "shutdown";
    if (current.source === "software" && current.ip !== undefined) cpu.rip = current.ip;
    current = combine(current, eventOf(fault));
  }
}

const CONTRIBUTORY: readonly number[] = [
  VECTOR["#DE"],
  VECTOR["#TS"],
  VECTOR["#NP"],
  VECTOR["#SS"],
  VECTOR["#GP"],
];
const EXTERNAL = 1;
/** dr7: accesses to debug registers are #DB. The handler may make them. */
const GENERAL_DETECT = 1n << 13n;

/** The second of two exceptions, or the double fault that they make (SDM vol. 3, table 6-5). */
function combine(first: Event, second: Event): Event {
  const contributory = CONTRIBUTORY.includes(second.vector);
  const double =
    isException(first) &&
    ((CONTRIBUTORY.includes(first.vector) && contributory) ||
      (first.vector === VECTOR["#PF"] && (contributory || second.vector === VECTOR["#PF"])));
  return double ? { vector: VECTOR["#DF"], errorCode: 0, source: "fault" } : second;
}

/** An interrupt is none, whatever its vector. */
function isException({ source }: Event): boolean {
  return source === "fault" || source === "trap";
}

/** One try; undefined if the processor is at the handler now. */
function enter(cpu: Processor, event: Event): Fault | undefined {
  const { vector, source } = event;
  const external = source === "software" ? 0 : EXTERNAL;
  const idtError = (vector << 3) | 2 | external;
  const gate = readGate(cpu, vector);
  if (gate === undefined) return { vector: "#GP", errorCode: idtError };
  if (isGateFault(gate)) return gate;
  const cpl = Number(cpu.getWord("cpl"));
  if (source === "software" && gate.dpl < cpl) return { vector: "#GP", errorCode: idtError };
  if (!gate.present) return { vector: "#NP", errorCode: idtError };
  const selectorError = Number(gate.selector & ~3n) | external;
  const code = readDescriptor(cpu, gate.selector);
  if (code === undefined || (gate.selector & ~3n) === 0n) return { vector: "#GP", errorCode: selectorError };
  if ("vector" in code) return code;
  // Rings 1 and 2 do not exist here.
  if (code.kind !== "code" || !code.long || code.dpl > cpl || code.dpl % 3 !== 0)
    return { vector: "#GP", errorCode: selectorError };
  if (!code.present) return { vector: "#NP", errorCode: selectorError };
  const level = code.conforming || code.dpl === cpl ? cpl : 0;
  const stack = stackFor(cpu, gate.ist, level < cpl);
  if (stack !== undefined && isFault(stack)) return stack;
  if (stack === undefined) return { vector: "#TS", errorCode: (Number(cpu.getWord("tr")) & ~3) | external };
  if (!isCanonical(stack)) return { vector: "#SS", errorCode: external };
  if (!isCanonical(gate.offset)) return { vector: "#GP", errorCode: external };
  const used = markAccessed(cpu, code);
  if (used !== undefined) return used;

  const flags = cpu.rflags;
  // A handler that returns to a faulting instruction must not meet its breakpoint again.
  const saved = source === "fault" ? flags | FLAG.RF : flags;
  const top = stack & ~15n;
  const frame = [
    BigInt.asUintN(64, BigInt(cpu.rip)),
    cpu.getWord("cs"),
    saved,
    cpu.getRegister(RSP),
    cpu.getWord("ss"),
  ];
  if (event.errorCode !== undefined) frame.unshift(BigInt(event.errorCode));
  const bottom = top - 8n * BigInt(frame.length);
  const fault = cpu.writeLinear(bottom, frame, level === 3);
  if (fault !== undefined) return fault.vector === "#GP" ? { vector: "#SS", errorCode: external } : fault;

  if (source === "nonmaskable") cpu.setWord("nmiBlocked", 1n);
  if (vector === VECTOR["#DB"]) cpu.setWord("dr", cpu.getWord("dr", 7) & ~GENERAL_DETECT, 7);
  cpu.setWord("cs", (gate.selector & ~3n) | BigInt(level));
  if (level < cpl) cpu.setWord("ss", 0n);
  cpu.setRegister(RSP, BigInt.asUintN(64, bottom));
  cpu.rflags = flags & ~(FLAG.TF | FLAG.NT | FLAG.RF | (gate.clearsIf ? FLAG.IF : 0n));
  cpu.rip = addr(gate.offset);
  cpu.setWord("shadow", EMPTY_RIP);
  if (level !== cpl) cpu.setPrivilege(0);
  return undefined;
}

/** The stack to push on; undefined if the TSS is too short for what it is asked. */
function stackFor(cpu: Processor, ist: number, inward: boolean): bigint | undefined | Fault {
  if (ist !== 0 || inward) return readTssStack(cpu, ist);
  return cpu.getRegister(RSP);
}

function isGateFault(gate: object): gate is Fault {
  return "vector" in gate;
}
