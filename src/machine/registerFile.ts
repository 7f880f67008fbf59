// A vCPU's registers in host memory, and guest memory as the vCPU sees it.
//
// For what TypeScript does on the vCPU's behalf: exception delivery and system instructions. Lifted code
// has its own way to both; it needs no privilege checks of memory, because TLB and code caches are emptied
// when the level changes.

import { type Addr, isCanonical, pagesOf } from "../base/addr.ts";
import { CR0, CR4, EFER, FLAG, FLAGS_ALWAYS_ONE, type Gpr } from "../x86/register.ts";
import { EMPTY_RIP, STATE } from "../x86/state.ts";
import { type Fault, PAGE_FAULT } from "./exit.ts";
import { readFlags, writeFlags } from "./flags.ts";
import type { Host, HostAddress } from "./host.ts";
import type { Memory, Page } from "./memory.ts";
import { DR6_FIXED, DR7_FIXED, type Processor, type StateWord } from "./system/processor.ts";

/** Selectors that a machine starts with (Linux arch/x86/include/asm/segment.h). */
const KERNEL_CS = 0x10n;
const KERNEL_DS = 0x18n;

const ALIGNMENT_CHECK = Number(FLAG.AC);

export class RegisterFile implements Processor {
  /** Told of every access that is made here: data breakpoints may lie there. */
  accessed: (at: Addr, size: number, write: boolean) => void = () => {};
  private readonly host: Host;
  private readonly memory: Memory;
  private readonly cpu: HostAddress;
  private readonly flush: () => void;

  /** `flush` drops what TLB and code caches hold, which is always of one privilege level. */
  constructor(host: Host, memory: Memory, cpu: HostAddress, flush: () => void) {
    this.host = host;
    this.memory = memory;
    this.cpu = cpu;
    this.flush = flush;
    this.setWord("cs", KERNEL_CS);
    this.setWord("ss", KERNEL_DS);
    this.setWord("cr0", CR0.PE | CR0.WP | CR0.PG);
    this.setWord("cr4", CR4.FSGSBASE);
    this.setWord("efer", EFER.SCE | EFER.LME | EFER.LMA | EFER.NXE);
    this.setWord("xcr0", 1n);
    this.setWord("shadow", EMPTY_RIP);
    this.setWord("dr", DR6_FIXED, 6);
    this.setWord("dr", DR7_FIXED, 7);
    this.rflags = FLAGS_ALWAYS_ONE;
  }

  /** True at privilege level 3. */
  get user(): boolean {
    return this.host.i32[(this.cpu + STATE.cpl) >> 2] !== 0;
  }

  get rip(): Addr {
    return this.host.getNumber(this.cpu + STATE.rip) as Addr;
  }

  set rip(at: Addr) {
    this.host.setNumber(this.cpu + STATE.rip, at);
  }

  get rflags(): bigint {
    return readFlags(this.host, this.cpu);
  }

  set rflags(flags: bigint) {
    const before = this.low("systemFlags");
    writeFlags(this.host, this.cpu, flags);
    // With supervisor access prevention, AC decides what the kernel may touch.
    const changed = (before ^ this.low("systemFlags")) & ALIGNMENT_CHECK;
    if (changed !== 0 && (this.getWord("cr4") & CR4.SMAP) !== 0n) this.flush();
  }

  getRegister(reg: Gpr): bigint {
    return BigInt.asUintN(64, this.host.i64[(this.cpu >> 3) + reg]!);
  }

  setRegister(reg: Gpr, value: bigint): void {
    this.host.i64[(this.cpu >> 3) + reg] = BigInt.asIntN(64, value);
  }

  getWord(name: StateWord, index = 0): bigint {
    return BigInt.asUintN(64, this.host.i64[((this.cpu + STATE[name]) >> 3) + index]!);
  }

  setWord(name: StateWord, value: bigint, index = 0): void {
    this.host.i64[((this.cpu + STATE[name]) >> 3) + index] = BigInt.asIntN(64, value);
  }

