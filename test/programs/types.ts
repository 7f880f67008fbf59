// C's integer types as the generated programs name them, and how values of them are written.

import type { Random } from "../fuzz/random.ts";

export interface Int {
  readonly name: string;
  readonly bits: 8 | 16 | 32 | 64;
  readonly signed: boolean;
}

export const INTS: readonly Int[] = ([8, 16, 32, 64] as const).flatMap((bits) => [
  { name: `u${bits}`, bits, signed: false },
  { name: `s${bits}`, bits, signed: true },
]);

export const U32 = INTS.find(({ name }) => name === "u32")!;
export const U64 = INTS.find(({ name }) => name === "u64")!;

/** The unsigned type to compute in: C promotes narrower ones to `int`, which may overflow. */
export function wide({ bits }: Int): Int {
  return bits === 64 ? U64 : U32;
}

/** The wider half of the types more often than the narrower: as real code has it. */
export function anyInt(random: Random): Int {
  return INTS[random.chance(60) ? 4 + random.below(4) : random.below(8)]!;
}

/** A constant of `type`: small, near an edge, one bit, or anything. */
export function constant(random: Random, type: Int): string {
  const any = (BigInt(random.word() >>> 0) << 32n) | BigInt(random.word() >>> 0);
  const kinds = [
    BigInt(random.below(20)),
    -BigInt(random.below(4)),
    1n << BigInt(random.below(type.bits)),
    any,
  ];
  const edge = (1n << BigInt(type.bits - 1)) - BigInt(random.below(2));
  const value = BigInt.asUintN(type.bits, random.pick([...kinds, edge]));
  return `(${type.name})${value}${type.bits === 64 ? "ull" : "u"}`;
}
