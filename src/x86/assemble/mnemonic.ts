// What AT&T mnemonics mean: Intel's names for them, size suffixes, prefixes, branches.
//
// Tables only. Intel's spelling (as iced-x86 names instructions) is what encodings are checked against.

/** Operand size in bytes by AT&T suffix. */
export const SUFFIXES: Readonly<Record<string, number>> = { b: 1, w: 2, l: 4, q: 8 };

/** Prefixes that may stand before a mnemonic or alone on a line. */
export const PREFIXES: Readonly<Record<string, number>> = {
  lock: 0xf0,
  rep: 0xf3,
  repe: 0xf3,
  repz: 0xf3,
  repne: 0xf2,
  repnz: 0xf2,
  bnd: 0xf2,
  notrack: 0x3e,
  data16: 0x66,
  addr32: 0x67,
  cs: 0x2e,
  ds: 0x3e,
  es: 0x26,
  fs: 0x64,
  gs: 0x65,
  ss: 0x36,
};

/** Condition codes by number, first Intel's spelling as iced-x86 has it, then the others. */
const CONDITIONS: readonly (readonly string[])[] = [
  ["o"],
  ["no"],
  ["b", "c", "nae"],
  ["ae", "nb", "nc"],
  ["e", "z"],
  ["ne", "nz"],
  ["be", "na"],
  ["a", "nbe"],
  ["s"],
  ["ns"],
  ["p", "pe"],
  ["np", "po"],
  ["l", "nge"],
  ["ge", "nl"],
  ["le", "ng"],
  ["g", "nle"],
];

/** Number of the condition that ends a `jcc`, `setcc` or `cmovcc`. */
export const CONDITION_NUMBERS: ReadonlyMap<string, number> = new Map(
  CONDITIONS.flatMap((names, number) => names.map((name) => [name, number] as const)),
);

/** AT&T names that are not Intel's plus a suffix. */
const INTEL_NAMES: Readonly<Record<string, readonly string[]>> = {
  movabs: ["mov"],
  movabsq: ["mov"],
  movabsl: ["mov"],
  movabsw: ["mov"],
  movabsb: ["mov"],
  sal: ["shl"],
  cbtw: ["cbw"],
  cwtl: ["cwde"],
  cltq: ["cdqe"],
  cwtd: ["cwd"],
  cltd: ["cdq"],
  cqto: ["cqo"],
  pushf: ["pushfq"],
  popf: ["popfq"],
  pushfw: ["pushf"],
  popfw: ["popf"],
  iret: ["iretd"],
  iretl: ["iretd"],
  iretw: ["iret"],
  sysretl: ["sysret"],
  sysexitl: ["sysexit"],
  lret: ["retf"],
  lcall: ["call"],
  ljmp: ["jmp"],
  ud2a: ["ud2"],
  xlat: ["xlatb"],
  fwait: ["wait"],
  fxsaveq: ["fxsave64"],
  fxrstorq: ["fxrstor64"],
};

/** Intel's names that `mnemonic` may stand for, as `{ name, suffix }`; suffix is the size letter taken off, or "". */
export function* intelNames(mnemonic: string): Generator<{ name: string; suffix: string }> {
  const last = mnemonic.at(-1)!;
  yield* spellings(mnemonic, "");
  if (last in SUFFIXES) yield* spellings(mnemonic.slice(0, -1), last);
  const extension = /^mov([sz])([bwl])([wlq])?$/.exec(mnemonic);
  if (extension) {
    yield { name: extension[1] === "z" ? "movzx" : "movsx", suffix: extension[2]! };
    if (mnemonic === "movslq" || mnemonic === "movsl") yield { name: "movsxd", suffix: "l" };
  }
  if (/^(movs|stos|lods|scas|cmps|ins|outs)l$/.test(mnemonic))
    yield { name: `${mnemonic.slice(0, -1)}d`, suffix: "" };
  if (/^(movs|stos|lods|scas|cmps|ins|outs)$/.test(mnemonic))
    for (const size of "bwdq") yield { name: mnemonic + size, suffix: "" };
}

function* spellings(name: string, suffix: string): Generator<{ name: string; suffix: string }> {
  yield { name, suffix };
  for (const intel of INTEL_NAMES[name] ?? []) yield { name: intel, suffix };
  const conditional = /^(set|cmov)(\w+)$/.exec(name);
  const number = conditional && CONDITION_NUMBERS.get(conditional[2]!);
  if (conditional && number !== null && number !== undefined)
    yield { name: conditional[1]! + CONDITIONS[number]![0]!, suffix };
}

/** Instructions whose size nothing tells when they have only memory and immediate operands. */
export const NEEDS_SIZE: ReadonlySet<string> = new Set(
  "mov add or adc sbb and sub xor cmp test inc dec neg not mul imul div idiv shl sal shr sar rol ror rcl rcr bt bts btr btc nop movzx movsx".split(
    " ",
  ),
);

/** Instructions with operands that need not be written: strings, ports, a count of one or of %cl. */
export function hasImpliedOperands(intel: string): boolean {
  return /^(movs|stos|lods|scas|cmps|ins|outs)[bwdq]$|^(in|out|xlatb|imul|sh[lr]d?|sar|ro[lr]|rc[lr]|monitor|mwait|umonitor)$/.test(
    intel,
  );
}

/** Instructions that do not care which operand comes first. */
export const COMMUTES: ReadonlySet<string> = new Set(["xchg", "test"]);

/** Instructions that read 16 bits of any register; iced-x86 shows the 32-bit one. */
export const TAKES_WORDS: ReadonlySet<string> = new Set(["lldt", "ltr", "verr", "verw", "lmsw"]);

/** Instructions whose operand is always a register, which GNU as allows no suffix. */
export const TAKES_NO_SUFFIX: ReadonlySet<string> = new Set([
  "rdfsbase",
  "wrfsbase",
  "rdgsbase",
  "wrgsbase",
  "rdrand",
  "rdseed",
]);