  /** Half-word `half` from the start of a word, signed: its low half if not given. */
  low(name: StateWord, half = 0): number {
    return this.host.i32[((this.cpu + STATE[name]) >> 2) + half]!;
  }

  setLow(name: StateWord, value: number): void {
    this.host.i32[(this.cpu + STATE[name]) >> 2] = value;
  }

  setPrivilege(level: 0 | 3): void {
    if (this.user === (level === 3)) return;
    this.setWord("cpl", BigInt(level));
    this.flush();
  }

  flushTlb(): void {
    this.flush();
  }

  readLinear(at: bigint, size: number, user: boolean): bigint | Fault {
    const checked = this.check(at, size, user, false);
    if (typeof checked !== "number") return checked;
    let value = 0n;
    for (const [n, byte] of this.memory.read(checked, size).entries()) value |= BigInt(byte) << BigInt(8 * n);
    return value;
  }

  writeBytes(at: bigint, value: bigint, size: number, user: boolean): Fault | undefined {
    const checked = this.check(at, size, user, true);
    if (typeof checked !== "number") return checked;
    this.memory.write(
      checked,
      Uint8Array.from({ length: size }, (_, n) => Number((value >> BigInt(8 * n)) & 0xffn)),
    );
    return undefined;
  }

  writeLinear(at: bigint, parts: readonly bigint[], user: boolean): Fault | undefined {
    const checked = this.check(at, 8 * parts.length, user, true);
    if (typeof checked !== "number") return checked;
    const bytes = new DataView(new ArrayBuffer(8 * parts.length));
    for (const [n, part] of parts.entries()) bytes.setBigUint64(8 * n, BigInt.asUintN(64, part), true);
    this.memory.write(checked, new Uint8Array(bytes.buffer));
    return undefined;
  }

  /** Why code of this level may not access `page`, as an error code; undefined if it may. */
  denial(page: Page | undefined, user: boolean, write: boolean): number | undefined {
    const code = (write ? PAGE_FAULT.write : 0) | (user ? PAGE_FAULT.user : 0);
    if (page === undefined) return code;
    const { access } = page;
    const readOnly = write && !access.write && (user || (this.getWord("cr0") & CR0.WP) !== 0n);
    const supervisor = user && !access.user;
    // Supervisor access prevention: user pages are out of the kernel's reach unless AC is set, which means
    // nothing for what the processor does by itself while user code runs (SDM vol. 3, 4.6.1).
    const allowed = (this.low("systemFlags") & ALIGNMENT_CHECK) !== 0 && !this.user;
    const smap = (this.getWord("cr4") & CR4.SMAP) !== 0n && !allowed;
    const prevented = !user && access.user && smap;
    return readOnly || supervisor || prevented ? code | PAGE_FAULT.present : undefined;
  }

  /** Why code of this level may not be fetched from `page`. */
  fetchDenial(page: Page | undefined): number | undefined {
    const { user } = this;
    const code = PAGE_FAULT.fetch | (user ? PAGE_FAULT.user : 0);
    if (page === undefined) return code;
    const { access } = page;
    const smep = !user && access.user && (this.getWord("cr4") & CR4.SMEP) !== 0n;
    return !access.execute || (user && !access.user) || smep ? code | PAGE_FAULT.present : undefined;
  }

  private check(at: bigint, size: number, user: boolean, write: boolean): Addr | Fault {
    const signed = BigInt.asIntN(64, at);
    if (!isCanonical(signed) || !isCanonical(signed + BigInt(size - 1)))
      return { vector: "#GP", errorCode: 0 };
    const start = Number(signed) as Addr;
    for (const page of pagesOf(start, size)) {
      const errorCode = this.denial(this.memory.find(page), user, write);
      if (errorCode !== undefined) {
        return { vector: "#PF", errorCode, address: Math.max(page, start) as Addr, size };
      }
    }
    this.accessed(start, size, write);
    return start;
  }
}
