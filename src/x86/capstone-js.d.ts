// What we use of @alexaltea/capstone-js 5.0.9, which has no types of its own. Its `detail` is misread: not here.

declare module "@alexaltea/capstone-js" {
  interface CapstoneInstruction {
    readonly address: bigint;
    readonly size: number;
    readonly mnemonic: string;
    readonly op_str: string;
  }
  interface Capstone {
    /** At most `max` instructions up to the first undecodable byte. Throws a string when there is not even one. */
    disasm(code: Uint8Array, address: bigint, max: number): CapstoneInstruction[];
    option(option: number, value: number): void;
    close(): void;
  }
  interface Module {
    readonly Capstone: new (arch: number, mode: number) => Capstone;
    readonly ARCH_X86: number;
    readonly MODE_64: number;
    readonly OPT_SYNTAX: number;
    readonly OPT_SYNTAX_ATT: number;
  }

  export type { Capstone, CapstoneInstruction, Module };
  export default function MCapstone(): Promise<Module>;
}
