// docs/INSTRUCTIONS.md: which instructions can be executed, which cannot, and what those are.

import type { Form, InstructionSet } from "../x86/instructionSet.ts";

/** What is not implemented, by mnemonic; by CPUID feature where a feature is one thing. */
const WHAT: Record<string, string> = {
  ...each("call jmp", "far, through memory"),
  ...each("in out insb insw insd outsb outsw outsd", "ports"),
  ...each("lss lfs lgs", "loads of a far pointer"),
  ...each("lmsw", "control registers"),
  ...each("sysret sysexit", "return to code that is not of 64 bits"),
  ...each("wait", "x87"),
  ...each("xabort xbegin xend xtest xresldtrk xsusldtrk", "transactional memory"),
  CLZERO: "AMD's",
  ENQCMD: "commands to devices",
  HRESET: "processor history",
  INVLPGB: "AMD's",
  INVPCID: "caches and the TLB",
  LKGS: "segment bases",
  MCOMMIT: "AMD's",
  MONITOR: "waiting for a store",
  MONITORX: "waiting for a store, AMD's",
  MSRLIST: "model-specific registers",
  PCONFIG: "memory encryption",
  PKU: "protection keys",
  PTWRITE: "processor trace",
  RDPMC: "performance counters",
  RDPRU: "AMD's",
  UINTR: "user interrupts",
  WAITPKG: "waiting for a store",
  WRMSRNS: "model-specific registers",
};

/** The document. Throws Error for what is not implemented and has no word said about it here. */
export function renderInstructions({ forms, invalid }: InstructionSet): string {
  const lifted = forms.filter((form) => form.lifted);
  const missing = forms.filter((form) => !form.lifted);
  return `<!-- Written by \`npm run instructions\`. -->

# Instructions

What the decoder knows in 64-bit mode, ${forms.length} opcodes of ${names(forms)} instructions, without x87, vectors, and what
virtual machines, enclaves and the like brought with them (of which only what is listed is executed). Opcodes that differ in operand size
alone are one. Features are named where not every processor of 64 bits has them.

## Executed: ${lifted.length} opcodes, ${names(lifted)} instructions

${table(["instruction", "opcodes", "feature"], lifted, feature)}

## Not executed: ${missing.length} opcodes, ${names(missing)} instructions

These stop the machine by name.

${table(["instruction", "opcodes", "what it is"], missing, what)}

## Not in 64-bit mode

\`#UD\` here, and instructions elsewhere.

${table(["instruction", "opcodes"], invalid)}
`;
}

function what({ mnemonic, feature, privileged }: Form): string {
  const said = WHAT[feature] ?? WHAT[mnemonic];
  if (said === undefined) throw new Error(`${mnemonic} (${feature}) is not implemented: say what it is`);
  return privileged ? `${said}; privileged` : said;
}

/** Those that the first 64-bit processor had are not worth a word. */
function feature({ feature }: Form): string {
  const old =
    /^(?:INTEL\d+|X64|CMOV|CPUID|CX8|FXSR|MSR|MULTIBYTENOP|PAUSE|SEP|SSE2?|SYSCALL|TSC|CLFSH|PREFETCHW)$/;
  return old.test(feature) ? "" : feature;
}

function names(forms: readonly Form[]): number {
  return new Set(forms.map(({ mnemonic }) => mnemonic)).size;
}

/** A row for each mnemonic, and for each different `remark` on its forms. */
function table(titles: readonly string[], forms: readonly Form[], remark = (_: Form) => ""): string {
  const rows = new Map<string, string[]>();
  for (const form of forms) {
    const key = `${form.mnemonic}|${remark(form)}`;
    const row = rows.get(key) ?? [];
    rows.set(key, [...row, form.opcode]);
  }
  const lines = [...rows].map(([key, opcodes]) => {
    const [mnemonic, said] = key.split("|");
    return [mnemonic!, opcodes.map((opcode) => `\`${opcode}\``).join(", "), said!].slice(0, titles.length);
  });
  return [titles, titles.map(() => "---"), ...lines].map((cells) => `| ${cells.join(" | ")} |`).join("\n");
}

function each(mnemonics: string, said: string): Record<string, string> {
  return Object.fromEntries(mnemonics.split(" ").map((mnemonic) => [mnemonic, said]));
}
