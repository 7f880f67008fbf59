// The call chain kept by decoding calls and returns as they are stepped over: what the machine's own record is
// held against. Knows nothing of that record.

import type { Addr } from "../../src/base/addr.ts";
import type { Machine } from "../../src/machine/machine.ts";
import type { Vcpu } from "../../src/machine/vcpu.ts";
import { decode, MAX_LENGTH, Mnemonic } from "../../src/x86/decode.ts";

export class ShadowStack {
  private readonly machine: Machine;
  private readonly vcpu: Vcpu;
  private readonly frames: { readonly returnAddress: Addr; readonly slot: Addr }[] = [];

  constructor(machine: Machine, vcpu: Vcpu) {
    this.machine = machine;
    this.vcpu = vcpu;
  }

  /** Innermost first. */
  get returns(): Addr[] {
    return this.frames.map(({ returnAddress }) => returnAddress).reverse();
  }

  get slots(): Addr[] {
    return this.frames.map(({ slot }) => slot).reverse();
  }

  /** To be called before each step. */
  note(): void {
    const { vcpu, machine } = this;
    const decoded = decode(machine.memory.read(vcpu.rip, MAX_LENGTH), vcpu.rip);
    if (decoded.kind !== "instruction") throw new Error("stepping over something that is no instruction");
    const { mnemonic, next } = decoded.instruction;
    if (mnemonic === Mnemonic.Call) {
      this.frames.push({ returnAddress: next, slot: (vcpu.rsp - 8) as Addr });
    } else if (mnemonic === Mnemonic.Ret) {
      const frame = this.frames.pop();
      if (frame?.slot !== vcpu.rsp) throw new Error("a return that no call matches");
    }
  }
}
