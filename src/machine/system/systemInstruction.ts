// System instructions, executed by TypeScript on the vCPU's state words.
//
// They are rare, touch what no other instruction does, and each has checks of its own; the lifted code
// stops before one (ANSWER.system), and this does it. Sources are the instructions' pages in SDM vol. 2.

import { bug } from "../../base/refuse.ts";
import { type Instruction, Mnemonic } from "../../x86/decode.ts";
import { CR0, CR4, FLAG, RAX, RBX, RCX, RDX, STATUS_FLAGS } from "../../x86/register.ts";
import {
  accessFlag,
  clearInterruptFlag,
  move,
  popFlags,
  readBase,
  setInterruptFlag,
  writeBase,
} from "./control.ts";
import { cpuid } from "./cpuid.ts";
import { enter } from "./enter.ts";
import {
  type Execute,
  Execution,
  GENERAL_PROTECTION,
  INVALID_OPCODE,
  kernel,
  nothing,
  type Outcome,
} from "./execution.ts";
import { farReturn, iret, syscall, sysenter, sysexit, sysret } from "./farTransfer.ts";
import { readMsr, writeMsr } from "./msr.ts";
import { isFault, type Processor } from "./processor.ts";
import {
  inspect,
  loadAccessRights,
  loadLimit,
  loadLocalTable,
  loadTable,
  loadTaskRegister,
  popSegment,
  pushSegment,
  storeTable,
} from "./segment.ts";

/** Executes `instruction`, at which the processor's rip is. `time` is the time-stamp counter. */
export function executeSystem(cpu: Processor, instruction: Instruction, time: bigint): Outcome {
  const execute =
    INSTRUCTIONS.get(instruction.mnemonic) ?? bug(`no system instruction ${Mnemonic[instruction.mnemonic]}`);
  const execution = new Execution(cpu, instruction, time);
  const outcome = execute(execution);
  if (outcome === undefined || "source" in outcome) cpu.rip = execution.next;
  return outcome;
}

export function systemMnemonics(): Mnemonic[] {
  return [...INSTRUCTIONS.keys()].sort((a, b) => a - b);
}

function pair(x: Execution, value: bigint): void {
  x.cpu.setRegister(RAX, value & 0xffffffffn);
  x.cpu.setRegister(RDX, (value >> 32n) & 0xffffffffn);
}

const low = (value: bigint): number => Number(value & 0xffffffffn);

const readTime: Execute = (x) => {
  if (x.user && (x.cpu.getWord("cr4") & CR4.TSD) !== 0n) return GENERAL_PROTECTION;
  pair(x, x.time);
  return undefined;
};

/** Deterministic: a xorshift generator's next word, from the vCPU's own state. CF says that there was one. */
const random: Execute = (x) => {
  const { cpu } = x;
  let state = cpu.getWord("random") || 0x9e3779b97f4a7c15n;
  state ^= BigInt.asUintN(64, state << 13n);
  state ^= state >> 7n;
  state ^= BigInt.asUintN(64, state << 17n);
  cpu.setWord("random", state);
  cpu.rflags = (cpu.rflags & ~STATUS_FLAGS) | FLAG.CF;
  return x.write(0, state, 8);
};

