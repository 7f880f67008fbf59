// Option values, refused in one line when they are no numbers.

import { refuse } from "../base/refuse.ts";

export interface CommonOptions {
  readonly json?: boolean;
  readonly seed: number;
}

/** A parser for the whole numbers that `option` takes, from `least` up, to `most` if that is given. */
export function integer(option: string, least: number, most?: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!/^\d+$/.test(text) || !Number.isSafeInteger(value) || value < least) {
      refuse("not-a-number", { option, text, least });
    }
    if (most !== undefined && value > most) refuse("too-large", { option, text, most });
    return value;
  };
}

export function printJson(document: unknown): void {
  process.stdout.write(`${JSON.stringify(document, null, 2)}\n`);
}
