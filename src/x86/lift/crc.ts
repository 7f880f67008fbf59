// crc32 (SDM vol. 2): CRC-32C, the polynomial 0x11EDC6F41, bits reflected. No flags.

import type { Family } from "./definition.ts";

/** Without its top term, bit-reversed: what a bit that is shifted out brings in. */
const POLYNOMIAL = 0x82f63b78n;

export const checksums: Family = {
  Crc32: (e) => {
    const { f } = e;
    const [rest, count] = [e.temp("i64"), e.temp("i32")];
    e.push64(e.xor(e.zext(e.read(0), 4), e.read(1)));
    f.set(rest)
      .i32(8 * e.size(1))
      .set(count);
    const top = f.loop();
    const brought = e.and(e.sub(0n, e.and(rest, 1n)), POLYNOMIAL);
    e.push64(e.xor(e.shr(rest, 1n), brought));
    f.set(rest).get(count).i32(1).op("i32.sub").tee(count).brIf(top).end();
    e.write(0, rest);
  },
};
