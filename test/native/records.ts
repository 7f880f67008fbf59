// What goes into the harness and what comes out of it, byte for byte (harness.S has the other end).
//
// Case record: u32 code bytes, u32 patches, 18 registers of 8 bytes (signal frame order), the code, the patches.
// Outcome record: the signal frame's 23 registers, u32 signal, u32 changed bytes, those.
// A patch and a changed byte are both a u32: offset in the data window * 256 + the byte.

import {
  bytesOf,
  CODE,
  DATA,
  DATA_SIZE,
  FAULTS,
  type Fault,
  FLAG_MASK,
  type Outcome,
  type Program,
  type RegisterName,
  RFLAGS_BASE,
} from "../x86/cases-model.ts";

/** The kernel's order in a signal frame (struct sigcontext). */
const FRAME = [
  ...(["r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"] as const),
  ...(["rdi", "rsi", "rbp", "rbx", "rdx", "rax", "rcx", "rsp"] as const),
] as const satisfies readonly RegisterName[];
const RIP = 8 * 16;
const RFLAGS = 8 * 17;
const ERROR_CODE = 8 * 19;
const VECTOR = 8 * 20;
const CR2 = 8 * 22;
const SIGNAL = 8 * 23;
const OUTCOME_HEAD = SIGNAL + 8;

/** From CODE to the end of its page; an int3 must be left. */
const CODE_ROOM = 0x800;

const SIGVTALRM = 26;
const BREAKPOINT = 3;
const PAGE_FAULT = 14;

/** The case records of all programs, in order. Throws RangeError for code or memory beyond the layout's limits. */
export function encodePrograms(programs: readonly Program[]): Uint8Array {
  for (const [i, { bytes, before }] of programs.entries()) {
    const inside = before.memory.every(({ at, size }) => at >= DATA && at + size <= DATA + DATA_SIZE);
    if (!inside || bytes.length >= CODE_ROOM) throw new RangeError(`program ${i} does not fit its pages`);
  }
  const patches = programs.map((program) => bytesOf(program.before.memory));
  const size = programs.reduce(
    (sum, { bytes }, i) => sum + 8 + 8 * 18 + bytes.length + 4 * patches[i]!.size,
    0,
  );
  const out = new Uint8Array(size);
  const view = new DataView(out.buffer);
  let at = 0;
  for (const [i, { bytes, before }] of programs.entries()) {
    view.setUint32(at, bytes.length, true);
    view.setUint32(at + 4, patches[i]!.size, true);
    at += 8;
    for (const [n, name] of FRAME.entries()) view.setBigUint64(at + 8 * n, before.registers[name], true);
    view.setBigUint64(at + RIP, BigInt(CODE), true);
    view.setBigUint64(at + RFLAGS, BigInt(RFLAGS_BASE | before.rflags), true);
    at += 8 * 18;
    out.set(bytes, at);
    at += bytes.length;
    for (const [offset, byte] of patches[i]!) {
      view.setUint32(at, (offset << 8) | byte, true);
      at += 4;
    }
  }
  return out;
}

/** The outcomes of as many of the programs as `records` holds whole. */
export function decodeOutcomes(programs: readonly Program[], records: Uint8Array): Outcome[] {
  const view = new DataView(records.buffer, records.byteOffset, records.byteLength);
  const outcomes: Outcome[] = [];
  let at = 0;
  while (at + OUTCOME_HEAD <= view.byteLength && outcomes.length < programs.length) {
    const changes = view.getUint32(at + SIGNAL + 4, true);
    const end = at + OUTCOME_HEAD + 4 * changes;
    if (end > view.byteLength) break;
    outcomes.push(decodeOutcome(view, at, changes, programs[outcomes.length]!));
    at = end;
  }
  return outcomes;
}

function decodeOutcome(view: DataView, at: number, changes: number, program: Program): Outcome {
  const word = (offset: number) => view.getBigUint64(at + offset, true);
  const registers: Record<RegisterName, bigint> = { ...program.before.registers };
  for (const [n, name] of FRAME.entries()) registers[name] = word(8 * n);
  const changed = new Map<number, number>();
  for (let i = 0; i < changes; i++) {
    const change = view.getUint32(at + OUTCOME_HEAD + 4 * i, true);
    changed.set(change >>> 8, change & 0xff);
  }
  const rflags = Number(word(RFLAGS)) & FLAG_MASK;
  const trapped = word(RIP);
  const base = { registers, rflags, changed };
  if (view.getUint32(at + SIGNAL, true) === SIGVTALRM) return { ...base, rip: trapped, fault: "hang" };

  const vector = Number(word(VECTOR));
  if (vector === BREAKPOINT && !isOwn(trapped - 1n, program))
    return { ...base, rip: trapped - 1n, fault: null };
  return { ...base, rip: trapped, fault: faultOf(vector, Number(word(ERROR_CODE)), word(CR2)) };
}

/** Whether the int3 at `at` is one of the case's own bytes, not one of those around it. */
function isOwn(at: bigint, program: Program): boolean {
  return at >= BigInt(CODE) && at < BigInt(CODE + program.bytes.length);
}

function faultOf(vector: number, errorCode: number, cr2: bigint): Fault {
  const names: Readonly<Record<number, Fault["name"]>> = FAULTS;
  const name = names[vector];
  if (name === undefined) throw new Error(`the processor raised vector ${vector}, which no case expects`);
  if (vector !== PAGE_FAULT) return { name, address: null, access: null };
  // Error code: bit 1 a write, bit 4 an instruction fetch (Intel SDM vol. 3, 5.7)
  return { name, address: cr2, access: errorCode & 16 ? "fetch" : errorCode & 2 ? "write" : "read" };
}
