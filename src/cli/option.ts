// Option values, refused in one line when they are no numbers.

import { refuse } from "../base/refuse.ts";

export interface CommonOptions {
  readonly json?: boolean;
  readonly seed: number;
}

/** A parser for the whole numbers that `option` takes, from `least` up. */
export function integer(option: string, least: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!/^\d+$/.test(text) || !Number.isSafeInteger(value) || value < least) {
      refuse("not-a-number", { option, text, least });
    }
    return value;
  };
}

/** A 64-bit argument of a guest function: decimal or hexadecimal, perhaps negative. */
export function word(text: string): bigint {
  const match = /^(-?)(0x[0-9a-f]+|\d+)$/i.exec(text);
  const value = match ? BigInt(match[2]!) * (match[1] === "-" ? -1n : 1n) : refuse("not-a-word", { text });
  if (value < -(1n << 63n) || value >= 1n << 64n) refuse("not-a-word", { text });
  return BigInt.asUintN(64, value);
}

export function printJson(document: unknown): void {
  process.stdout.write(`${JSON.stringify(document, null, 2)}\n`);
}
