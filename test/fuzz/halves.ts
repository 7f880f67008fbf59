// 64-bit words as pairs of 32-bit halves, which cost nothing.

/** Both signed. */
export interface Halves {
  low: number;
  high: number;
}

/** The word, modulo 2^64. */
export function halves(value: bigint): Halves {
  return { low: Number(BigInt.asIntN(32, value)), high: Number(BigInt.asIntN(32, value >> 32n)) };
}

/** Unsigned. */
export function whole({ low, high }: Halves): bigint {
  return (BigInt(high >>> 0) << 32n) | BigInt(low >>> 0);
}

/** Whether it may be an address. */
export function isCanonical({ high }: Halves): boolean {
  return high >> 15 === high >> 31;
}
