// What is known of the registers between two instructions of a sequence, without executing any: which still hold what
// they held at first, which hold a constant; and which flags the manual leaves undefined.

import type { Access } from "./code.ts";
import { halves, whole } from "./halves.ts";

/** `initial + delta`, or just the constant. */
type Origin = { readonly initial: boolean; readonly delta: bigint };

const UNTOUCHED: Origin = { initial: true, delta: 0n };

export class Knowledge {
  /** By number; undefined for what was computed. */
  private readonly origins: (Origin | undefined)[];
  /** Bits of rflags. */
  undefinedFlags: number;

  private constructor(origins: (Origin | undefined)[], undefinedFlags: number) {
    this.origins = origins;
    this.undefinedFlags = undefinedFlags;
  }

  static atFirst(): Knowledge {
    return new Knowledge(
      Array.from({ length: 16 }, () => UNTOUCHED),
      0,
    );
  }

  copy(): Knowledge {
    return new Knowledge([...this.origins], this.undefinedFlags);
  }

  /** What is known where both ways meet. */
  meet(other: Knowledge): Knowledge {
    const same = this.origins.map((origin, n) => {
      const theirs = other.origins[n];
      return origin?.initial === theirs?.initial && origin?.delta === theirs?.delta ? origin : undefined;
    });
    return new Knowledge(same, this.undefinedFlags | other.undefinedFlags);
  }

  /** The registers, a bit for each number, hold something else now. */
  forget(registers: number): void {
    for (let n = 0; n < 16; n++) if (registers & (1 << n)) this.origins[n] = undefined;
  }

  setConstant(register: number, value: bigint): void {
    this.origins[register] = { initial: false, delta: value };
  }

  move(register: number, by: number): void {
    const origin = this.origins[register];
    if (origin !== undefined)
      this.origins[register] = { ...origin, delta: BigInt.asIntN(64, origin.delta + BigInt(by)) };
  }

  /**
   * The access in terms of what the registers held at first, if it can be said so. One that needs no register is at
   * its displacement.
   */
  resolve(access: Access): Access | undefined {
    const { shift, byteIndex, size } = access;
    let displacement = whole(access.displacement);
    let { base, index, bits } = access;
    if (base >= 0) {
      const origin = this.origins[base];
      if (origin === undefined) return undefined;
      displacement += origin.delta;
      if (!origin.initial) base = -1;
    }
    if (index >= 0) {
      const origin = this.origins[index];
      if (origin === undefined || (byteIndex && origin.initial && origin.delta !== 0n)) return undefined;
      displacement += (byteIndex ? BigInt.asUintN(8, origin.delta) : origin.delta) << BigInt(shift);
      if (!origin.initial) index = -1;
    }
    if (bits >= 0) {
      const origin = this.origins[bits];
      if (origin === undefined || (origin.initial && origin.delta !== 0n)) return undefined;
      if (!origin.initial) {
        displacement += (BigInt.asIntN(8 * size, origin.delta) >> 3n) & -BigInt(size);
        bits = -1;
      }
    }
    return { ...access, base, index, bits, displacement: halves(displacement) };
  }
}
