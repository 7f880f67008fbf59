// Hostile code: random bytes, random instructions, and pieces that are written to do harm.
//
// No assembler: half of it must not be what an assembler makes, and a million cases need none. Encodings are in comments.

import type { Random } from "../fuzz/random.ts";

type Piece = (random: Random) => number[];

/** `size` bytes of code, or a few more; what comes behind it is the caller's. */
export function hostileCode(random: Random, size: number): Uint8Array {
  const kinds = random.pick(MIXTURES);
  const bytes: number[] = [];
  while (bytes.length < size) bytes.push(...random.pick(kinds)(random));
  // Most of it comes round again: only then does it get hot.
  if (random.chance(70)) {
    const back = -(bytes.length + 5) + (random.chance(80) ? 0 : random.below(bytes.length));
    bytes.push(0xe9, ...littleEndian(back, 4)); // jmp
  }
  return Uint8Array.from(bytes);
}

export function littleEndian(value: number, size: number): number[] {
  return Array.from({ length: size }, (_, n) => Math.floor(value / 2 ** (8 * n)) & 0xff);
}

const byte = (random: Random): number => random.below(256);
const bytes = (random: Random, count: number): number[] => Array.from({ length: count }, () => byte(random));
/** Small, mostly: it reaches a neighbour. */
const near = (random: Random): number =>
  random.below(random.chance(80) ? 48 : 4096) - (random.chance(80) ? 16 : 2048);
const immediate = (random: Random): number[] =>
  random.chance(60) ? littleEndian(random.below(64) - 16, 4) : bytes(random, 4);

const noise: Piece = (random) => bytes(random, 1 + random.below(16));

/** Prefixes that mean something, and some that do not. */
const PREFIXES = [0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x64, 0x65, 0x2e, 0x36];

function prefixes(random: Random): number[] {
  const found: number[] = [];
  while (random.chance(found.length === 0 ? 20 : 5)) found.push(random.pick(PREFIXES));
  if (random.chance(50)) found.push(0x40 | random.below(16));
  return found;
}

/** A ModRM byte with all that belongs to it: registers, memory by any register, by rip, absolute. */
function modRm(random: Random): number[] {
  const low = random.below(64);
  switch (random.below(8)) {
    case 0:
    case 1:
      return [0xc0 | low];
    case 2:
      return [(low & 0x38) | 5, ...littleEndian(near(random), 4)]; // (%rip)
    case 3:
      return [
        (low & 0x38) | 4,
        ...(random.chance(50) ? [0x25, ...bytes(random, 4)] : [byte(random)]),
        0,
        0,
        0,
        0,
      ];
    case 4:
      return [0x80 | low, ...((low & 7) === 4 ? [byte(random)] : []), ...immediate(random)];
    default:
      return [0x40 | low, ...((low & 7) === 4 ? [byte(random)] : []), byte(random)];
  }
}

/** Any opcode of the three maps. Immediates come by themselves: what follows is taken for one. */
const anything: Piece = (random) => {
  const map = random.pick([[], [], [0x0f], [0x0f], [0x0f, 0x38]]);
  return [...prefixes(random), ...map, byte(random), ...modRm(random)];
};

/** Arithmetic, moves, stack, strings: what goes on. */
const PLAIN = [
  ...[
    0x00, 0x01, 0x02, 0x03, 0x08, 0x11, 0x1b, 0x21, 0x2b, 0x31, 0x39, 0x85, 0x87, 0x88, 0x89, 0x8a, 0x8b,
    0x8d,
  ],
  ...[0x63, 0x69, 0x6b, 0x81, 0x83, 0xc1, 0xc6, 0xc7, 0xd3, 0xf7, 0xff],
];
const plain: Piece = (random) => {
  const opcode = random.pick(PLAIN);
  const size = opcode === 0x69 || opcode === 0x81 || opcode === 0xc7 ? 4 : 1;
  const operand = [0x69, 0x6b, 0x81, 0x83, 0xc1, 0xc6, 0xc7].includes(opcode)
    ? immediate(random).slice(0, size)
    : [];
  return [...(random.chance(60) ? [0x48 | random.below(8)] : []), opcode, ...modRm(random), ...operand];
};

const stack: Piece = (random) =>
  random.pick<() => number[]>([
    () => [0x50 | random.below(16)], // push, pop
    () => [0x50 | random.below(8), 0x58 | random.below(8)],
    () => [0xc8, ...bytes(random, 2), random.chance(50) ? 0 : byte(random)], // enter
    () => [0xc9], // leave
    () => [0xe8, ...littleEndian(random.chance(50) ? -5 : near(random), 4)], // call, often itself
    () => [random.pick([0xc3, 0xcb, 0xc2, 0xca]), 0, 0], // ret, lret
    () => [0x48, 0x89, 0xc4 | (random.below(8) << 3)], // mov to rsp
    () => [0x48, 0x81, 0xec, ...immediate(random)], // sub from rsp
    () => [random.pick([0x9c, 0x9d])], // pushfq, popfq
    () => [0x68, ...immediate(random), 0x9d], // pushq; popfq
  ])();

const jump: Piece = (random) =>
  random.pick<() => number[]>([
    () => [0x70 | random.below(16), near(random) & 0xff],
    () => [0xeb, near(random) & 0xff],
    () => [0x0f, 0x80 | random.below(16), ...littleEndian(near(random), 4)],
    () => [0xe0 | random.below(4), near(random) & 0xff], // loop, jrcxz
    () => [0xff, 0xe0 | random.below(8)],
    () => [0xff, 0xd0 | random.below(8)],
    () => [0xff, random.pick([0x20, 0x10, 0x28, 0x18]) | random.below(4)], // also far
    () => [0x48, 0x8d, 0x05, ...littleEndian(near(random), 4), 0xff, 0xe0], // lea to rax; jmp
  ])();

