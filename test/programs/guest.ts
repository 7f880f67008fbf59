// One level's programs in a machine of their own: called stepped or run, their globals read and put back.

import { type Addr, offset, PAGE_SIZE } from "../../src/base/addr.ts";
import type { Image } from "../../src/image/image.ts";
import { KERNEL_TEXT, MODULE_TEXT, STACKS } from "../../src/image/layout.ts";
import { link } from "../../src/image/link.ts";
import { load } from "../../src/image/load.ts";
import type { Exit } from "../../src/machine/exit.ts";
import { Machine } from "../../src/machine/machine.ts";
import type { Vcpu } from "../../src/machine/vcpu.ts";
import type { ObjectFile } from "../../src/x86/object.ts";

const STACK_SIZE = 65536;
/** call *%rax; vmcall */
const CALLER = Uint8Array.of(0xff, 0xd0, 0x0f, 0x01, 0xc1);
/** No call takes nearly as many instructions. */
const LIMIT = 5_000_000;

export interface Outcome {
  /** The word returned, in hexadecimal; or how it stopped instead. */
  readonly result: string;
  readonly instructions: number;
}

export type Drive = (vcpu: Vcpu) => Exit | undefined;

export const run: Drive = (vcpu) => vcpu.run({ budget: LIMIT });

export const step: Drive = (vcpu) => {
  for (let n = 0; n < LIMIT; n++) {
    const exit = vcpu.step();
    if (exit !== undefined) return exit;
  }
  return undefined;
};

export class ProgramGuest {
  readonly machine = new Machine();
  private readonly image: Image;

  constructor(objects: readonly ObjectFile[]) {
    this.image = link(objects, { text: KERNEL_TEXT });
    const { memory } = this.machine;
    load(memory, this.image);
    memory.map(MODULE_TEXT, PAGE_SIZE, { write: false, execute: true, user: false });
    memory.write(MODULE_TEXT, CALLER);
    memory.map(STACKS, STACK_SIZE, { write: true, execute: false, user: false });
  }

  /** Calls `name` with `input` in its first argument; the other registers hold nothing of the call before. */
  call(name: string, input: bigint, drive: Drive): Outcome {
    const vcpu = this.machine.vcpus[0]!;
    for (const register of ["rbx", "rcx", "rdx", "rsi", "rbp", "r8", "r9", "r10", "r11"] as const)
      vcpu.set(register, 0xdead_beef_dead_beefn);
    vcpu.set("rdi", input);
    vcpu.setNumber("rax", this.image.symbol(name).address);
    vcpu.rsp = offset(STACKS, STACK_SIZE);
    vcpu.rip = MODULE_TEXT;
    const before = vcpu.instructions;
    const exit = drive(vcpu);
    const returned = exit?.kind === "hypercall" && vcpu.rsp === offset(STACKS, STACK_SIZE);
    const result = returned ? vcpu.get("rax").toString(16) : `stopped: ${JSON.stringify(exit)}`;
    return { result, instructions: vcpu.instructions - before };
  }

  /** Makes a region of the code reachable from `name`, if none has it. */
  compile(name: string): void {
    const { address } = this.image.symbol(name);
    if (this.machine.regions.find(address) === undefined) this.machine.regions.compile(address);
    this.machine.forgetAddress(address);
  }

  /** The bytes of a program's globals, in hexadecimal. */
  globals(seed: number): string {
    const [section] = this.image.sectionsNamed(`globals_${seed}`);
    return Buffer.from(this.machine.memory.read(section!.address, section!.size)).toString("hex");
  }

  /** Where in a program's globals byte `at` is: the variable and the offset in it. */
  place(seed: number, at: number): string {
    const [section] = this.image.sectionsNamed(`globals_${seed}`);
    const address: Addr = offset(section!.address, at);
    const found = this.image.symbolAt(address);
    return found === undefined ? `+${at}` : `${found.symbol.name}+${address - found.symbol.address}`;
  }

  /** Puts all data back to what was linked. */
  reset(): void {
    for (const { address, bytes, size, write } of this.image.segments) {
      if (!write) continue;
      const whole = new Uint8Array(size);
      whole.set(bytes);
      this.machine.memory.write(address, whole);
    }
  }
}
