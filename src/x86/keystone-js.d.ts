// What we use of @alexaltea/keystone-js 0.9.2, which has no types of its own.

declare module "@alexaltea/keystone-js" {
  interface Keystone {
    /** Never frees anything on failure; `failed` tells, `errno` says why. `count` counts statements. */
    asm(assembly: string, address?: number): { mc: Uint8Array; count: number; failed: boolean };
    option(option: number, value: number): void;
    errno(): number;
    close(): void;
  }
  interface Module {
    readonly Keystone: new (arch: number, mode: number) => Keystone;
    readonly ARCH_X86: number;
    readonly MODE_64: number;
    readonly OPT_SYNTAX: number;
    readonly OPT_SYNTAX_ATT: number;
    strerror(code: number): string;
  }

  export type { Keystone, Module };
  export default function MKeystone(options?: { printErr?: (line: string) => void }): Promise<Module>;
}
