// Bytes of the WebAssembly binary format, written flat into one growing buffer: an emitter that
// builds arrays of arrays costs more than the compiling itself.

export class Writer {
  private buffer: Uint8Array;
  length = 0;

  constructor(capacity = 256) {
    this.buffer = new Uint8Array(capacity);
  }

  byte(value: number): void {
    if (this.length === this.buffer.length) this.reserve(1);
    this.buffer[this.length++] = value;
  }

  bytes(values: Uint8Array): void {
    this.reserve(values.length);
    this.buffer.set(values, this.length);
    this.length += values.length;
  }

  /** LEB128 of an unsigned 32-bit number. */
  u32(value: number): void {
    let rest = value >>> 0;
    while (rest >= 0x80) {
      this.byte((rest & 0x7f) | 0x80);
      rest >>>= 7;
    }
    this.byte(rest);
  }

  /** Signed LEB128 of a 32-bit number. */
  s32(value: number): void {
    let rest = value | 0;
    while (rest < -0x40 || rest >= 0x40) {
      this.byte((rest & 0x7f) | 0x80);
      rest >>= 7;
    }
    this.byte(rest & 0x7f);
  }

  /** Signed LEB128 of a 64-bit integer, given as a safe integer or as a bigint of either signedness. */
  s64(value: number | bigint): void {
    if (typeof value === "bigint") {
      let rest = BigInt.asIntN(64, value);
      while (rest < -0x40n || rest >= 0x40n) {
        this.byte(Number(rest & 0x7fn) | 0x80);
        rest >>= 7n;
      }
      this.byte(Number(rest & 0x7fn));
      return;
    }
    if (!Number.isSafeInteger(value)) throw new RangeError(`${value} is not a safe integer: pass a bigint`);
    let rest = value;
    while (rest < -0x40 || rest >= 0x40) {
      const low = ((rest % 128) + 128) % 128;
      this.byte(low | 0x80);
      rest = (rest - low) / 128;
    }
    this.byte(rest & 0x7f);
  }

  f64(value: number): void {
    const cell = new DataView(new ArrayBuffer(8));
    cell.setFloat64(0, value, true);
    this.bytes(new Uint8Array(cell.buffer));
  }

  /** A name: its UTF-8 length and bytes. */
  name(text: string): void {
    const bytes = new TextEncoder().encode(text);
    this.u32(bytes.length);
    this.bytes(bytes);
  }

  /** `content`, preceded by its length. */
  sized(content: Writer): void {
    this.u32(content.length);
    this.bytes(content.view());
  }

  /** What was written so far; valid until the next write. */
  view(): Uint8Array {
    return this.buffer.subarray(0, this.length);
  }

  private reserve(more: number): void {
    if (this.length + more <= this.buffer.length) return;
    const larger = new Uint8Array(Math.max(this.length + more, 2 * this.buffer.length));
    larger.set(this.view());
    this.buffer = larger;
  }
}
