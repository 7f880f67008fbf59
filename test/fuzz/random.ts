// The generator's only source of chance: sfc32 (Chris Doty-Humphrey's PractRand), reseeded for every instruction, so that
// case N of a seed can be made again without those before it.

export class Random {
  private a = 0;
  private b = 0;
  private c = 0;
  private counter = 1;

  /** Starts the stream that `seed` and `stream` name; both are taken modulo 2^53. */
  restart(seed: number, stream: number): this {
    this.a = seed | 0;
    this.b = Math.floor(seed / 2 ** 32) ^ Math.imul(Math.floor(stream / 2 ** 32), 0x9e3779b1);
    this.c = stream | 0;
    this.counter = 1;
    for (let n = 0; n < 12; n++) this.word();
    return this;
  }

  /** 32 random bits, as a signed number. */
  word(): number {
    const sum = (((this.a + this.b) | 0) + this.counter) | 0;
    this.counter = (this.counter + 1) | 0;
    this.a = this.b ^ (this.b >>> 9);
    this.b = (this.c + (this.c << 3)) | 0;
    this.c = ((this.c << 21) | (this.c >>> 11)) + sum;
    this.c |= 0;
    return sum;
  }

  /** A whole number from 0 to `limit` - 1. */
  below(limit: number): number {
    return Math.floor(((this.word() >>> 0) / 2 ** 32) * limit);
  }

  /** True in `percent` of a hundred. */
  chance(percent: number): boolean {
    return this.below(100) < percent;
  }

  pick<T>(values: readonly T[]): T {
    return values[this.below(values.length)]!;
  }
}
