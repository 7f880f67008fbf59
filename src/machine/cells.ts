// Cells of a fixed number of 32-bit words, in arrays outside the guest's memory, given out and taken back.
//
// Many thousands of snapshots are kept: as objects they would cost several times as much, and the
// garbage collector would visit them all. A cell's number is 1 or more, so that 0 can mean none.

const CELLS_PER_CHUNK = 1 << 14;

export class Cells {
  /** Words of a cell. */
  readonly words: number;
  private readonly chunks: Int32Array[] = [];
  /** The last cell taken back; its first word is the one before. */
  private free = 0;
  private next = 1;
  private used = 0;

  constructor(words: number) {
    this.words = words;
  }

  /** Cells in use. */
  get count(): number {
    return this.used;
  }

  /** Of process memory, used or ready to be. */
  get bytes(): number {
    return this.chunks.length * CELLS_PER_CHUNK * this.words * 4;
  }

  /** A cell with anything in it. */
  allocate(): number {
    this.used++;
    if (this.free !== 0) {
      const cell = this.free;
      this.free = this.chunk(cell)[this.start(cell)]!;
      return cell;
    }
    const cell = this.next++;
    if (cell >>> 14 === this.chunks.length) this.chunks.push(new Int32Array(CELLS_PER_CHUNK * this.words));
    return cell;
  }

  release(cell: number): void {
    this.used--;
    this.chunk(cell)[this.start(cell)] = this.free;
    this.free = cell;
  }

  /** The array that holds `cell`, from index `start(cell)` on. */
  chunk(cell: number): Int32Array {
    return this.chunks[cell >>> 14]!;
  }

  start(cell: number): number {
    return (cell & (CELLS_PER_CHUNK - 1)) * this.words;
  }
}
