// Which instructions serialise: what a processor fetches after one is what memory has (SDM vol. 3, 8.3).

import { type Instruction, Mnemonic } from "../../x86/decode.ts";

/** Besides moves. The registers that the manual exempts wrmsr for are none of those that are here (msr.ts). */
const SERIALISING: ReadonlySet<Mnemonic> = new Set([
  Mnemonic.Cpuid,
  Mnemonic.Iretq,
  Mnemonic.Iretd,
  Mnemonic.Iret,
  Mnemonic.Serialize,
  Mnemonic.Invd,
  Mnemonic.Invlpg,
  Mnemonic.Wbinvd,
  Mnemonic.Lgdt,
  Mnemonic.Lidt,
  Mnemonic.Lldt,
  Mnemonic.Ltr,
  Mnemonic.Wrmsr,
]);

/** Whether it does, once it has retired. */
export function serialises({ mnemonic, operands: [to] }: Instruction): boolean {
  if (mnemonic !== Mnemonic.Mov) return SERIALISING.has(mnemonic);
  return to?.kind === "debug" || (to?.kind === "control" && to.number !== 8);
}
