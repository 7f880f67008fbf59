// Keystone, one instruction at a time: text in, bytes out, nothing believed.
//
// It reads decimal numbers as hexadecimal, so every number it is given carries 0x; it makes absolute addresses
// rip-relative and `nopl` a prefetch, so callers check what it made (check.ts). Some operands make it exit the
// process: that is caught, the instance thrown away, and the statement refused.

import type { Keystone, Module } from "@alexaltea/keystone-js";
import { Fault, fail } from "./fault.ts";

export class KeystoneEncoder {
  private readonly engine: Keystone;
  private readonly module: Module;
  private dead = false;

  private constructor(module: Module) {
    this.module = module;
    this.engine = new module.Keystone(module.ARCH_X86, module.MODE_64);
    this.engine.option(module.OPT_SYNTAX, module.OPT_SYNTAX_ATT);
  }

  /** Starts an instance: some 30 ms. */
  static async load(): Promise<KeystoneEncoder> {
    const { default: MKeystone } = await import("@alexaltea/keystone-js");
    return new KeystoneEncoder(await MKeystone({ printErr: () => {} }));
  }

  /** False once Keystone has broken down: load another. */
  get alive(): boolean {
    return !this.dead;
  }

  /** The bytes of one AT&T instruction, a known `mnemonic`, all numbers hexadecimal. Throws Fault with Keystone's message. */
  encode(text: string, mnemonic: string): Uint8Array {
    if (this.dead) fail("Keystone broke down on an earlier statement; load the assembler again");
    const exitCode = process.exitCode;
    try {
      const { mc, failed } = this.engine.asm(text);
      if (!failed && mc.length > 0) return mc;
      const message = failed
        ? this.module.strerror(this.engine.errno()).replace(/ \(KS_ERR_\w+\)$/, "")
        : "no bytes";
      return fail(`these operands do not fit '${mnemonic}' (Keystone: ${message})`);
    } catch (error) {
      if (error instanceof Fault) throw error;
      // LLVM's fatal errors end in exit(), which Emscripten throws after setting the exit code of this process.
      this.dead = true;
      process.exitCode = exitCode;
      return fail("Keystone broke down on it");
    }
  }
}
