// Where lifted code finds a vCPU: byte offsets from the vCPU's base, which every lifted function
// gets as its first parameter, so that vCPUs share code. And what a lifted function answers.
//
// The status flags are kept lazily, in three words that one subtraction and one exclusive-or make
// (bit 63 stands for the top bit of whatever size the operation had: results are sign-extended):
//   CF = carry                       ZF = result == 0
//   OF = carry ^ bit 63 of (x ^ result)   AF = bit 4 of (x ^ result)
//   SF = bit 63 of result ^ bit 62 of x   PF = even parity of the low byte of (result ^ x >> 8)
// where x is left ^ right with all but bits 63 and 4 cleared. Bits 62 and 8 of x are set only for
// the combinations that no arithmetic yields (POPF, SAHF).

export const STATE = {
  /** Sixteen 64-bit registers by number. */
  gpr: 0,
  /** Eight bytes that are always zero: the base, index or segment base that an operand lacks. */
  zero: 128,
  rip: 136,
  carry: 144,
  result: 152,
  x: 160,
  /** RFLAGS without the status flags. */
  systemFlags: 168,
  /** Instructions that may still run; a block checks it once, at its start. */
  budget: 176,
  fsBase: 184,
  gsBase: 192,
  /** Of an access that the TLB did not hold: linear address, then `size | ACCESS << 16`. */
  missAddress: 208,
  missAccess: 216,
  /** Of a region that gave up: its table slot, and the index of the instruction it stopped before. */
  bailSlot: 220,
  bailIndex: 224,
  /** Where the next call or return is recorded, and the end of that buffer: host addresses. */
  recordNext: 228,
  recordEnd: 232,
  /** Why a single step did not simply go on: its ANSWER. */
  answer: 256,
  /** Address of the instruction that stopped the machine after it retired. */
  retiredIp: 264,
  // System registers, as 64-bit words. Selectors; the current privilege level, 0 or 3.
  cs: 272,
  ss: 280,
  ds: 288,
  es: 296,
  fs: 304,
  gs: 312,
  cpl: 320,
  /** Not zero while an interrupt waits for IF: whoever may set it leaves that to TypeScript. */
  attention: 328,
  /** Address of the instruction after sti or a load of ss, before which no interrupt is taken; else EMPTY_RIP. */
  shadow: 336,
  kernelGsBase: 344,
  cr0: 352,
  cr2: 360,
  cr3: 368,
  cr4: 376,
  cr8: 384,
  efer: 392,
  star: 400,
  lstar: 408,
  cstar: 416,
  fmask: 424,
  tscAux: 432,
  idtBase: 440,
  idtLimit: 448,
  gdtBase: 456,
  gdtLimit: 464,
  ldtr: 472,
  tr: 480,
  tssBase: 488,
  tssLimit: 496,
  /** Debug registers 0 to 7. */
  dr: 504,
  /** Not zero between the delivery of an NMI and the next iretq. */
  nmiBlocked: 568,
  xcr0: 576,
  sysenterCs: 584,
  sysenterEsp: 592,
  sysenterEip: 600,
  /** What rdrand answers next: a generator's state. */
  random: 608,
  /** External interrupts that were requested and not delivered: 256 bits by vector. Then the same for NMI. */
  requested: 616,
  nmiRequested: 648,
  /** Debug traps (bits of dr6) of an instruction that stopped the machine: taken before the next one. */
  pendingTraps: 656,
  /** Segment registers, a bit for each number, with a descriptor that is not for users: null outside the kernel. */
  innerSegments: 664,
  /** One entry, like those below, for the second read of an instruction that has two. */
  secondReadTlb: 240,
  /** Instructions retired, when the vCPU was parked for a snapshot. In a line of its own: hashes leave it out. */
  retired: 0x3c0,
  /** What a snapshot holds of a vCPU ends here. */
  end: 0x400,
  /** Where the next traced event goes, and from where on there may be too little room for an instruction's: host addresses. */
  traceNext: 0x400,
  traceEnd: 0x404,
  // From here on two banks: what is decided for the kernel, and USER_BANK further on the same for user code.
  /** 256 entries each of {page i64, addend i32, unused}: `host = wrap(linear) + addend`. */
  readTlb: 0x1000,
  writeTlb: 0x2000,
  /** 1024 entries of {rip i64, slot i32, entry i32}: code to run at an address. */
  jumpCache: 0x4000,
  /** 1024 entries of {rip i64, record i32, unused}: decoded instructions. */
  stepCache: 0x8000,
  bankEnd: 0xc000,
  records: 0x18000,
  size: 0x1c000,
} as const;

