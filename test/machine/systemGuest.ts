// A small kernel to take exceptions in: descriptor tables, a TSS, handlers that log what they were given, user pages.
//
// Every handler appends its frame to a log in guest memory and returns; tables that a test may fill say how far
// behind the saved rip, and with which flags.

import { type Addr, addr, offset, toWord } from "../../src/base/addr.ts";
import type { Image } from "../../src/image/image.ts";
import { link } from "../../src/image/link.ts";
import type { Exit } from "../../src/machine/exit.ts";
import { Machine, type MachineOptions } from "../../src/machine/machine.ts";
import type { Vcpu } from "../../src/machine/vcpu.ts";
import { assemble } from "../../src/x86/assemble.ts";
import { GPR } from "../../src/x86/register.ts";

export const KERNEL_TEXT = addr(0xffff_ffff_8100_0000n);
export const TABLES = addr(0xffff_8880_0000_0000n);
export const KERNEL_DATA = addr(0xffff_8890_0000_0000n);
export const KERNEL_STACK_TOP = addr(0xffff_c900_0000_4000n);
export const ENTRY_STACK_TOP = addr(0xffff_c900_0001_4000n);
/** Of interrupt stack `n`, 1 to 7. */
export const istTop = (n: number): Addr => addr(0xffff_c900_0002_0000n + BigInt(n * 0x1000));
export const USER_TEXT = addr(0x40_0000);
export const USER_DATA = addr(0x60_0000);
export const USER_STACK_TOP = addr(0x7fff_f000_4000);

export const SELECTOR = { kernelCode: 0x10, kernelData: 0x18, userData: 0x2b, userCode: 0x33, tss: 0x40 };
export const GDT = TABLES;
export const IDT = offset(TABLES, 0x1000);
export const TSS = offset(TABLES, 0x2000);
const SKIP = offset(TABLES, 0x3000);
const CLEAR = offset(TABLES, 0x4000);
const SET = offset(TABLES, 0x5000);
/** A pointer to the log's end, then the log. */
const LOG = offset(TABLES, 0x8000);
const LOG_BYTES = 0x80000;

const WITH_ERROR_CODE = [8, 10, 11, 12, 13, 14, 17, 21];
/** Vectors with a gate, all of them interrupt gates to a handler `vector<n>`. */
export const VECTORS = [...Array(64).keys(), 128, 200, 255];

const HANDLERS = [
  ...VECTORS.map((n) => `vector${n}: ${WITH_ERROR_CODE.includes(n) ? "" : "pushq $0;"} pushq $${n}; jmp log`),
  // vector, error code, rip, cs, rflags, rsp, ss from 24(%rsp) on
  "log: push %rax; push %rcx; push %rdx",
  `movabs $${toWord(LOG)}, %rdx; mov (%rdx), %rax`,
  ...[24, 32, 40, 48, 56, 64, 72].map((from, n) => `mov ${from}(%rsp), %rcx; mov %rcx, ${8 * n}(%rax)`),
  "mov %cr2, %rcx; mov %rcx, 56(%rax); lea 32(%rsp), %rcx; mov %rcx, 64(%rax)",
  "add $72, %rax; mov %rax, (%rdx)",
  "mov 24(%rsp), %rax",
  `movabs $${toWord(SKIP)}, %rdx; mov (%rdx,%rax,8), %rcx; add %rcx, 40(%rsp)`,
  `movabs $${toWord(CLEAR)}, %rdx; mov (%rdx,%rax,8), %rcx; not %rcx; and %rcx, 56(%rsp)`,
  `movabs $${toWord(SET)}, %rdx; mov (%rdx,%rax,8), %rcx; or %rcx, 56(%rsp)`,
  "pop %rdx; pop %rcx; pop %rax; add $16, %rsp; iretq",
].join("\n");

export interface Logged {
  readonly vector: number;
  readonly error: bigint;
  readonly rip: Addr;
  readonly cs: bigint;
  readonly rflags: bigint;
  readonly rsp: Addr;
  readonly ss: bigint;
  readonly cr2: bigint;
  /** Where the handler's frame began: the error code, pushed by the CPU or not. */
  readonly frame: Addr;
}

