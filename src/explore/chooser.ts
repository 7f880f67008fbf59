// Who answers a run's questions, and what is written down of it, so that the same run can be had again.

import type { ChoiceKind, Chooser } from "../base/chooser.ts";
import { CHOICES } from "../base/chooser.ts";
import { refuse } from "../base/refuse.ts";

const KINDS = Object.keys(CHOICES) as ChoiceKind[];

/** Chooses by chance: the same `seed`, from 0 to 2^53 - 1, gives the same answers to the same questions. */
export function seeded(seed: number): Chooser {
  const random = new Random(seed);
  return { choose: (_, count) => random.below(count) };
}

/** So often one of them begins to be passed over, and for so many questions at most. */
const PASSED_OVER = { oneIn: 30, most: 300 };

/** As `seeded`, but unfair: for stretches, one of those who could be next is passed over. */
export function unfair(seed: number): Chooser {
  const random = new Random(seed);
  let [who, left] = [0, 0];
  return {
    choose(kind, count) {
      const answer = random.below(count);
      if (kind !== "vcpu") return answer;
      if (left === 0) {
        if (random.below(PASSED_OVER.oneIn) === 0)
          [who, left] = [random.below(count), random.below(PASSED_OVER.most)];
        return answer;
      }
      left--;
      return answer === who ? (answer + 1 + random.below(count - 1)) % count : answer;
    },
  };
}

/** Gives these answers in turn, whatever is asked, then `rest`'s. Refuses one that is no answer to its question. */
export function scripted(answers: readonly number[], rest?: Chooser): Chooser {
  let next = 0;
  return {
    choose(kind, count) {
      const index = next++;
      const answer = answers[index] ?? rest?.choose(kind, count);
      if (answer === undefined) return refuse("script-over", { kind, count: answers.length });
      if (!Number.isInteger(answer) || answer < 0 || answer >= count)
        return refuse("script-answer", { index, answer, kind, count });
      return answer;
    },
  };
}

/** What was asked and answered in a run, as it is written to a file: `[kind, count, answer]` in one array of numbers. */
export interface Choices {
  /** The kinds that the numbers are indices of. */
  readonly kinds: readonly string[];
  readonly answers: readonly number[];
}

/** Numbers of a choice in `answers`. */
export const STRIDE = 3;

/** How many choices there are. */
export function countOf({ answers }: Choices): number {
  return answers.length / STRIDE;
}

/** Passes questions on to `chooser`, and notes them with their answers. */
export class Recorder implements Chooser {
  private readonly chooser: Chooser;
  private readonly noted: number[] = [];

  constructor(chooser: Chooser) {
    this.chooser = chooser;
  }

  choose(kind: ChoiceKind, count: number): number {
    const answer = this.chooser.choose(kind, count);
    this.noted.push(KINDS.indexOf(kind), count, answer);
    return answer;
  }

  /** How many questions there were. */
  get length(): number {
    return countOf(this.choices);
  }

  get choices(): Choices {
    return { kinds: KINDS, answers: this.noted };
  }
}

/** Gives the answers that were noted. Refuses questions that were not asked then: the run is not the one of the record. */
export function recorded({ kinds, answers }: Choices): Chooser {
  let next = 0;
  return {
    choose(kind, count) {
      const at = next;
      next += STRIDE;
      const index = at / STRIDE;
      if (at >= answers.length) return refuse("record-over", { kind, index });
      const [then, of, answer] = [kinds[answers[at]!]!, answers[at + 1]!, answers[at + 2]!];
      if (then !== kind || of !== count) return refuse("record-differs", { index, kind, count, then, of });
      return answer;
    },
  };
}

/** sfc32 (Chris Doty-Humphrey's PractRand), on 32-bit integers. */
export class Random {
  private a: number;
  private b: number;
  private c = 0x5eed;
  private counter = 1;

  constructor(seed: number) {
    this.a = seed | 0;
    this.b = Math.floor(seed / 2 ** 32) | 0;
    for (let n = 0; n < 12; n++) this.word();
  }

  /** A whole number from 0 to `limit` - 1. */
  below(limit: number): number {
    return Math.floor(((this.word() >>> 0) / 2 ** 32) * limit);
  }

  /** 32 bits, signed. */
  word(): number {
    const sum = (((this.a + this.b) | 0) + this.counter) | 0;
    this.counter = (this.counter + 1) | 0;
    this.a = this.b ^ (this.b >>> 9);
    this.b = (this.c + (this.c << 3)) | 0;
    this.c = (((this.c << 21) | (this.c >>> 11)) + sum) | 0;
    return sum;
  }
}
