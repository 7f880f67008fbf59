// One random state for an instruction: registers from edge values and noise, addresses that mean something, memory where
// it reads. What the native harness could not survive is never tried: such a state is made again, or given up.

import { Mnemonic } from "iced-x86";
import { DATA, DATA_SIZE, FLAGS } from "../x86/cases-model.ts";
import { chooseAddress, chooseTarget, isSafe, touchesCode } from "./address.ts";
import { MAX_PATCHES, spreadFlags } from "./batch.ts";
import type { Access, FuzzCode } from "./code.ts";
import { type Halves, isCanonical } from "./halves.ts";
import type { Random } from "./random.ts";

const RAX = 0;
const RCX = 1;
const RDX = 2;
const RSP = 4;
const ATTEMPTS = 12;
/** In a hundred accesses of a sequence. */
const TAME = 92;
/** Iterations of a repeated string instruction that need not end at an edge. */
const FEW = 25;
const CACHE_LINE = 64;
/** Farther from the window's edges than a few iterations reach. */
const NEAR = 0x200;

const EDGES = [
  ...[0n, 1n, 2n, 3n, 7n, 8n, 15n, 16n, 31n, 32n, 63n, 64n, 0x7fn, 0x80n, 0x81n, 0xffn, 0x100n],
  ...[0x7fffn, 0x8000n, 0xffffn, 0x1_0000n, 0x7fff_ffffn, 0x8000_0000n, 0x8000_0001n, 0xffff_ffffn],
  ...[0x1_0000_0000n, 0x7fff_ffff_ffff_ffffn, 0x8000_0000_0000_0000n, 0x8000_0000_0000_0001n, -1n, -2n],
  ...[-0x80n, -0x8000n, -0x8000_0000n, -0x8000_0001n, 0x5555_5555_5555_5555n, 0xa5a5_a5a5_a5a5_a5a5n],
].map((value) => [Number(BigInt.asIntN(32, value)), Number(BigInt.asIntN(32, value >> 32n))] as const);

export class StateMaker {
  /** Sixteen registers by number, low half then high half. */
  readonly registers = new Int32Array(32);
  /** Bytes of the data window: offset * 256 + byte. */
  readonly patches = new Int32Array(MAX_PATCHES);
  patchCount = 0;
  /** Bits of rflags. */
  flags = 0;
  /** Whether the instruction may write to the code page. */
  writesCode = false;
  private readonly at: Halves = { low: 0, high: 0 };
  private readonly word = new Int32Array(2);
  private readonly forSequences: boolean;

  /** `forSequences`: mostly states with which nothing faults, so that a sequence goes on. */
  constructor(forSequences = false) {
    this.forSequences = forSequences;
  }

