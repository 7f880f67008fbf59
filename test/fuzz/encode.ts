// The few instructions that sequences have in between, encoded. Registers are numbers.

export function moveConstant(register: number, value: bigint): number[] {
  const short = value < 2n ** 32n;
  const rex = (short ? 0x40 : 0x48) | (register >> 3);
  const opcode = 0xb8 | (register & 7);
  const immediate = Array.from({ length: short ? 4 : 8 }, (_, n) => Number((value >> BigInt(8 * n)) & 0xffn));
  return rex === 0x40 ? [opcode, ...immediate] : [rex, opcode, ...immediate];
}

/** 64 bits. */
export function compare(left: number, right: number): number[] {
  return [0x48 | ((right >> 3) << 2) | (left >> 3), 0x39, 0xc0 | ((right & 7) << 3) | (left & 7)];
}

/** 64 bits. */
export function subtractOne(register: number): number[] {
  return [0x48 | (register >> 3), 0x83, 0xe8 | (register & 7), 1];
}

/** `distance` from its own first byte. */
export function jumpIfNotZero(distance: number): number[] {
  return [0x0f, 0x85, ...littleEndian(distance - 6, 4)];
}

export function littleEndian(value: number, size: number): number[] {
  return Array.from({ length: size }, (_, n) => (value >> (8 * n)) & 0xff);
}