/** The bank that a privilege level uses begins at `cpl << BANK_SHIFT`. */
export const BANK_SHIFT = 14;
export const USER_BANK = 3 << BANK_SHIFT;

export const TLB_ENTRIES = 256;
export const CACHE_ENTRIES = 1024;
/** Kinds of access, as `missAccess` has them. */
export const ACCESS = { read: 0, write: 1, read2: 2 } as const;
/** No page or instruction address: entries that hold nothing carry it. */
export const EMPTY_PAGE = 1n;
/** Not canonical, so no rip equals it. */
export const EMPTY_RIP = 1n << 62n;

/** Words that mean nothing between runs. */
export const BETWEEN_RUNS = [
  { at: STATE.budget, size: 8 },
  { at: STATE.missAddress, size: 8 },
  { at: STATE.missAccess, size: 4 },
  { at: STATE.bailSlot, size: 4 },
  { at: STATE.bailIndex, size: 4 },
  { at: STATE.answer, size: 4 },
  { at: STATE.retiredIp, size: 8 },
] as const;

/** The bits of x that arithmetic sets. */
export const X_MASK = -0x7ffffffffffffff0n; // bits 63 and 4

/** Index into the jump and step caches. */
export function cacheIndex(rip: number): number {
  const low = (rip % 2 ** 32) | 0;
  return (low ^ (low >>> 12)) & (CACHE_ENTRIES - 1);
}

/**
 * What lifted code returns. Step functions: `next` and `jumped` mean the instruction retired.
 * Below `firstRetired` the instruction did not happen and rip still points at it; from there on it did.
 */
export const ANSWER = {
  next: 0,
  jumped: 1,
  /** Nothing at rip in the jump cache. */
  lookup: 2,
  /** The code at rip was interpreted often enough to be compiled. */
  hot: 3,
  /** Nothing at rip in the step cache. */
  decode: 4,
  budget: 5,
  /** A region stopped before an instruction that the interpreter must do. */
  bail: 6,
  miss: 7,
  recordFull: 8,
  divideError: 9,
  invalidOpcode: 10,
  generalProtection: 11,
  unimplemented: 12,
  /** An instruction that TypeScript executes (machine/system/). */
  system: 13,
  firstRetired: 32,
  hypercall: 32,
  halt: 33,
  breakpoint: 34,
} as const;

/** A decoded instruction in host memory, which step functions take their operands from. */
export const RECORD = {
  /** Table slot of the step function for this form. */
  slot: 0,
  length: 4,
  next: 8,
  target: 16,
  immediate: 24,
  displacement: 32,
  /** Offsets from the vCPU's base of up to three register operands (ah is rax's plus one). */
  operand: 40,
  base: 52,
  index: 56,
  shift: 60,
  segment: 64,
  ip: 72,
  size: 80,
} as const;

/**
 * What is recorded of the stack: a call or return, with its own rip, the slot, and the address in it;
 * or that rsp was set otherwise than by pushing, to `slot`, from `address`.
 */
export const EVENT = {
  kind: 0,
  ip: 8,
  slot: 16,
  address: 24,
  size: 32,
  call: 1,
  return: 2,
  stackPointer: 3,
} as const;

/** What is traced, as bits. */
export const TRACED = { instructions: 1, accesses: 2, branches: 4, calls: 8, exceptions: 16 } as const;

/**
 * A traced event: a word of its kind, in byte 1 its `detail`, in byte 2 how a delivery came about, in byte 3 the
 * vCPU's number; the instruction's address; and two words more.
 */
export const TRACE = {
  kind: 0,
  ip: 8,
  address: 16,
  value: 24,
  size: 32,
  /** detail: its length. */
  instruction: 0,
  /** detail: bytes, up to 8. address, value. */
  read: 1,
  write: 2,
  /** detail: 1 if it was taken. address: where execution went on. */
  branch: 3,
  /** address: the same. value: where the return address lies. */
  call: 4,
  return: 5,
  /** detail: vector. ip: what was saved. address: the handler. value: the error code, or -1. */
  delivery: 6,
} as const;