  /** Makes a state; false if none was found that may be run. */
  make(random: Random, instruction: FuzzCode): boolean {
    this.flags = spreadFlags(random.below(128));
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      this.fillRegisters(random, instruction);
      for (let n = instruction.accesses.length - 1; n >= 0; n--) this.aim(random, instruction, n);
      if (this.isDefined(instruction) && this.areSafe(instruction)) {
        this.fillMemory(random, instruction);
        this.writesCode = instruction.accesses.some(
          (access) => access.write && touchesCode(this.locate(access, access.size), access.size),
        );
        return true;
      }
    }
    return false;
  }

  private fillRegisters(random: Random, instruction: FuzzCode): void {
    const { registers } = this;
    for (let n = 0; n < 16; n++) {
      this.chooseWord(random, n);
      registers[2 * n] = this.word[0]!;
      registers[2 * n + 1] = this.word[1]!;
    }
    // Below the kernel's sight: a signal finds rsp in the harness's own stack by accident never.
    if (registers[2 * RSP + 1] === 0 && registers[2 * RSP]! >>> 28 === 3) registers[2 * RSP + 1] = 1;
    const { mnemonic, target, repeated } = instruction;
    if ((mnemonic === Mnemonic.Div || mnemonic === Mnemonic.Idiv) && random.chance(75))
      this.shortenDividend(random, instruction);
    if (isWideShift(instruction)) registers[2 * RCX] = registers[2 * RCX]! & ~0x10;
    if (repeated && random.chance(85)) {
      registers[2 * RCX] = random.below(FEW);
      if (random.chance(80)) registers[2 * RCX + 1] = 0;
    }
    if (typeof target === "object") {
      chooseTarget(random, this.at, instruction.calls);
      registers[2 * target.register] = this.at.low;
      registers[2 * target.register + 1] = this.at.high;
    }
  }

  /** A value for register `n`, or for memory; sometimes that of a lower register again. */
  private chooseWord(random: Random, n: number): void {
    const { word, registers } = this;
    const kind = random.word();
    const from = (kind >>> 8) & 15;
    switch (kind & 7) {
      case 0:
      case 1: {
        const edge = EDGES[((kind >>> 8) & 0xffff) % EDGES.length]!;
        word[0] = edge[0];
        word[1] = edge[1];
        return;
      }
      case 2:
        if (from >= n) break;
        word[0] = registers[2 * from]!;
        word[1] = registers[2 * from + 1]!;
        return;
      case 3: // the width of a smaller operand
        word[0] = random.word() >>> (8 * ((kind >>> 8) & 3));
        word[1] = kind & 0x1000_0000 ? -1 : 0;
        return;
    }
    word[0] = random.word();
    word[1] = random.word();
  }

  /** A dividend whose quotient mostly fits. */
  private shortenDividend(random: Random, { size }: FuzzCode): void {
    const { registers } = this;
    if (size === 1) {
      const value = (random.below(random.chance(50) ? 256 : 0x4000) << 16) >> 16;
      registers[2 * RAX] = (registers[2 * RAX]! & ~0xffff) | (value & 0xffff);
      return;
    }
    const high =
      size === 8 ? registers[2 * RAX + 1]! : size === 4 ? registers[2 * RAX]! : registers[2 * RAX]! << 16;
    const sign = high >> 31;
    const small = random.chance(50) ? sign : random.chance(50) ? 0 : random.below(1 << random.below(16));
    registers[2 * RDX] = small;
    registers[2 * RDX + 1] = small < 0 ? -1 : 0;
  }

  // ---- Addresses.

  /** Sets the access's base, or else its index, so that it goes where `chooseAddress` says. */
  private aim(random: Random, instruction: FuzzCode, n: number): void {
    const { at, registers } = this;
    const access = instruction.accesses[n]!;
    const { base, index, shift, displacement, segment, narrow, locked, repeated } = access;
    if (base < 0 && index < 0) return;
    const tame = (this.forSequences || instruction.count > 1) && random.chance(TAME);
    if (random.chance(1) && !tame && !repeated) return; // as it comes
    chooseAddress(random, at, access.size, { narrow, code: !repeated, tame });
    if (locked && at.high === 0) at.low = withinLine(at.low, access.size);
    if (access.size === 16 && random.chance(80)) at.low &= ~15;
    if (repeated && this.hasMany(instruction)) this.aimAhead(random, n > 0 && access.read);
    this.subtract(displacement.low, displacement.high);
    this.subtract(segment, 0);
    if (access.bits >= 0 && random.chance(70)) {
      // A bit offset that stays near; the others are mostly not canonical, which is safe too.
      registers[2 * access.bits] = random.below(0x400) - 0x200;
      registers[2 * access.bits + 1] = registers[2 * access.bits]! >> 31;
    }
    if (base < 0) {
      registers[2 * index] = shift === 0 ? at.low : (at.low >>> shift) | (at.high << (32 - shift));
      registers[2 * index + 1] = narrow ? random.word() : at.high >>> shift;
      return;
    }
    if (index === base) {
      const word = (at.high >>> 0) * 2 ** 32 + (at.low >>> 0);
      const quotient = Math.floor(word / (1 + 2 ** shift));
      registers[2 * base] = (quotient % 2 ** 32) | 0;
      registers[2 * base + 1] = Math.floor(quotient / 2 ** 32) | 0;
      return;
    }
    if (index >= 0) this.subtractIndex(access);
    registers[2 * base] = at.low;
    registers[2 * base + 1] = narrow ? random.word() : at.high;
  }

  /** Where the string soon runs out of the window; the one that is compared with it, far from its edges. */
  private aimAhead(random: Random, inside: boolean): void {
    const near = random.below(40);
    if (inside) this.at.low = DATA + DATA_SIZE / 2 + 8 * near;
    else this.at.low = this.flags & FLAGS.df ? DATA + near : DATA + DATA_SIZE - 1 - near;
    this.at.high = 0;
  }

  private hasMany({ accesses }: FuzzCode): boolean {
    const { registers } = this;
    return (registers[2 * RCX + 1] !== 0 && !accesses[0]!.narrow) || registers[2 * RCX]! >>> 0 >= FEW;
  }

  private subtractIndex({ index, shift, byteIndex }: Access): void {
    const low = byteIndex ? this.registers[2 * index]! & 0xff : this.registers[2 * index]!;
    const high = byteIndex ? 0 : this.registers[2 * index + 1]!;
    this.subtract(low << shift, shift === 0 ? high : (high << shift) | (low >>> (32 - shift)));
  }

  private subtract(low: number, high: number): void {
    const { at } = this;
    const borrow = at.low >>> 0 < low >>> 0 ? 1 : 0;
    at.low = (at.low - low) | 0;
    at.high = (at.high - high - borrow) | 0;
  }

  private addHalves(low: number, high: number): void {
    const { at } = this;
    const sum = (at.low >>> 0) + (low >>> 0);
    at.low = sum | 0;
    at.high = (at.high + high + (sum >= 2 ** 32 ? 1 : 0)) | 0;
  }

  /** Leaves in `at` where the access really goes. */
  locate(access: Access, size: number): Halves {
    const { at, registers } = this;
    const { base, index, shift, byteIndex, displacement, segment, narrow, bits } = access;
    at.low = displacement.low;
    at.high = displacement.high;
    if (base >= 0) this.addHalves(registers[2 * base]!, registers[2 * base + 1]!);
    if (index >= 0) {
      const low = byteIndex ? registers[2 * index]! & 0xff : registers[2 * index]!;
      const high = byteIndex ? 0 : registers[2 * index + 1]!;
      this.addHalves(low << shift, shift === 0 ? high : (high << shift) | (low >>> (32 - shift)));
    }
    if (bits >= 0) this.addBits(bits, size);
    if (narrow) at.high = 0;
    this.addHalves(segment, 0);
    return at;
  }

  /** What the bits above the operand's width add: words of the operand's size, signed. */
  private addBits(register: number, size: number): void {
    const { registers } = this;
    let low = registers[2 * register]!;
    let high = registers[2 * register + 1]!;
    if (size === 2) low = (low << 16) >> 16;
    if (size !== 8) high = low >> 31;
    this.addHalves(((low >>> 3) | (high << 29)) & -size, high >> 3);
  }

  // ---- What must not be run.

  /** False if the manual leaves the result undefined, or makers differ. */
  private isDefined(instruction: FuzzCode): boolean {
    const { registers } = this;
    // For 16 bits, counts above 16 leave everything undefined (SDM vol. 2, SHLD).
    if (isWideShift(instruction) && (registers[2 * RCX]! & 0x1f) > 16) return false;
    // A target in rsp, or made of the code page's int3s: see `chooseTarget`.
    const { target, calls, accesses } = instruction;
    if (target === "memory" && calls && touchesCode(this.locate(accesses[0]!, 8), 8)) return false;
    if (
      typeof target === "object" &&
      calls &&
      !isCanonical({ low: 0, high: registers[2 * target.register + 1]! })
    )
      return false;
    if (!instruction.repeated || !instruction.accesses[0]!.narrow) return true;
    // With 32-bit addresses, processors clear the upper halves before the first iteration, and even if there is none.
    registers[2 * RCX + 1] = 0;
    for (const { base } of instruction.accesses) registers[2 * base + 1] = 0;
    return true;
  }

  /** Whether these accesses of the code may be executed: they need no register. */
  allows(code: FuzzCode, accesses: readonly Access[]): boolean {
    return accesses.every((access) => this.isSafe(code, access));
  }

  private areSafe(instruction: FuzzCode): boolean {
    const { accesses } = instruction;
    if (!accesses.every((access) => this.isSafe(instruction, access))) return false;
    // Which of two reads faults first is nowhere said.
    const [first, second] = accesses;
    if (instruction.count > 1 || accesses.length !== 2 || first!.write || second!.write || !first!.read)
      return true;
    return !(this.mayFault(first!) && this.mayFault(second!));
  }

  private isSafe(instruction: FuzzCode, access: Access): boolean {
    const at = this.locate(access, access.size);
    if (!isSafe(at, access.size, access.write)) return false;
    // A call's target is an int3 of that page, and must stay one.
    if (instruction.branches && access.write && touchesCode(at, access.size)) return false;
    const inside = at.high === 0 && at.low >= DATA - NEAR && at.low < DATA + DATA_SIZE + NEAR;
    // Locked across cache lines: slow, and refused by some hosts.
    if (access.locked && inside && withinLine(at.low, access.size) !== at.low) return false;
    // Repeated, it may run on: from somewhere in the window a few times, or from elsewhere into a fault.
    return !access.repeated || inside || at.high !== 0 || at.low >>> 0 >= 0x4000_0000;
  }

  /** Now, or within a few iterations. */
  private mayFault(access: Access): boolean {
    const { low, high } = this.locate(access, access.size);
    return high !== 0 || low < DATA + NEAR || low >= DATA + DATA_SIZE - NEAR;
  }

  // ---- Memory.

  private fillMemory(random: Random, instruction: FuzzCode): void {
    this.patchCount = 0;
    for (const access of instruction.accesses) {
      if (!access.read) continue;
      const { low, high } = this.locate(access, access.size);
      if (high !== 0 || low < DATA - 16 || low >= DATA + DATA_SIZE) continue;
      const size = access.repeated ? 4 * access.size : access.size;
      for (let from = 0; from < size; from += 8) {
        this.chooseContent(random, instruction, from);
        this.patch(low - DATA + from, Math.min(8, size - from));
      }
    }
  }

  private chooseContent(random: Random, { mnemonic, target, calls }: FuzzCode, from: number): void {
    const { word, registers } = this;
    if (target === "memory" || target === "stack") {
      chooseTarget(random, this.at, calls);
      word[0] = this.at.low;
      word[1] = this.at.high;
      return;
    }
    if (random.chance(20)) {
      // What compare-and-exchange and the string comparisons look for.
      const register = from === 0 ? RAX : RDX;
      word[0] = registers[2 * register]!;
      word[1] = registers[2 * register + 1]!;
    } else this.chooseWord(random, 16);
    // A single step after popf is a trap that the case does not end with.
    if (mnemonic === Mnemonic.Popf || mnemonic === Mnemonic.Popfq) word[0] = word[0]! & ~0x100;
  }

  private patch(offset: number, size: number): void {
    for (let n = 0; n < size; n++) {
      const at = offset + n;
      if (at < 0 || at >= DATA_SIZE || this.patchCount === this.patches.length) continue;
      const byte = (this.word[n >> 2]! >>> (8 * (n & 3))) & 0xff;
      this.patches[this.patchCount++] = (at << 8) | byte;
    }
  }
}

function isWideShift({ mnemonic, countInCl, size }: FuzzCode): boolean {
  return (mnemonic === Mnemonic.Shld || mnemonic === Mnemonic.Shrd) && countInCl && size === 2;
}

/** The address, moved down so that the access does not leave its cache line. */
function withinLine(low: number, size: number): number {
  const over = (low & (CACHE_LINE - 1)) + size - CACHE_LINE;
  return over > 0 ? low - over : low;
}
