// Native Unicorn 2, the reference that the engine is checked and timed against.
//
// A thin binding through koffi: a method per call of Unicorn's C API (include/unicorn/unicorn.h),
// x86-64 only, no hooks. Both koffi and the library are optional: without them `loadUnicorn` gives
// the reason. What the guest does wrong ends a run with Unicorn's own name for it; a call that the
// library rejects throws `UnicornError`. Registers are unsigned bigints; an address may be one, or
// an `Addr`.
//
// Being timed, it is as fast as koffi allows: pointers and addresses cross as numbers (a bigint
// costs twice the call), results come back through native words instead of a typed array.

import { type Addr, addr, PAGE_SIZE } from "../base/addr.ts";
import type { Missing } from "./reference.ts";

const UC_ARCH_X86 = 4;
const UC_MODE_64 = 8;
/** UC_CTL_WRITE(UC_CTL_TB_REMOVE_CACHE, 2): forget what was translated from a range of addresses. */
const TB_REMOVE_CACHE = 9 | (2 << 26) | (1 << 30);

/** `uc_err`, by number. */
const CODES = [
  "UC_ERR_OK",
  "UC_ERR_NOMEM",
  "UC_ERR_ARCH",
  "UC_ERR_HANDLE",
  "UC_ERR_MODE",
  "UC_ERR_VERSION",
  "UC_ERR_READ_UNMAPPED",
  "UC_ERR_WRITE_UNMAPPED",
  "UC_ERR_FETCH_UNMAPPED",
  "UC_ERR_HOOK",
  "UC_ERR_INSN_INVALID",
  "UC_ERR_MAP",
  "UC_ERR_WRITE_PROT",
  "UC_ERR_READ_PROT",
  "UC_ERR_FETCH_PROT",
  "UC_ERR_ARG",
  "UC_ERR_READ_UNALIGNED",
  "UC_ERR_WRITE_UNALIGNED",
  "UC_ERR_FETCH_UNALIGNED",
  "UC_ERR_HOOK_EXIST",
  "UC_ERR_RESOURCE",
  "UC_ERR_EXCEPTION",
] as const;

export type UnicornCode = (typeof CODES)[number];

/** `uc_x86_reg` of the registers that every x86-64 instruction can name. */
const REGISTER_IDS = {
  rax: 35,
  rcx: 38,
  rdx: 40,
  rbx: 37,
  rsp: 44,
  rbp: 36,
  rsi: 43,
  rdi: 39,
  r8: 106,
  r9: 107,
  r10: 108,
  r11: 109,
  r12: 110,
  r13: 111,
  r14: 112,
  r15: 113,
  rip: 41,
  rflags: 253,
} as const;

export type UnicornRegister = keyof typeof REGISTER_IDS;

const BASE_IDS = { fs: 250, gs: 251 } as const;

/** What `state` holds: sixteen registers by number, rip, rflags. */
const STATE_IDS = Object.values(REGISTER_IDS);

/** `uc_prot`: add them up. */
export const PROT = { READ: 1, WRITE: 2, EXEC: 4, ALL: 7 } as const;

/** For `until`: not canonical, so no guest ever gets there. */
export const NOWHERE = 0x8000_0000_0000_0000n;
const NOWHERE_SIGNED = -(2 ** 63);

/** A call that the library rejected: `code` is its `uc_err`. */
export class UnicornError extends Error {
  override readonly name = "UnicornError";
  readonly code: UnicornCode;

  constructor(call: string, code: UnicornCode) {
    super(`${call}: ${code}`);
    this.code = code;
  }
}

/** The loaded library. */
export interface Unicorn {
  /** As the library states it: `2.0.1`. */
  readonly version: string;
  /** A new x86-64 engine in 64-bit mode: nothing mapped, registers 0. Close it after use. */
  open(): UnicornEngine;
}

/** Memory outside of JavaScript's, of whole pages, which an engine can map. */
export interface NativeMemory {
  readonly pointer: bigint;
  /** Where it begins for koffi. */
  readonly block: bigint;
  readonly bytes: Uint8Array;
}

/** A saved vCPU (`uc_context`): registers only, memory is not part of it. */
export interface UnicornContext {
  readonly pointer: number;
}

type Address = Addr | bigint;
type Bindings = ReturnType<typeof bind>;

/** The part of koffi 3 used here. Its own types are not imported: the build must not need the package. */
interface Koffi {
  load(path: string): {
    func<F>(name: string, result: string, parameters: readonly string[]): F;
  };
  alloc(type: string, length: number): bigint;
  free(pointer: bigint): void;
  view(pointer: bigint, bytes: number): ArrayBuffer;
}