const INSTRUCTIONS = new Map<Mnemonic, Execute>([
  [Mnemonic.Syscall, syscall],
  [Mnemonic.Sysretq, kernel(sysret)],
  [Mnemonic.Iretq, iret],
  [Mnemonic.Iretd, iret],
  [Mnemonic.Iret, iret],
  [Mnemonic.Sysenter, sysenter],
  [Mnemonic.Sysexitq, kernel(sysexit)],
  [Mnemonic.Retf, farReturn],
  [
    Mnemonic.Swapgs,
    kernel((x) => {
      const base = x.cpu.getWord("gsBase");
      x.cpu.setWord("gsBase", x.cpu.getWord("kernelGsBase"));
      x.cpu.setWord("kernelGsBase", base);
      return undefined;
    }),
  ],
  [
    Mnemonic.Rdmsr,
    kernel((x) => {
      const value = readMsr(x.cpu, low(x.cpu.getRegister(RCX)), x.time);
      if (isFault(value)) return value;
      pair(x, value);
      return undefined;
    }),
  ],
  [
    Mnemonic.Wrmsr,
    kernel((x) => {
      const value = (x.cpu.getRegister(RDX) << 32n) | (x.cpu.getRegister(RAX) & 0xffffffffn);
      return writeMsr(x.cpu, low(x.cpu.getRegister(RCX)), BigInt.asUintN(64, value));
    }),
  ],
  [Mnemonic.Lgdt, loadTable("gdtBase", "gdtLimit")],
  [Mnemonic.Lidt, loadTable("idtBase", "idtLimit")],
  [Mnemonic.Sgdt, storeTable("gdtBase", "gdtLimit")],
  [Mnemonic.Sidt, storeTable("idtBase", "idtLimit")],
  [Mnemonic.Ltr, loadTaskRegister],
  [Mnemonic.Str, (x) => x.write(0, x.cpu.getWord("tr"), 2)],
  [Mnemonic.Lldt, loadLocalTable],
  [Mnemonic.Sldt, (x) => x.write(0, x.cpu.getWord("ldtr"), 2)],
  [Mnemonic.Verr, inspect((_, found) => found.kind === "data" || (found.kind === "code" && found.readable))],
  [Mnemonic.Verw, inspect((_, found) => found.kind === "data" && found.writable)],
  [Mnemonic.Lar, loadAccessRights],
  [Mnemonic.Lsl, loadLimit],
  [
    Mnemonic.Clts,
    kernel((x) => {
      x.cpu.setWord("cr0", x.cpu.getWord("cr0") & ~CR0.TS);
      return undefined;
    }),
  ],
  [Mnemonic.Smsw, (x) => x.write(0, x.cpu.getWord("cr0"), 2)],
  [Mnemonic.Invlpg, kernel(nothing)], // no TLB here outlives what it says
  [Mnemonic.Serialize, nothing],
  [Mnemonic.Wbinvd, kernel(nothing)],
  [Mnemonic.Wbnoinvd, kernel(nothing)],
  [Mnemonic.Invd, kernel(nothing)],
  [Mnemonic.Rdfsbase, readBase("fsBase")],
  [Mnemonic.Rdgsbase, readBase("gsBase")],
  [Mnemonic.Wrfsbase, writeBase("fsBase")],
  [Mnemonic.Wrgsbase, writeBase("gsBase")],
  [Mnemonic.Stac, accessFlag(true)],
  [Mnemonic.Clac, accessFlag(false)],
  [
    Mnemonic.Cpuid,
    (x) => {
      const leaf = cpuid(low(x.cpu.getRegister(RAX)), low(x.cpu.getRegister(RCX)));
      x.cpu.setRegister(RAX, BigInt(leaf.eax));
      x.cpu.setRegister(RBX, BigInt(leaf.ebx));
      x.cpu.setRegister(RCX, BigInt(leaf.ecx));
      x.cpu.setRegister(RDX, BigInt(leaf.edx));
      return undefined;
    },
  ],
  [Mnemonic.Rdtsc, readTime],
  [
    Mnemonic.Rdtscp,
    (x) => {
      const fault = readTime(x);
      if (fault === undefined) x.cpu.setRegister(RCX, x.cpu.getWord("tscAux"));
      return fault;
    },
  ],
  [Mnemonic.Rdpid, (x) => x.write(0, x.cpu.getWord("tscAux"), 8)],
  [Mnemonic.Rdrand, random],
  [Mnemonic.Rdseed, random],
  [
    Mnemonic.Xgetbv,
    (x) => {
      if ((x.cpu.getWord("cr4") & CR4.OSXSAVE) === 0n) return INVALID_OPCODE;
      if (low(x.cpu.getRegister(RCX)) !== 0) return GENERAL_PROTECTION;
      pair(x, x.cpu.getWord("xcr0"));
      return undefined;
    },
  ],
  [
    Mnemonic.Int,
    (x) => {
      const [operand] = x.instruction.operands;
      return operand?.kind === "immediate"
        ? { vector: Number(operand.value), source: "software" }
        : bug("int without a vector");
    },
  ],
  [Mnemonic.Int1, () => ({ vector: 1, source: "trap" })],
  [Mnemonic.Enter, enter],
  // Forms of lifted instructions: with a system register, or where a flag is more than a bit to change.
  [Mnemonic.Mov, move],
  [Mnemonic.Push, pushSegment],
  [Mnemonic.Pop, popSegment],
  [Mnemonic.Cli, clearInterruptFlag],
  [Mnemonic.Sti, setInterruptFlag],
  [Mnemonic.Popfq, popFlags(8)],
  [Mnemonic.Popf, popFlags(2)],
]);