export interface SystemGuest {
  readonly machine: Machine;
  readonly vcpu: Vcpu;
  /** Address of a symbol of the kernel's or the user's code. */
  at(name: string): Addr;
  log(): Logged[];
}

export interface Sources {
  /** Statements from `kernel:` on, in the kernel's text. */
  readonly kernel?: string;
  /** The same in the user's, from `user:` on. */
  readonly user?: string;
  readonly options?: MachineOptions;
}

const supervisor = (write: boolean, execute = false) => ({ write, execute, user: false });
const forUsers = (write: boolean, execute = false) => ({ write, execute, user: true });

/** Ready to run at `kernel`, in the kernel, with interrupts off. */
export async function systemGuest({
  kernel = "vmcall",
  user = "ud2",
  options,
}: Sources): Promise<SystemGuest> {
  const machine = new Machine(options);
  const { memory } = machine;
  const vcpu = machine.vcpus[0]!;
  const kernelImage = await kernelOf(kernel);
  const userImage = link([await assemble("user.S", `user: ${user}`)], {
    text: USER_TEXT,
    externals: (name) => kernelImage.symbols.find((symbol) => symbol.name === name)?.address,
  });
  memory.map(KERNEL_TEXT, 0x4000, supervisor(false, true));
  memory.map(USER_TEXT, 0x2000, forUsers(false, true));
  memory.map(TABLES, 0x8000 + LOG_BYTES, supervisor(true));
  memory.map(KERNEL_DATA, 0x4000, supervisor(true));
  memory.map(USER_DATA, 0x4000, forUsers(true));
  for (const top of [KERNEL_STACK_TOP, ENTRY_STACK_TOP])
    memory.map(offset(top, -0x4000), 0x4000, supervisor(true));
  for (let n = 1; n <= 7; n++) memory.map(offset(istTop(n), -0x1000), 0x1000, supervisor(true));
  memory.map(offset(USER_STACK_TOP, -0x4000), 0x4000, forUsers(true));
  for (const image of [kernelImage, userImage]) {
    for (const segment of image.segments) memory.write(segment.address, segment.bytes);
  }
  const at = (name: string): Addr => {
    const found = [...kernelImage.symbols, ...userImage.symbols].find((symbol) => symbol.name === name);
    if (found === undefined) throw new Error(`no symbol ${name}`);
    return found.address;
  };
  const guest: SystemGuest = { machine, vcpu, at, log: () => readLog(machine) };
  memory.writeWord(LOG, toWord(offset(LOG, 8)));
  writeTables(guest);
  reset(guest);
  return guest;
}

const images = new Map<string, Image>();

/** Linked once for each source. */
async function kernelOf(source: string): Promise<Image> {
  const text = `${global(source)}\nkernel: ${source}\n${HANDLERS}`;
  const made = images.get(text) ?? link([await assemble("kernel.S", text)], { text: KERNEL_TEXT });
  images.set(text, made);
  return made;
}

const global = (text: string): string =>
  [...text.matchAll(/^\s*([a-z]\w*):/gm)].map(([, name]) => `.globl ${name}`).join("\n");

function writeTables({ machine: { memory }, vcpu, at }: SystemGuest): void {
  const descriptors: Record<number, bigint> = {
    16: 0x00af_9b00_0000_ffffn,
    24: 0x00cf_9300_0000_ffffn,
    40: 0x00cf_f300_0000_ffffn,
    48: 0x00af_fb00_0000_ffffn,
  };
  for (const [selector, word] of Object.entries(descriptors))
    memory.writeWord(offset(GDT, Number(selector)), word);
  const base = toWord(TSS);
  const low = 0x67n | ((base & 0xffffffn) << 16n) | (0x8bn << 40n) | (((base >> 24n) & 0xffn) << 56n);
  memory.writeWord(offset(GDT, 0x40), low);
  memory.writeWord(offset(GDT, 0x48), base >> 32n);
  memory.writeWord(offset(TSS, 4), toWord(ENTRY_STACK_TOP));
  for (let n = 1; n <= 7; n++) memory.writeWord(offset(TSS, 0x24 + 8 * (n - 1)), toWord(istTop(n)));
  for (const n of VECTORS) setGate({ machine: { memory } as Machine }, n, { handler: at(`vector${n}`) });
  const { system } = vcpu;
  system.setWord("gdtBase", toWord(GDT));
  system.setWord("gdtLimit", 0x4fn);
  system.setWord("idtBase", toWord(IDT));
  system.setWord("idtLimit", 0xfffn);
  system.setWord("tr", BigInt(SELECTOR.tss));
  system.setWord("tssBase", base);
  system.setWord("tssLimit", 0x67n);
}