function bind(koffi: Koffi, file: string) {
  const lib = koffi.load(file);
  const word = koffi.alloc("uint64", 1);
  const buffer = koffi.view(word, 8);
  // As uc_reg_read_batch takes them: numbers of registers, and a pointer to each one's word.
  const ids = koffi.alloc("int", STATE_IDS.length);
  new Int32Array(koffi.view(ids, 4 * STATE_IDS.length)).set(STATE_IDS);
  const state = koffi.alloc("uint64", STATE_IDS.length);
  const stateBuffer = koffi.view(state, 8 * STATE_IDS.length);
  const pointers = koffi.alloc("uint64", STATE_IDS.length);
  new BigUint64Array(koffi.view(pointers, 8 * STATE_IDS.length)).set(
    STATE_IDS.map((_, n) => state + BigInt(8 * n)),
  );
  return {
    koffi,
    ids: Number(ids),
    pointers: Number(pointers),
    state: new BigInt64Array(stateBuffer),
    stateHalves: new Int32Array(stateBuffer),
    /** The address of the one word that calls read from and write to, and two views of it. */
    word: Number(word),
    value: new BigUint64Array(buffer),
    halves: new DataView(buffer),

    version: lib.func<(major: number, minor: number) => number>("uc_version", "uint", ["size_t", "size_t"]),
    open: lib.func<(arch: number, mode: number, out: number) => number>("uc_open", "int", [
      "int",
      "int",
      "size_t",
    ]),
    close: lib.func<(uc: number) => number>("uc_close", "int", ["size_t"]),
    ctl: lib.func<(uc: number, control: number, ...typesAndValues: (string | bigint)[]) => number>(
      "uc_ctl",
      "int",
      ["size_t", "int", "..."],
    ),
    memMap: lib.func<(uc: number, at: bigint, size: number, perms: number) => number>("uc_mem_map", "int", [
      "size_t",
      "uint64",
      "size_t",
      "uint32",
    ]),
    memMapPtr: lib.func<(uc: number, at: bigint, size: number, perms: number, bytes: bigint) => number>(
      "uc_mem_map_ptr",
      "int",
      ["size_t", "uint64", "size_t", "uint32", "size_t"],
    ),
    memUnmap: lib.func<(uc: number, at: bigint, size: number) => number>("uc_mem_unmap", "int", [
      "size_t",
      "uint64",
      "size_t",
    ]),
    memWrite: lib.func<(uc: number, at: bigint, bytes: Uint8Array, size: number) => number>(
      "uc_mem_write",
      "int",
      ["size_t", "uint64", "void *", "size_t"],
    ),
    memRead: lib.func<(uc: number, at: bigint, bytes: Uint8Array, size: number) => number>(
      "uc_mem_read",
      "int",
      ["size_t", "uint64", "void *", "size_t"],
    ),
    regWrite: lib.func<(uc: number, id: number, value: number) => number>("uc_reg_write", "int", [
      "size_t",
      "int",
      "size_t",
    ]),
    regRead: lib.func<(uc: number, id: number, value: number) => number>("uc_reg_read", "int", [
      "size_t",
      "int",
      "size_t",
    ]),
    regReadBatch: lib.func<(uc: number, ids: number, pointers: number, count: number) => number>(
      "uc_reg_read_batch",
      "int",
      ["size_t", "size_t", "size_t", "int"],
    ),
    regWriteBatch: lib.func<(uc: number, ids: number, pointers: number, count: number) => number>(
      "uc_reg_write_batch",
      "int",
      ["size_t", "size_t", "size_t", "int"],
    ),
    emuStart: lib.func<
      (uc: number, begin: number | bigint, until: number | bigint, timeout: number, count: number) => number
    >("uc_emu_start", "int", ["size_t", "int64", "int64", "uint64", "size_t"]),
    contextAlloc: lib.func<(uc: number, out: number) => number>("uc_context_alloc", "int", [
      "size_t",
      "size_t",
    ]),
    contextSave: lib.func<(uc: number, context: number) => number>("uc_context_save", "int", [
      "size_t",
      "size_t",
    ]),
    contextRestore: lib.func<(uc: number, context: number) => number>("uc_context_restore", "int", [
      "size_t",
      "size_t",
    ]),
    contextFree: lib.func<(context: number) => number>("uc_context_free", "int", ["size_t"]),
  };
}

/**
 * One emulated CPU with its memory. Using it after `close` is an error of the caller that may crash.
 *
 * Either step or run an engine: between a counted run and an uncounted one Unicorn 2.0.1 drops all its
 * translations, which takes some 300 ms. And end straight-line code with a jump or int3: every first step at
 * an address translates what follows it, up to 512 instructions, and a zeroed page is all instructions.
 */