/** Repeated string instructions, with a count that is never reached and pointers to anywhere. */
const repeated: Piece = (random) => [
  ...(random.chance(60)
    ? [0x48, 0xc7, 0xc1, ...(random.chance(40) ? littleEndian(-1, 4) : immediate(random))]
    : []),
  ...(random.chance(30) ? [0xfd] : []),
  ...(random.chance(40) ? [0x48, 0x8d, 0x3d, ...littleEndian(near(random), 4)] : []), // rdi at code
  ...(random.chance(20) ? [0x48, 0x89, 0xf7] : []),
  ...(random.chance(20) ? [0x67] : []),
  random.pick([0xf3, 0xf2]),
  ...(random.chance(50) ? [0x48] : []),
  random.pick([0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf]),
  0xfc,
];

/** Stores into the code around it: the instruction before, itself, the next one, across pages. */
const selfModifying: Piece = (random) => {
  const place = littleEndian(near(random), 4);
  return random.pick<() => number[]>([
    () => [0xc6, 0x05, ...place, byte(random)],
    () => [0x66, 0xc7, 0x05, ...place, ...bytes(random, 2)],
    () => [0x48, 0xc7, 0x05, ...place, ...bytes(random, 4)],
    () => [0x48, 0x89, 0x05, ...place],
    () => [0xfe, 0x05, ...place], // incb
    () => [0x80, 0x35, ...place, byte(random)], // xorb: on and off again
    () => [0xf0, 0x48, 0x0f, 0xc1, 0x05, ...place], // lock xadd
    () => [0x48, 0x8d, 0x3d, ...place, 0xaa], // lea to rdi; stosb
    () => [0x48, 0x8d, 0x25, ...place, 0x50], // lea to rsp; push
  ])();
};

const MSRS = [
  0x10, 0x174, 0x175, 0x176, 0xc0000080, 0xc0000081, 0xc0000082, 0xc0000084, 0xc0000100, 0xc0000101,
  0xc0000102,
];

/** What an operating system does, with whatever happens to be in the registers. */
const system: Piece = (random) =>
  random.pick<() => number[]>([
    () => [
      0xb9,
      ...littleEndian(random.pick(MSRS), 4),
      ...(random.chance(50) ? [0x48, 0x31, 0xd2] : []),
      0x0f,
      0x30,
    ],
    () => [0xb9, ...littleEndian(random.pick(MSRS), 4), 0x0f, 0x32],
    () => [0x0f, random.pick([0x20, 0x21, 0x22, 0x23]), byte(random)], // control and debug registers
    () => [
      0x48,
      0xc7,
      0xc0,
      ...littleEndian(random.below(65536), 4),
      0x0f,
      0x23,
      0xc0 | (random.below(8) << 3),
    ],
    () => [0x0f, 0x00, ...modRm(random)], // sldt, str, lldt, ltr, verr, verw
    () => [0x0f, 0x01, ...modRm(random)], // sgdt, sidt, lgdt, lidt, smsw, lmsw, invlpg
    () => [0x0f, 0x02, ...modRm(random)],
    () => [0x0f, 0x03, ...modRm(random)],
    () => [0x8e, ...modRm(random)], // mov to a segment register
    () => [
      0x66,
      0xb8,
      random.pick([0, 0x18, 0x2b, 0x33, 0x10, 0x40]),
      0,
      0x8e,
      0xc0 | (random.below(6) << 3),
    ],
    () => [0x0f, random.pick([0xa0, 0xa1, 0xa8, 0xa9])],
    () => [...(random.chance(70) ? [0x48] : random.chance(50) ? [0x66] : []), 0xcf], // iret
    () => [random.pick([0xcc, 0xf1, 0xce])],
    () => [0xcd, byte(random)],
    () => [0x0f, 0x05],
    () => [...(random.chance(70) ? [0x48] : []), 0x0f, random.pick([0x07, 0x34, 0x35])],
    () => [random.pick([0xfa, 0xfb, 0xf4])], // cli, sti, hlt
    () => [0xfb, random.pick([0xf4, 0x90])],
    () => [0x0f, 0x01, random.pick([0xf8, 0xca, 0xcb, 0xc1, 0xf9, 0xd0])],
    () => [0xf3, 0x48, 0x0f, 0xae, 0xc0 | random.below(32)], // fs and gs bases
    () => [0x0f, random.pick([0x06, 0x08, 0x09, 0x0b, 0x31, 0xa2])],
    () => [0x0f, 0xc7, 0xf0 | random.below(16)],
    // A return to wherever the pieces of a frame lead.
    () => [
      ...[0x6a, random.pick([0x2b, 0x18, 0, 0x33])],
      ...[0x50 | random.below(8)],
      ...[0x68, ...littleEndian(random.below(0x4000), 4)],
      ...[0x6a, random.pick([0x33, 0x10, 0, 0x40])],
      ...[0x48, 0x8d, 0x05, ...littleEndian(near(random), 4), 0x50],
      ...[0x48, 0xcf],
    ],
  ])();

const MIXTURES: readonly (readonly Piece[])[] = [
  [noise],
  [anything],
  [plain, plain, plain, anything],
  [plain, plain, jump, stack],
  [plain, plain, plain, selfModifying],
  [plain, selfModifying, jump, stack],
  [selfModifying],
  [repeated],
  [plain, repeated, selfModifying],
  [system],
  [plain, system],
  [plain, plain, system, stack, jump],
  [plain, stack],
  [noise, anything, plain, stack, jump, repeated, selfModifying, system],
];
