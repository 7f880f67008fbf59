// 64-bit integers as people write them.

import { refuse } from "./refuse.ts";

/** A 64-bit word: decimal or hexadecimal, perhaps negative. */
export function word(text: string): bigint {
  const match = /^(-?)(0x[0-9a-f]+|\d+)$/i.exec(text);
  const value = match ? BigInt(match[2]!) * (match[1] === "-" ? -1n : 1n) : refuse("not-a-word", { text });
  if (value < -(1n << 63n) || value >= 1n << 64n) refuse("not-a-word", { text });
  return BigInt.asUintN(64, value);
}