export class UnicornEngine {
  readonly #native: Bindings;
  readonly #uc: number;
  readonly #contexts = new Set<number>();
  readonly #memory = new Set<bigint>();
  /** Executable mappings, from address to size. */
  readonly #executable = new Map<bigint, number>();
  /** What the code translated so far was translated for; see `#translateFor`. */
  #until: number | bigint | null = null;
  #counted = false;

  constructor(native: Bindings) {
    this.#native = native;
    check("uc_open", native.open(UC_ARCH_X86, UC_MODE_64, native.word));
    this.#uc = Number(native.value[0]);
  }

  /** Maps zeroed memory. `at` and `size` are multiples of 4096; `perms` sums `PROT`. */
  mapMemory(at: Address, size: number, perms: number): void {
    check("uc_mem_map", this.#native.memMap(this.#uc, unsigned(at), size, perms));
    if (perms & PROT.EXEC) this.#executable.set(unsigned(at), size);
  }

  /** Zeroed memory for `mapNative`, until the engine is closed. `size` is a multiple of 4096. */
  allocate(size: number): NativeMemory {
    const { koffi } = this.#native;
    const block = koffi.alloc("uint8", size + PAGE_SIZE);
    this.#memory.add(block);
    const pointer = (block | BigInt(PAGE_SIZE - 1)) + 1n;
    const bytes = new Uint8Array(koffi.view(pointer, size));
    bytes.fill(0);
    return { pointer, block, bytes };
  }

  /** Gives back what `allocate` gave. Nothing of it may be mapped any more. */
  release({ block }: NativeMemory): void {
    this.#memory.delete(block);
    this.#native.koffi.free(block);
  }

  /** Maps `size` bytes of `memory` from `offset` on; both are multiples of 4096. What is written there shows. */
  mapNative(at: Address, memory: NativeMemory, offset: number, size: number, perms: number): void {
    const pointer = memory.pointer + BigInt(offset);
    check("uc_mem_map_ptr", this.#native.memMapPtr(this.#uc, unsigned(at), size, perms, pointer));
    if (perms & PROT.EXEC) this.#executable.set(unsigned(at), size);
  }

  /** Drops what was translated from native memory, which was written from outside. */
  forget(at: Address, size: number): void {
    this.#forget(unsigned(at), size);
  }

  /** Unmaps what one call of `mapMemory` or `mapNative` mapped. */
  unmapMemory(at: Address, size: number): void {
    check("uc_mem_unmap", this.#native.memUnmap(this.#uc, unsigned(at), size));
    this.#executable.delete(unsigned(at));
  }

  /** Writes whatever the permissions; the range must be mapped. The next fetch sees it. */
  writeMemory(at: Address, bytes: Uint8Array): void {
    if (bytes.length === 0) return;
    check("uc_mem_write", this.#native.memWrite(this.#uc, unsigned(at), bytes, bytes.length));
    // uc_mem_write alone leaves translations of the old bytes in use (2.0.1).
    this.#forget(unsigned(at), bytes.length);
  }

  readMemory(at: Address, size: number): Uint8Array {
    const bytes = new Uint8Array(size);
    check("uc_mem_read", this.#native.memRead(this.#uc, unsigned(at), bytes, size));
    return bytes;
  }

  regWrite(register: UnicornRegister, value: bigint): void {
    this.#native.value[0] = value;
    check("uc_reg_write", this.#native.regWrite(this.#uc, REGISTER_IDS[register], this.#native.word));
  }

  regRead(register: UnicornRegister): bigint {
    check("uc_reg_read", this.#native.regRead(this.#uc, REGISTER_IDS[register], this.#native.word));
    return this.#native.value[0]!;
  }

  /** All registers: sixteen by number, rip, rflags; and the same in halves. Always the same arrays, for all engines. */
  readState(): { readonly words: BigInt64Array; readonly halves: Int32Array } {
    const { ids, pointers, state, stateHalves } = this.#native;
    check("uc_reg_read_batch", this.#native.regReadBatch(this.#uc, ids, pointers, state.length));
    return { words: state, halves: stateHalves };
  }

  writeState(words: BigInt64Array): void {
    const { ids, pointers, state } = this.#native;
    state.set(words);
    check("uc_reg_write_batch", this.#native.regWriteBatch(this.#uc, ids, pointers, state.length));
  }

  /** The base of %fs or %gs. */
  writeBase(segment: keyof typeof BASE_IDS, base: bigint): void {
    this.#native.value[0] = base;
    check("uc_reg_write", this.#native.regWrite(this.#uc, BASE_IDS[segment], this.#native.word));
  }

  /** The instruction pointer without a bigint, for stepping fast. Throws RangeError if it is not canonical. */
  ip(): Addr {
    check("uc_reg_read", this.#native.regRead(this.#uc, REGISTER_IDS.rip, this.#native.word));
    const { halves } = this.#native;
    return addr(halves.getInt32(4, true) * 2 ** 32 + halves.getUint32(0, true));
  }

  /**
   * Runs from `begin` until the instruction at `until` would be next, `count` instructions are done or
   * `timeout` microseconds have passed; 0 means no limit. What the guest does wrong is the result. A REP
   * instruction counts once for every iteration.
   */
  start(begin: Address, until: Address, timeout = 0, count = 0): UnicornCode {
    const exit = signed(until);
    this.#translateFor(exit, count !== 0);
    return codeOf(this.#native.emuStart(this.#uc, signed(begin), exit, timeout, count));
  }

  /** Executes the one instruction at `at`, or one iteration of a REP instruction. */
  step(at: Address): UnicornCode {
    this.#translateFor(NOWHERE_SIGNED, true);
    return codeOf(this.#native.emuStart(this.#uc, signed(at), NOWHERE_SIGNED, 0, 1));
  }

  /** Saves the registers; memory is not part of a context. */
  saveContext(): UnicornContext {
    check("uc_context_alloc", this.#native.contextAlloc(this.#uc, this.#native.word));
    const pointer = Number(this.#native.value[0]);
    this.#contexts.add(pointer);
    check("uc_context_save", this.#native.contextSave(this.#uc, pointer));
    return { pointer };
  }

  restoreContext(context: UnicornContext): void {
    check("uc_context_restore", this.#native.contextRestore(this.#uc, context.pointer));
  }

  /** Frees the engine, its memory and its contexts. */
  close(): void {
    for (const pointer of this.#contexts) check("uc_context_free", this.#native.contextFree(pointer));
    check("uc_close", this.#native.close(this.#uc));
    for (const block of this.#memory) this.#native.koffi.free(block);
  }

  /**
   * Unicorn 2.0.1 translates the exit and the counting into its blocks, but looks blocks up by address
   * alone: a counted run through blocks of an uncounted one does not count, and a run can pass its new
   * `until`. So all translations go when either changes. (UC_CTL_TB_FLUSH would take 300 ms.)
   */
  #translateFor(until: number | bigint, counted: boolean): void {
    if (until === this.#until && counted === this.#counted) return;
    if (this.#until !== null) for (const [at, size] of this.#executable) this.#forget(at, size);
    this.#until = until;
    this.#counted = counted;
  }

  /** Drops the translations of a range. */
  #forget(at: bigint, size: number): void {
    const end = at + BigInt(size);
    check("uc_ctl", this.#native.ctl(this.#uc, TB_REMOVE_CACHE, "uint64", at, "uint64", end));
  }
}

/** Loads the library, or says in one line why not. */
export async function loadUnicorn(): Promise<Unicorn | Missing> {
  const name: string = "koffi"; // not a literal, so that type-checking does not look for the package
  let koffi: Koffi;
  try {
    koffi = (await import(name)).default;
  } catch (error) {
    return { missing: `npm package koffi cannot be loaded (${firstLine(error)})` };
  }
  const file = process.platform === "darwin" ? "libunicorn.2.dylib" : "libunicorn.so.2";
  let native: Bindings;
  try {
    native = bind(koffi, file);
  } catch (error) {
    return {
      missing: `${file} cannot be loaded; on Debian: apt-get install libunicorn2 (${firstLine(error)})`,
    };
  }
  // UC_MAKE_VERSION in 2.0: major, minor, patch and release, a byte each.
  const packed = native.version(0, 0);
  const version = [24, 16, 8].map((shift) => (packed >>> shift) & 0xff).join(".");
  if (!version.startsWith("2.")) return { missing: `${file} is Unicorn ${version}, not 2` };
  return { version, open: () => new UnicornEngine(native) };
}

function signed(at: Address): number | bigint {
  if (typeof at === "number") return at;
  const value = BigInt.asIntN(64, at);
  const rounded = Number(value);
  return BigInt(rounded) === value ? rounded : value;
}

function unsigned(at: Address): bigint {
  return BigInt.asUintN(64, BigInt(at));
}

function codeOf(error: number): UnicornCode {
  const code = CODES[error];
  if (code === undefined) throw new Error(`uc_err ${error} is not one of Unicorn 2.0's`);
  return code;
}

function check(call: string, error: number): void {
  if (error !== 0) throw new UnicornError(call, codeOf(error));
}

function firstLine(error: unknown): string {
  return String(error instanceof Error ? error.message : error).split("\n")[0]!;
}
