// A vCPU's registers in host memory, and guest memory as the vCPU sees it.
//
// For what TypeScript does on the vCPU's behalf: exception delivery and system instructions. Lifted code
// has its own way to both; it needs no privilege checks of memory, because TLB and code caches are apart for
// the two levels.

import { type Addr, isCanonical, offset, PAGE_SIZE, pageOf } from "../base/addr.ts";
import { CR0, CR4, EFER, FLAG, FLAGS_ALWAYS_ONE, type Gpr } from "../x86/register.ts";
import { EMPTY_PAGE, EMPTY_RIP, STATE } from "../x86/state.ts";
import { type Fault, PAGE_FAULT } from "./exit.ts";
import { readFlags, writeFlags } from "./flags.ts";
import type { Host, HostAddress } from "./host.ts";
import type { Memory, Page } from "./memory.ts";
import { DR6_FIXED, DR7_FIXED, type Processor, type StateWord } from "./system/processor.ts";

/** Selectors that a machine starts with (Linux arch/x86/include/asm/segment.h). */
const KERNEL_CS = 0x10n;
const KERNEL_DS = 0x18n;

const ALIGNMENT_CHECK = Number(FLAG.AC);
/** What code may access, and what comes between its instructions, is decided by these: all but dr6 of the debug registers. */
const DECIDING: ReadonlySet<StateWord> = new Set(["cr0", "cr4", "cpl", "dr"]);
const STATUS = 6;

/** What the vCPU holds that follows from these words. */
export interface Decided {
  forget(): void;
  /** What the kernel may access, as AC and supervisor access prevention have it. */
  forgetKernelAccess(): void;
}

export class RegisterFile implements Processor {
  /** Told of every access that is made here: data breakpoints may lie there. */
  accessed: (at: Addr, size: number, write: boolean) => void = () => {};
  /** Told of the same with values, a word at a time, once they are made; absent while nothing is traced. */
  traced: ((write: boolean, at: Addr, size: number, value: bigint) => void) | undefined;
  private readonly host: Host;
  private readonly memory: Memory;
  private readonly cpu: HostAddress;
  private readonly decided: Decided;

  constructor(host: Host, memory: Memory, cpu: HostAddress, decided: Decided) {
    this.host = host;
    this.memory = memory;
    this.cpu = cpu;
    this.decided = decided;
    this.put("cs", KERNEL_CS);
    this.put("ss", KERNEL_DS);
    this.put("cr0", CR0.PE | CR0.WP | CR0.PG);
    this.put("cr4", CR4.FSGSBASE);
    this.put("efer", EFER.SCE | EFER.LME | EFER.LMA | EFER.NXE);
    this.put("xcr0", 1n);
    this.put("shadow", EMPTY_RIP);
    this.put("dr", DR6_FIXED, STATUS);
    this.put("dr", DR7_FIXED, 7);
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
    const before = this.low(STATE.systemFlags);
    writeFlags(this.host, this.cpu, flags);
    // With supervisor access prevention, AC decides what the kernel may touch.
    const changed = (before ^ this.low(STATE.systemFlags)) & ALIGNMENT_CHECK;
    if (changed !== 0 && (this.getWord("cr4") & CR4.SMAP) !== 0n) this.decided.forgetKernelAccess();
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
    const decides = DECIDING.has(name) && !(name === "dr" && index === STATUS);
    const before = decides ? this.getWord(name, index) : value;
    this.put(name, value, index);
    if (before !== value) this.decided.forget();
  }

  private put(name: StateWord, value: bigint, index = 0): void {
    this.host.i64[((this.cpu + STATE[name]) >> 3) + index] = BigInt.asIntN(64, value);
  }

  /** The low half of the word at an offset of the state, signed. */
  low(offset: number): number {
    return this.host.i32[(this.cpu + offset) >> 2]!;
  }

  setLow(offset: number, value: number): void {
    this.host.i32[(this.cpu + offset) >> 2] = value;
  }

  setPrivilege(level: 0 | 3): void {
    this.put("cpl", BigInt(level));
    this.put("secondReadTlb", EMPTY_PAGE); // the one entry that both levels use
  }

  readLinear(at: bigint, size: number, user: boolean): bigint | Fault {
    const checked = this.check(at, size, user, false);
    if (typeof checked !== "number") return checked;
    const value = this.readChecked(checked, size);
    this.traced?.(false, checked, size, value);
    return value;
  }

  writeBytes(at: bigint, value: bigint, size: number, user: boolean): Fault | undefined {
    const checked = this.check(at, size, user, true);
    if (typeof checked !== "number") return checked;
    this.memory.write(
      checked,
      Uint8Array.from({ length: size }, (_, n) => Number((value >> BigInt(8 * n)) & 0xffn)),
      this.cpu,
    );
    for (let done = 0; done < size; done += 8)
      this.traced?.(true, offset(checked, done), Math.min(8, size - done), value >> BigInt(8 * done));
    return undefined;
  }

  checkWrite(at: bigint, size: number, user: boolean): Fault | undefined {
    const checked = this.check(at, size, user, true);
    return typeof checked === "number" ? undefined : checked;
  }

  writeLinear(at: bigint, parts: readonly bigint[], user: boolean): Fault | undefined {
    const checked = this.check(at, 8 * parts.length, user, true);
    if (typeof checked !== "number") return checked;
    const bytes = new DataView(new ArrayBuffer(8 * parts.length));
    for (const [n, part] of parts.entries()) bytes.setBigUint64(8 * n, BigInt.asUintN(64, part), true);
    this.memory.write(checked, new Uint8Array(bytes.buffer), this.cpu);
    for (const [n, part] of parts.entries()) this.traced?.(true, offset(checked, 8 * n), 8, part);
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
    const allowed = (this.low(STATE.systemFlags) & ALIGNMENT_CHECK) !== 0 && !this.user;
    const smap = (this.getWord("cr4") & CR4.SMAP) !== 0n && !allowed;
    const prevented = !user && access.user && smap;
    return readOnly || supervisor || prevented ? code | PAGE_FAULT.present : undefined;
  }

  /** The same for a fetch. */
  fetchDenial(page: Page | undefined, user: boolean): number | undefined {
    const code = PAGE_FAULT.fetch | (user ? PAGE_FAULT.user : 0);
    if (page === undefined) return code;
    const { access } = page;
    const smep = !user && access.user && (this.getWord("cr4") & CR4.SMEP) !== 0n;
    return !access.execute || (user && !access.user) || smep ? code | PAGE_FAULT.present : undefined;
  }

  private readChecked(at: Addr, size: number): bigint {
    const within = at - pageOf(at);
    if (size === 8 && within <= PAGE_SIZE - 8)
      return this.host.view.getBigUint64(this.memory.find(at)!.frame.at + within, true);
    let value = 0n;
    for (const [n, byte] of this.memory.read(at, size).entries()) value |= BigInt(byte) << BigInt(8 * n);
    return value;
  }

  private check(at: bigint, size: number, user: boolean, write: boolean): Addr | Fault {
    const signed = BigInt.asIntN(64, at);
    if (!isCanonical(signed) || !isCanonical(signed + BigInt(size - 1)))
      return { vector: "#GP", errorCode: 0 };
    const start = Number(signed) as Addr;
    for (let page = pageOf(start); page < start + size; page = (page + PAGE_SIZE) as Addr) {
      const errorCode = this.denial(this.memory.find(page), user, write);
      if (errorCode !== undefined) {
        return { vector: "#PF", errorCode, address: Math.max(page, start) as Addr, size };
      }
    }
    this.accessed(start, size, write);
    return start;
  }
}
