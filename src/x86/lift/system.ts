// Instructions that do nothing here, those that stop the machine with a value, and those that TypeScript executes.

import { ANSWER } from "../state.ts";
import type { Family, Lift } from "./definition.ts";

const nothing: Lift = () => {};
const invalid: Lift = (e) => e.stopWhen(true, ANSWER.invalidOpcode);

/** There are no caches to flush, but an address that could not be read faults. */
const touch: Lift = (e) => {
  e.check(e.address(), 1, "read");
};

/** Order and hints: every access is in program order here. */
export const hints: Family = {
  Nop: nothing,
  Endbr64: nothing,
  Pause: nothing,
  Lfence: nothing,
  Mfence: nothing,
  Sfence: nothing,
  Prefetchnta: nothing,
  Prefetcht0: nothing,
  Prefetcht1: nothing,
  Prefetcht2: nothing,
  Prefetch: nothing,
  Prefetchw: nothing,
  Prefetchwt1: nothing,
  Prefetchit0: nothing,
  Prefetchit1: nothing,
  Cldemote: nothing,
  // Encodings kept free for hints: they read nothing, not even their memory operand.
  Reservednop: nothing,
  // Hints of a kind too where control-flow enforcement is off, as it is here.
  Endbr32: nothing,
  Rdsspd: nothing,
  Rdsspq: nothing,
  Clflush: touch,
  Clflushopt: touch,
  Clwb: touch,
};

export const stops: Family = {
  Vmcall: (e) => e.retire(ANSWER.hypercall),
  Hlt: (e) => {
    e.stopWhen(e.user(), ANSWER.generalProtection);
    e.retire(ANSWER.halt);
  },
  Int3: (e) => e.retire(ANSWER.breakpoint),
  Ud0: invalid,
  Ud1: invalid,
  Ud2: invalid,
};

/** Also for forms of other instructions: moves, pushes and pops of system registers. */
export const leaveToSystem: Lift = (e) => e.stopWhen(true, ANSWER.system);

/** System instructions, which lifted code leaves to TypeScript (machine/system/systemInstruction.ts). */
export const system: Family = Object.fromEntries(
  (
    [
      ...[
        "Syscall",
        "Sysretq",
        "Iretq",
        "Iretd",
        "Iret",
        "Sysenter",
        "Sysexitq",
        "Retf",
        "Swapgs",
        "Rdmsr",
        "Wrmsr",
        "Lgdt",
        "Lidt",
        "Sgdt",
        "Sidt",
      ],
      ...["Ltr", "Str", "Lldt", "Sldt", "Verr", "Verw", "Lar", "Lsl", "Clts", "Smsw", "Invlpg", "Wbinvd"],
      ...[
        "Wbnoinvd",
        "Invd",
        "Rdfsbase",
        "Rdgsbase",
        "Wrfsbase",
        "Wrgsbase",
        "Stac",
        "Clac",
        "Cpuid",
        "Rdtsc",
      ],
      ...["Rdtscp", "Rdpid", "Rdrand", "Rdseed", "Xgetbv", "Int", "Int1", "Serialize"],
    ] as const
  ).map((name): [string, Lift] => [name, leaveToSystem]),
);
