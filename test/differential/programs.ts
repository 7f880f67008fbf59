// Random straight-line programs, as machine code: integer instructions on every register but rsi, which
// points at data, and rsp. Nothing that faults or jumps, and no popf: a trap flag would be another subject.

import fc from "fast-check";

const RSI = 6;
const RSP = 4;

const byte = fc.integer({ min: 0, max: 255 });
const register = fc.integer({ min: 0, max: 15 }).filter((n) => n !== RSI && n !== RSP);
const upTo = (max: number) => fc.integer({ min: 0, max });
const either = <T>(...values: T[]) => fc.constantFrom(...values);

interface Form {
  /** Of the operand: prefixes, and whether an 8-bit opcode is meant. */
  readonly size: 1 | 2 | 4 | 8;
  readonly reg: number;
  /** A register, or undefined for disp8(%rsi). */
  readonly rm: number | undefined;
  readonly displacement: number;
}

const anySize = either<1 | 2 | 4 | 8>(1, 2, 4, 8);
const wide = either<2 | 4 | 8>(2, 4, 8);

function form(size: fc.Arbitrary<1 | 2 | 4 | 8>, memory = true): fc.Arbitrary<Form> {
  const rm = memory ? fc.option(register, { nil: undefined, freq: 3 }) : register;
  return fc.record({ size, reg: register, rm, displacement: upTo(0x70) });
}

/** Prefixes, opcode, ModRM; `reg` may be an opcode's extension. A REX always, so that 4 to 7 are spl to dil. */
function encode({ size, reg, rm, displacement }: Form, opcode: readonly number[], extension = reg): number[] {
  const base = rm ?? RSI;
  const rex = 0x40 | (size === 8 ? 8 : 0) | (extension > 7 ? 4 : 0) | (base > 7 ? 1 : 0);
  const modrm = (rm === undefined ? 0x40 : 0xc0) | ((extension & 7) << 3) | (base & 7);
  return [...(size === 2 ? [0x66] : []), rex, ...opcode, modrm, ...(rm === undefined ? [displacement] : [])];
}

/** An opcode whose 8-bit form is one less. */
const sized = (opcode: number, { size }: Form) => (size === 1 ? opcode - 1 : opcode);

const kinds: readonly fc.Arbitrary<number[]>[] = [
  // add, or, adc, sbb, and, sub, xor, cmp: both directions, and with an immediate
  fc.tuple(form(anySize), upTo(7), either(1, 3)).map(([f, n, way]) => encode(f, [sized(8 * n + way, f)])),
  fc
    .tuple(form(anySize), upTo(7), byte)
    .map(([f, n, value]) => [...encode(f, [f.size === 1 ? 0x80 : 0x83], n), value]),
  form(anySize).map((f) => encode(f, [sized(0x85, f)])), // test
  form(anySize).map((f) => encode(f, [sized(0x87, f)])), // xchg
  fc.tuple(form(anySize), either(0x89, 0x8b)).map(([f, opcode]) => encode(f, [sized(opcode, f)])), // mov
  // rol, ror, rcl, rcr, shl, shr, sar by an immediate, by cl, by one
  fc
    .tuple(form(anySize), either(0, 1, 2, 3, 4, 5, 7), byte)
    .map(([f, n, count]) => [...encode(f, [sized(0xc1, f)], n), count]),
  fc
    .tuple(form(anySize), either(0, 1, 2, 3, 4, 5, 7), either(0xd3, 0xd1))
    .map(([f, n, opcode]) => encode(f, [sized(opcode, f)], n)),
  fc.tuple(form(anySize), either(2, 3, 4, 5)).map(([f, n]) => encode(f, [sized(0xf7, f)], n)), // not, neg, mul, imul
  fc.tuple(form(anySize), upTo(1)).map(([f, n]) => encode(f, [sized(0xff, f)], n)), // inc, dec
  form(wide).map((f) => encode(f, [0x0f, 0xaf])), // imul
  fc.tuple(form(wide), byte).map(([f, value]) => [...encode(f, [0x6b]), value]),
  // movzx, movsx, movsxd, cmov, set, lea
  fc.tuple(form(wide), either(0xb6, 0xb7, 0xbe, 0xbf)).map(([f, opcode]) => encode(f, [0x0f, opcode])),
  form(either(4, 8)).map((f) => encode(f, [0x63])),
  fc.tuple(form(wide), upTo(15)).map(([f, n]) => encode(f, [0x0f, 0x40 + n])),
  fc.tuple(form(either(1)), upTo(15)).map(([f, n]) => encode(f, [0x0f, 0x90 + n], 0)),
  form(wide).map((f) => encode({ ...f, rm: undefined }, [0x8d])),
  // bt, bts, btr, btc; shld, shrd; bsf, bsr; bswap
  fc.tuple(form(wide, false), either(0xa3, 0xab, 0xb3, 0xbb)).map(([f, opcode]) => encode(f, [0x0f, opcode])),
  fc.tuple(form(wide), either(4, 5, 6, 7), byte).map(([f, n, bit]) => [...encode(f, [0x0f, 0xba], n), bit]),
  fc
    .tuple(form(either(4, 8)), either(0xa4, 0xac), byte)
    .map(([f, opcode, count]) => [...encode(f, [0x0f, opcode]), count]),
  fc.tuple(form(wide), either(0xbc, 0xbd)).map(([f, opcode]) => encode(f, [0x0f, opcode])),
  fc.tuple(register, either(0x40, 0x48)).map(([n, rex]) => [rex | (n > 7 ? 1 : 0), 0x0f, 0xc8 + (n & 7)]),
  // xadd; cmpxchg, in memory: on a register that differs Unicorn clears its upper half, silicon leaves it alone
  form(anySize).map((f) => encode(f, [0x0f, sized(0xc1, f)])),
  form(anySize).map((f) => encode({ ...f, rm: undefined }, [0x0f, sized(0xb1, f)])),
  // push and pop, pushf and what it pushed
  fc.tuple(register, register).map(([a, b]) => [...push(a), ...pop(b)]),
  register.map((n) => [0x9c, ...pop(n)]),
  // cmc, clc, stc, cld, std, sahf, lahf; cbw and kin
  either(0xf5, 0xf8, 0xf9, 0xfc, 0xfd, 0x9e, 0x9f).map((opcode) => [opcode]),
  fc.tuple(either([], [0x66], [0x48]), either(0x98, 0x99)).map(([prefix, opcode]) => [...prefix, opcode]),
];

const push = (n: number) => [0x40 | (n > 7 ? 1 : 0), 0x50 + (n & 7)];
const pop = (n: number) => [0x40 | (n > 7 ? 1 : 0), 0x58 + (n & 7)];

/** Up to 40 instructions. */
export const programs: fc.Arbitrary<Uint8Array> = fc
  .array(fc.oneof(...kinds), { minLength: 1, maxLength: 40 })
  .map((instructions) => Uint8Array.from(instructions.flat()));