export interface GateOptions {
  readonly handler: Addr | bigint;
  readonly selector?: number;
  readonly ist?: number;
  readonly dpl?: number;
  readonly present?: boolean;
  /** 14 interrupt gate, 15 trap gate. */
  readonly type?: number;
}

export function setGate(
  { machine: { memory } }: Pick<SystemGuest, "machine">,
  vector: number,
  { handler, selector = SELECTOR.kernelCode, ist = 0, dpl = 0, present = true, type = 14 }: GateOptions,
): void {
  const to = BigInt.asUintN(64, BigInt(handler));
  const attributes = BigInt(ist | (type << 8) | (dpl << 13) | (present ? 0x8000 : 0));
  const low =
    (to & 0xffffn) | (BigInt(selector) << 16n) | (attributes << 32n) | (((to >> 16n) & 0xffffn) << 48n);
  memory.writeWord(offset(IDT, 16 * vector), low);
  memory.writeWord(offset(IDT, 16 * vector + 8), to >> 32n);
}

/** What the handler of `vector` adds to the saved rip, and clears and sets in the saved flags. */
export function onReturn(
  { machine: { memory } }: SystemGuest,
  vector: number,
  { skip = 0, clear = 0n, set = 0n }: { skip?: number; clear?: bigint; set?: bigint },
): void {
  memory.writeWord(offset(SKIP, 8 * vector), BigInt(skip));
  memory.writeWord(offset(CLEAR, 8 * vector), clear);
  memory.writeWord(offset(SET, 8 * vector), set);
}

/** Registers zero, at `kernel` in the kernel with interrupts off; the log empty. */
export function reset({ machine: { memory }, vcpu, at }: SystemGuest): void {
  for (const name of GPR) vcpu.set(name, 0n);
  const { system } = vcpu;
  system.setWord("cs", BigInt(SELECTOR.kernelCode));
  system.setWord("ss", BigInt(SELECTOR.kernelData));
  system.setPrivilege(0);
  vcpu.rsp = KERNEL_STACK_TOP;
  vcpu.rip = at("kernel");
  vcpu.rflags = 2n;
  memory.writeWord(LOG, toWord(offset(LOG, 8)));
}

/** The same, but at `user` in user mode. */
export function resetToUser(guest: SystemGuest): void {
  reset(guest);
  const { vcpu, at } = guest;
  vcpu.system.setWord("cs", BigInt(SELECTOR.userCode));
  vcpu.system.setWord("ss", BigInt(SELECTOR.userData));
  vcpu.system.setPrivilege(3);
  vcpu.rsp = USER_STACK_TOP;
  vcpu.rip = at("user");
}

function readLog({ memory }: Machine): Logged[] {
  const end = addr(memory.readWord(LOG));
  const found: Logged[] = [];
  for (let entry = offset(LOG, 8); entry < end; entry = offset(entry, 72)) {
    const word = (n: number) => memory.readWord(offset(entry, 8 * n));
    found.push({
      vector: Number(word(0)),
      error: word(1),
      rip: addr(word(2)),
      cs: word(3),
      rflags: word(4),
      rsp: addr(word(5)),
      ss: word(6),
      cr2: word(7),
      frame: addr(word(8)),
    });
  }
  return found;
}

/** Steps until something stops it. */
export function stepAll({ vcpu }: Pick<SystemGuest, "vcpu">, limit = 100_000): Exit {
  for (let n = 0; n < limit; n++) {
    const exit = vcpu.step();
    if (exit !== undefined) return exit;
  }
  return { kind: "budget", ip: vcpu.rip };
}
