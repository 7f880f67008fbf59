// Outcomes of a batch, made by an oracle that is not the native harness.

import { OUTCOME, OUTCOME_WORDS, type Outcomes } from "./outcomes.ts";

export class OutcomeWriter {
  words: Int32Array;
  private readonly starts: Int32Array;
  private count = 0;
  private at = 0;
  private next: number;

  /** For so many cases. */
  constructor(cases: number) {
    this.starts = new Int32Array(cases);
    this.words = new Int32Array(cases * (OUTCOME_WORDS + 16) + MOST_CHANGES);
    this.next = 0;
  }

  /** The first word of the next outcome, all of whose head is 0. */
  begin(): number {
    if (this.next + OUTCOME_WORDS + MOST_CHANGES > this.words.length) {
      const larger = new Int32Array(2 * this.words.length);
      larger.set(this.words);
      this.words = larger;
    }
    this.at = this.next;
    this.starts[this.count] = this.at;
    this.words.fill(0, this.at, this.at + OUTCOME_WORDS);
    this.next += OUTCOME_WORDS;
    return this.at;
  }

  /** Puts `value`, a whole number that a word can hold, at two words from `at`. */
  setWord(at: number, value: number): void {
    this.words[at] = value % 2 ** 32;
    this.words[at + 1] = Math.floor(value / 2 ** 32);
  }

  /** The window's byte at `offset` is another. */
  addChange(offset: number, byte: number): void {
    this.words[this.next++] = (offset << 8) | byte;
    this.words[this.at + OUTCOME.changes]!++;
  }

  /** The changes so far. */
  changes(): Int32Array {
    return this.words.subarray(this.at + OUTCOME_WORDS, this.next);
  }

  end(): void {
    this.count++;
  }

  outcomes(): Outcomes {
    return { words: this.words, starts: this.starts, count: this.count };
  }
}

/** Every byte of the window. */
const MOST_CHANGES = 0x2000;
