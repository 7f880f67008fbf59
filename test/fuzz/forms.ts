// Which encodings are generated: everything that is lifted and that the host's processor can judge.
//
// Taken from iced-x86's tables, so that an instruction that is lifted tomorrow is generated tomorrow. What is left out
// is left out for one of REASONS; the summary counts them.

import { readFileSync } from "node:fs";
import {
  Code,
  CodeExt,
  CpuidFeature,
  EncodingKind,
  Instruction,
  Mnemonic,
  type OpCodeInfo,
  OpCodeOperandKind,
} from "iced-x86";
import { liftedMnemonics } from "../../src/x86/lift/table.ts";

export const REASONS = {
  privileged: "a user's program cannot execute it",
  system: "it enters the kernel or the hypervisor",
  segment: "segment registers, bases and descriptors are the host's own",
  varies: "its answer is not the same twice",
  makers: "Intel's and AMD's processors differ, or the manual leaves the result undefined",
  host: "the host's processor does not have it",
  never: "only a coprocessor had it",
  operands: "it has operands that are not lifted (vector, control, far)",
} as const;
export type Reason = keyof typeof REASONS;

export interface Form {
  readonly code: Code;
  readonly mnemonic: Mnemonic;
  /** By the names that iced-x86's OpCodeOperandKind has: `r32_or_mem`, `imm8sex32`. */
  readonly operands: readonly string[];
  readonly lock: boolean;
  readonly repeat: boolean;
  readonly repeatNot: boolean;
}

export interface Excluded {
  readonly code: Code;
  readonly mnemonic: Mnemonic;
  readonly reason: Reason;
}

export interface Forms {
  readonly included: readonly Form[];
  readonly excluded: readonly Excluded[];
}

const SYSTEM = [Mnemonic.Int, Mnemonic.Int1, Mnemonic.Syscall, Mnemonic.Sysenter, Mnemonic.Vmcall];
const SEGMENT = [
  ...[Mnemonic.Rdfsbase, Mnemonic.Rdgsbase, Mnemonic.Wrfsbase, Mnemonic.Wrgsbase, Mnemonic.Swapgs],
  ...[Mnemonic.Lar, Mnemonic.Lsl, Mnemonic.Verr, Mnemonic.Verw, Mnemonic.Sldt, Mnemonic.Str],
  ...[
    Mnemonic.Sgdt,
    Mnemonic.Sidt,
    Mnemonic.Smsw,
    Mnemonic.Retf,
    Mnemonic.Iretq,
    Mnemonic.Iretd,
    Mnemonic.Iret,
  ],
];
const VARIES = [
  ...[Mnemonic.Rdtsc, Mnemonic.Rdtscp, Mnemonic.Rdrand, Mnemonic.Rdseed, Mnemonic.Rdpmc, Mnemonic.Rdpid],
  ...[Mnemonic.Cpuid, Mnemonic.Xgetbv, Mnemonic.Rdpkru],
];
/** `bswap` of 16 bits has an undefined result (SDM vol. 2, BSWAP). */
const UNDEFINED = [Code.Bswap_r16];

/** Operand kinds that instruction.ts knows how to fill. */
const OPERANDS =
  /^(r(8|16|32|64)_(or_mem|reg|opcode|rm|reg_mem|vvvv)|al|cl|ax|dx|eax|rax|mem|mem_offs|imm\d+(sex\d+)?|imm8_const_1|br64_[14]|seg_rSI|es_rDI|seg_rBX_al)$/;

/** Every encoding of the lifted instructions; of one mnemonic only, if `only` is given. `anywhere`: whatever the host has. */
export function forms(only?: Mnemonic, anywhere = false): Forms {
  const lifted = new Set(only === undefined ? liftedMnemonics() : [only]);
  const features = anywhere ? undefined : hostFeatures();
  const included: Form[] = [];
  const excluded: Excluded[] = [];
  for (const code of Object.values(Code)) {
    if (typeof code !== "number") continue;
    const info = CodeExt.opCode(code);
    if (lifted.has(info.mnemonic) && info.isInstruction && info.mode64) {
      const form = formOf(info);
      const reason = reasonAgainst(info, form, features);
      if (reason === undefined) included.push(form);
      else excluded.push({ code, mnemonic: form.mnemonic, reason });
    }
    info.free();
  }
  return { included, excluded };
}

function formOf(info: OpCodeInfo): Form {
  return {
    code: info.code,
    mnemonic: info.mnemonic,
    operands: Array.from({ length: info.opCount }, (_, n) => OpCodeOperandKind[info.opKind(n)]!),
    lock: info.canUseLockPrefix,
    repeat: info.canUseRepPrefix,
    repeatNot: info.canUseRepnePrefix,
  };
}

function reasonAgainst(
  info: OpCodeInfo,
  form: Form,
  features: ReadonlySet<string> | undefined,
): Reason | undefined {
  const { mnemonic, code } = form;
  if (info.encoding !== EncodingKind.Legacy && info.encoding !== EncodingKind.VEX) return "operands";
  if (SYSTEM.includes(mnemonic)) return "system";
  if (info.isPrivileged || !info.cpl3 || info.mayRequireCpl0 || info.isInputOutput) return "privileged";
  if (SEGMENT.includes(mnemonic)) return "segment";
  if (VARIES.includes(mnemonic)) return "varies";
  if (UNDEFINED.includes(code) || !info.intelDecoder64 || !info.amdDecoder64) return "makers";
  if (!form.operands.every((kind) => OPERANDS.test(kind)) || isFar(code)) return "operands";
  if (Code[code]!.startsWith("VEX_KNC")) return "never";
  return features === undefined || needs(code).every((feature) => features.has(feature)) ? undefined : "host";
}

/** What every processor with 64-bit mode has, or takes for a no-op: iced-x86's names. */
const BASELINE =
  /^(INTEL(8086|186|286|386|486)|X64|PAUSE|MULTIBYTENOP|CET_IBT|CET_SS|PREFETCHW|PREFETCHWT1|PREFETCHITI)$/;
/** Where Linux does not spell a feature as iced-x86 does, in lower case. */
const LINUX_NAMES: Readonly<Record<string, string>> = { LZCNT: "abm", CMPXCHG16B: "cx16", CLFSH: "clflush" };

function isFar(code: Code): boolean {
  const instruction = new Instruction();
  instruction.code = code;
  const far = instruction.isCallFarIndirect || instruction.isJmpFarIndirect;
  instruction.free();
  return far;
}

function needs(code: Code): string[] {
  const instruction = new Instruction();
  instruction.code = code;
  const names = [...instruction.cpuidFeatures()]
    .map((feature) => CpuidFeature[feature]!)
    .filter((name) => !BASELINE.test(name))
    .map((name) => LINUX_NAMES[name] ?? name.toLowerCase());
  instruction.free();
  return names;
}

/** What the kernel says. */
function hostFeatures(): ReadonlySet<string> {
  const text = readFileSync("/proc/cpuinfo", "utf8");
  return new Set((/^flags\s*:(.*)$/m.exec(text)?.[1] ?? "").trim().split(/\s+/));
}
