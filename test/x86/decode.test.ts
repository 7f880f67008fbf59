// What the decoder makes of bytes, where the plain record says more than iced-x86's fields.

import { expect, test } from "vitest";
import { addr } from "../../src/base/addr.ts";
import { parseHexBytes } from "../../src/base/bytes.ts";
import { decode, type Instruction } from "../../src/x86/decode.ts";

function decoded(bytes: string): Instruction {
  const answer = decode(parseHexBytes(bytes), addr(0x1000));
  return answer.kind === "instruction" ? answer.instruction : expect.fail(`${bytes}: ${answer.kind}`);
}

test.each([
  ["48 0f bb 04 25 24 08 00 20", 8, "an absolute address of 64 bits"],
  ["67 48 0f bb 04 25 24 08 00 20", 4, "the same of 32: bit offsets wrap there"],
  ["8b 03", 8, "a base"],
  ["67 8b 03", 4, "a short base"],
  ["67 8b 04 8d 00 00 00 00", 4, "a short index alone"],
  ["67 8b 05 00 00 00 00", 4, "eip-relative"],
  ["8b 05 00 00 00 00", 8, "rip-relative"],
  ["67 a4", 4, "string operands"],
  ["67 e2 00", 4, "a short counter"],
])("%s has an address size of %d: %s", (bytes, size) => {
  expect(decoded(bytes).addressSize).toBe(size);
});
