// A function in a machine of its own, as a program of a user's: low addresses, a user's rights, no laboratory around it.
//
// What the host's processor can have too (reference/host.ts). The laboratory's kernel is there for its symbols alone:
// every call site is a NOP, and what needs per-CPU data or tasks faults.

import { type Addr, addr, offset, toWord } from "./base/addr.ts";
import { readInput, readPackageFile } from "./base/file.ts";
import { refuse } from "./base/refuse.ts";
import { NOP5 } from "./ftrace/site.ts";
import { KERNEL_PARTS } from "./guest.ts";
import { CodeMap } from "./image/codeMap.ts";
import type { Image } from "./image/image.ts";
import { link } from "./image/link.ts";
import { load } from "./image/load.ts";
import { ARGUMENTS } from "./kernel/kernel.ts";
import { readObject } from "./lab.ts";
import { Machine } from "./machine/machine.ts";
import type { Vcpu } from "./machine/vcpu.ts";
import { RFLAGS_AT_REST } from "./x86/register.ts";

/** Below 2 GiB, which code of the kernel's model reaches from there. */
const TEXT = addr(0x1000_0000);
const STACK = addr(0x3000_0000);
const STACK_SIZE = 0x1_0000;
/** Where a call returns to: nothing is there. */
export const RETURN = addr(0x0fff_f000);
/** Selectors of a user's segments (Linux arch/x86/include/asm/segment.h). */
const USER_CS = 0x33n;
const USER_DS = 0x2bn;

export class UserProgram {
  readonly machine = new Machine();
  readonly code = new CodeMap();

  /** With an image of each file, by its name, linked against those before it. */
  static async open(
    files: readonly { readonly name: string; readonly path: string }[],
  ): Promise<UserProgram> {
    const program = new UserProgram();
    const kernel = KERNEL_PARTS.map((path) => readObject(path, readPackageFile(path)));
    program.load(link(await Promise.all(kernel), { text: TEXT }));
    for (const { name, path } of files) {
      const externals = (symbol: string) =>
        program.code.images.map((image) => image.exported(symbol)).find((at) => at !== undefined);
      const object = await readObject(path, readInput(path));
      const text = program.code.images.at(-1)!.end;
      program.load(link([object], { text, name, externals }));
    }
    return program;
  }

  private constructor() {
    const { memory, vcpus } = this.machine;
    memory.map(STACK, STACK_SIZE, { write: true, execute: false, user: true });
    const { system } = vcpus[0]!;
    system.setWord("cs", USER_CS);
    system.setWord("ss", USER_DS);
    system.setPrivilege(3);
  }

  /** The image that was loaded last. */
  get image(): Image {
    return this.code.images.at(-1)!;
  }

  /** Puts the vCPU at the start of a call to `target`, which returns to `RETURN`. */
  begin(target: Addr, args: readonly bigint[]): Vcpu {
    if (args.length > ARGUMENTS.length)
      refuse("too-many-arguments", { count: args.length, limit: ARGUMENTS.length });
    const vcpu = this.machine.vcpus[0]!;
    for (const [n, name] of ARGUMENTS.entries()) vcpu.set(name, args[n] ?? 0n);
    vcpu.rsp = offset(STACK, STACK_SIZE - 8);
    this.machine.memory.writeWord(vcpu.rsp, toWord(RETURN));
    vcpu.rflags = RFLAGS_AT_REST;
    vcpu.rip = target;
    return vcpu;
  }

  private load(image: Image): void {
    const { memory } = this.machine;
    load(memory, image);
    for (const site of image.mcountLocations) memory.write(site, NOP5);
    for (const { address, size, write, execute } of image.segments)
      memory.protect(address, size, { write, execute, user: true });
    this.code.addImage(image);
  }
}
