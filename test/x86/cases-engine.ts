// The cases on this engine: stepped, and in regions.

import { type Addr, addr, PAGE_SIZE } from "../../src/base/addr.ts";
import type { Exit } from "../../src/machine/exit.ts";
import { PAGE_FAULT } from "../../src/machine/exit.ts";
import { Machine } from "../../src/machine/machine.ts";
import type { Vcpu } from "../../src/machine/vcpu.ts";
import {
  CODE,
  CODE_PAGE,
  changedBytes,
  codePageOf,
  DATA,
  DATA_SIZE,
  type Fault,
  FLAG_MASK,
  FS_BASE,
  GS_BASE,
  type Outcome,
  type Program,
  REGISTERS,
  RFLAGS_BASE,
  windowOf,
} from "./cases-model.ts";

/** A case ends long before. */
const LIMIT = 1000;

const data = addr(DATA);
const code = addr(CODE);

/** Runs one program, all alone on a machine that others have used before it. */
export type Engine = (program: Program) => Outcome;

export function steppedEngine(): Engine {
  const machine = makeMachine();
  return (program) => {
    const vcpu = prepare(machine, program);
    let exit: Exit | undefined;
    for (let n = 0; n < LIMIT && exit === undefined; n++) exit = vcpu.step();
    return outcome(machine, program, exit);
  };
}

/** Compiles each program before it runs; the first run fills the TLB, so that the second stays in the region. */
export function regionEngine(): Engine {
  const machine = makeMachine();
  return (program) => {
    prepare(machine, program).run({ budget: LIMIT });
    const vcpu = prepare(machine, program);
    machine.regions.compile(code);
    return outcome(machine, program, vcpu.run({ budget: LIMIT }));
  };
}

function makeMachine(): Machine {
  const machine = new Machine();
  machine.memory.map(data, DATA_SIZE, { write: true, execute: false, user: false });
  machine.memory.map(addr(CODE_PAGE), PAGE_SIZE, { write: true, execute: true, user: false });
  return machine;
}

function prepare(machine: Machine, program: Program): Vcpu {
  machine.memory.write(data, windowOf(program));
  machine.memory.write(addr(CODE_PAGE), codePageOf(program));
  const vcpu = machine.vcpus[0]!;
  for (const name of REGISTERS) vcpu.set(name, program.before.registers[name]);
  vcpu.rflags = BigInt(RFLAGS_BASE | program.before.rflags);
  vcpu.gsBase = BigInt(GS_BASE);
  vcpu.fsBase = BigInt(FS_BASE);
  vcpu.rip = code;
  return vcpu;
}

function outcome(machine: Machine, program: Program, exit: Exit | undefined): Outcome {
  const vcpu = machine.vcpus[0]!;
  const changed = changedBytes(windowOf(program), machine.memory.read(data, DATA_SIZE));
  const rflags = Number(vcpu.rflags) & FLAG_MASK;
  const base = { registers: vcpu.registers(), rflags, changed };
  if (exit === undefined || exit.kind === "budget") return { ...base, rip: word(vcpu.rip), fault: "hang" };
  if (exit.kind !== "fault") throw new Error(`a case ended with ${JSON.stringify(exit)}`);
  const own = exit.ip >= CODE && exit.ip < CODE + program.bytes.length;
  if (exit.fault.vector === "#BP" && !own) return { ...base, rip: word(exit.ip), fault: null };
  return { ...base, rip: word(vcpu.rip), fault: faultOf(exit) };
}

function faultOf({ fault }: Exit & { kind: "fault" }): Fault {
  if (fault.vector !== "#PF") return { name: fault.vector, address: null, access: null };
  const { errorCode } = fault;
  const access = errorCode & PAGE_FAULT.fetch ? "fetch" : errorCode & PAGE_FAULT.write ? "write" : "read";
  return { name: "#PF", address: word(fault.address), access };
}

function word(at: Addr): bigint {
  return BigInt.asUintN(64, BigInt(at));
}
