// A small guest at low addresses, where every reference can have it, and the references that there are here.

import { type Addr, addr, offset, toWord } from "../../src/base/addr.ts";
import { Machine } from "../../src/machine/machine.ts";
import type { Vcpu } from "../../src/machine/vcpu.ts";
import { openHost } from "../../src/reference/host.ts";
import { type LockstepOptions, type LockstepResult, lockstep } from "../../src/reference/lockstep.ts";
import type { Missing, Reference } from "../../src/reference/reference.ts";
import { openUnicorn } from "../../src/reference/unicorn.ts";
import { assemble } from "../../src/x86/assemble.ts";
import type { RegisterName } from "../../src/x86/register.ts";

export const TEXT = addr(0x1000_0000);
export const DATA = addr(0x2000_0000);
export const STACK = addr(0x3000_0000);
export const STACK_TOP = offset(STACK, 0x1000);
export const TEXT_SIZE = 0x2000;
export const DATA_SIZE = 0x2000;

export const OPENERS: Readonly<Record<"unicorn" | "host", () => Promise<Reference | Missing>>> = {
  unicorn: openUnicorn,
  host: openHost,
};

/** One of each kind that there is here, and for the others the reason, which is printed. */
export async function openReferences(): Promise<Map<string, Reference | Missing>> {
  const opened = new Map<string, Reference | Missing>();
  for (const [name, open] of Object.entries(OPENERS)) {
    const reference = await open();
    if ("missing" in reference) console.log(`not compared with ${name}: ${reference.missing}`);
    opened.set(name, reference);
  }
  return opened;
}

export interface LowGuest {
  readonly machine: Machine;
  readonly vcpu: Vcpu;
  /** Where a label of the source is. */
  readonly at: (label: string) => Addr;
  /** Behind its last instruction. */
  readonly end: Addr;
}

/** Text that may write itself, data, and a stack; the vCPU is at the source's first instruction. */
export async function lowGuest(
  source: string,
  registers: Partial<Record<RegisterName, bigint>> = {},
): Promise<LowGuest> {
  const { sections, symbols } = await assemble("guest.S", source);
  const text = sections.findIndex(({ name }) => name === ".text");
  const { bytes } = sections[text]!;
  const machine = new Machine();
  const { memory } = machine;
  memory.map(TEXT, TEXT_SIZE, { write: true, execute: true, user: false });
  memory.map(DATA, DATA_SIZE, { write: true, execute: false, user: false });
  memory.map(STACK, STACK_TOP - STACK, { write: true, execute: false, user: false });
  memory.write(TEXT, new Uint8Array(TEXT_SIZE).fill(0xcc));
  memory.write(TEXT, bytes);
  const vcpu = machine.vcpus[0]!;
  vcpu.set("rsi", toWord(DATA));
  for (const [name, value] of Object.entries(registers)) vcpu.set(name as RegisterName, value);
  vcpu.rsp = STACK_TOP;
  vcpu.rflags = 0x202n;
  vcpu.rip = TEXT;
  const at = (label: string) => {
    const found = symbols.find(({ name, section }) => name === label && section === text);
    if (found === undefined) throw new Error(`no label ${label}`);
    return offset(TEXT, found.value);
  };
  return { machine, vcpu, at, end: offset(TEXT, bytes.length) };
}

/** From where the vCPU is to the end of the source. */
export function follow(
  { machine, vcpu, end }: LowGuest,
  reference: Reference,
  options: Partial<LockstepOptions> = {},
): Promise<LockstepResult> {
  return lockstep(machine, vcpu, reference, { until: end, limit: 100_000, ...options });
}

/** Makes an engine wrong: after every instruction at `at`, `spoil` has its way. */
export function spoilAfter({ vcpu }: LowGuest, at: Addr, spoil: () => void): void {
  const step = vcpu.step.bind(vcpu);
  vcpu.step = () => {
    const { rip } = vcpu;
    const exit = step();
    if (rip === at) spoil();
    return exit;
  };
}
