// Random programs: a loop around a few integer instructions, on every register but rcx, which counts, rbx, which
// points at data, and rsp; jumps over one instruction at a time. Nothing that faults.

import fc from "fast-check";

/** All but rcx, which counts, rbx, which points, and rsp. */
const register = fc.constantFrom(0, 2, 5, 6, 7, 8, 9, 10, 13, 15);
const byte = fc.nat({ max: 255 });

/** `op` with a register field and a register or (%rbx+disp8), of an operand size in bytes. */
function modrm(size: number, op: readonly number[], reg: number, rm: number | { disp: number }): number[] {
  const prefix = size === 2 ? [0x66] : [];
  const low = typeof rm === "number" ? rm : 3;
  const rex = 0x40 | (size === 8 ? 8 : 0) | (reg >= 8 ? 4 : 0) | (low >= 8 ? 1 : 0);
  const mod = typeof rm === "number" ? 0xc0 : 0x40;
  return [
    ...prefix,
    rex,
    ...op,
    mod | ((reg & 7) << 3) | (low & 7),
    ...(typeof rm === "number" ? [] : [rm.disp]),
  ];
}

const size = fc.constantFrom(1, 2, 4, 8);
const wide = fc.constantFrom(2, 4, 8);
const place = fc.oneof(register, fc.record({ disp: fc.nat({ max: 120 }) }));
/** The opcode of the byte form is one less. */
const form = (op: number, bytes: number) => (bytes === 1 ? op - 1 : op);

const twoOperands = fc
  .tuple(
    fc.constantFrom(
      0x01,
      0x03,
      0x09,
      0x0b,
      0x11,
      0x13,
      0x19,
      0x1b,
      0x21,
      0x23,
      0x29,
      0x2b,
      0x31,
      0x33,
      0x39,
      0x3b,
      0x85,
      0x87,
      0x89,
      0x8b,
    ),
    size,
    register,
    place,
  )
  .map(([op, bytes, reg, rm]) => modrm(bytes, [form(op, bytes)], reg, rm));
const immediate = fc
  .tuple(fc.nat({ max: 7 }), wide, place, byte)
  .map(([ext, bytes, rm, value]) => [...modrm(bytes, [0x83], ext, rm), value]);
const shift = fc
  .tuple(fc.constantFrom(0, 1, 2, 3, 4, 5, 7), size, place, byte)
  .map(([ext, bytes, rm, count]) => [...modrm(bytes, [form(0xc1, bytes)], ext, rm), count]);
const shiftByCl = fc
  .tuple(fc.constantFrom(0, 1, 2, 3, 4, 5, 7), size, place)
  .map(([ext, bytes, rm]) => modrm(bytes, [form(0xd3, bytes)], ext, rm));
/** inc, dec; not, neg, mul, imul. */
const oneOperand = fc
  .tuple(fc.constantFrom([0xff, 0], [0xff, 1], [0xf7, 2], [0xf7, 3], [0xf7, 4], [0xf7, 5]), size, place)
  .map(([[op, ext], bytes, rm]) => modrm(bytes, [form(op!, bytes)], ext!, rm));
/** imul, movzx, movsx, bt, bsf, bsr, shld and cmovcc, setcc, xadd, cmpxchg. */
const twoBytes = fc
  .tuple(fc.constantFrom(0xaf, 0xb7, 0xbf, 0xa3, 0xbc, 0xbd, 0xa5), wide, register, register)
  .map(([op, bytes, reg, rm]) => modrm(bytes, [0x0f, op], reg, rm));
const conditional = fc
  .tuple(fc.nat({ max: 15 }), fc.boolean(), wide, register, place)
  .map(([condition, move, bytes, reg, rm]) =>
    move ? modrm(bytes, [0x0f, 0x40 + condition], reg, rm) : modrm(1, [0x0f, 0x90 + condition], 0, rm),
  );
const atomic = fc
  .tuple(fc.constantFrom(0xc1, 0xb1), size, register, place)
  .map(([op, bytes, reg, rm]) => modrm(bytes, [0x0f, form(op, bytes)], reg, rm));
const stacked = fc
  .tuple(register, register)
  .map(([from, to]) => [0x40 | (from >> 3), 0x50 + (from & 7), 0x40 | (to >> 3), 0x58 + (to & 7)]);
/** pushfq; pop %rax. clc; cmc; stc; lahf; sahf; cqo; bswap %rax. */
const plain = fc.constantFrom<number[]>(
  [0x9c, 0x58],
  [0xf8],
  [0xf5],
  [0xf9],
  [0x9f],
  [0x9e],
  [0x48, 0x99],
  [0x48, 0x0f, 0xc8],
);
const simple = fc.oneof(
  twoOperands,
  immediate,
  shift,
  shiftByCl,
  oneOperand,
  twoBytes,
  conditional,
  atomic,
  stacked,
  plain,
);
/** A conditional jump over one instruction. */
const skipping = fc
  .tuple(fc.nat({ max: 15 }), simple)
  .map(([condition, over]) => [0x70 + condition, over.length, ...over]);

/** The loop's instructions. */
export const bodies = fc.array(
  fc.oneof({ weight: 5, arbitrary: simple }, { weight: 1, arbitrary: skipping }),
  {
    minLength: 1,
    maxLength: 12,
  },
);
/** What the sixteen registers start with. */
export const seeds = fc.array(fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), { minLength: 16, maxLength: 16 });

/** The machine code of `body` in a loop; vmcall ends it. */
export function program(instructions: readonly number[][]): Uint8Array {
  const code = instructions.flat();
  const back = -(code.length + 9); // dec %rcx; jne back to 0; vmcall
  const bytes = Uint8Array.of(...code, 0x48, 0xff, 0xc9, 0x0f, 0x85, 0, 0, 0, 0, 0x0f, 0x01, 0xc1);
  new DataView(bytes.buffer).setInt32(code.length + 5, back, true);
  return bytes;
}

/** The registers that instructions name. */
export const NAMES = ["rax", "rdx", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r13", "r15"] as const;
