// Case after case from a seed.

import type { Mnemonic } from "iced-x86";
import { Batch } from "./batch.ts";
import type { FuzzCode } from "./code.ts";
import { type Form, forms } from "./forms.ts";
import { InstructionMaker } from "./instruction.ts";
import { Random } from "./random.ts";
import { MAX_LENGTH, SequenceMaker } from "./sequence.ts";
import { StateMaker } from "./state.ts";

const ATTEMPTS = 200;
/** In a hundred, where no length is asked for. */
const SEQUENCES = 10;

export interface GeneratorOptions {
  readonly seed: number;
  /** How many states each code is run with. */
  readonly states: number;
  /** How many instructions are executed in a row; mostly one, and now and then up to a dozen, if it is not given. */
  readonly length?: number | undefined;
  /** Single ones of that mnemonic. */
  readonly only?: Mnemonic | undefined;
  /** Instructions that the host's processor does not have, too. */
  readonly anywhere?: boolean;
}

export class Generator {
  private readonly options: GeneratorOptions;
  private readonly byCode: readonly Form[];
  private readonly byMnemonic: readonly (readonly Form[])[];
  private readonly maker: InstructionMaker;
  private readonly sequences: SequenceMaker;
  private readonly random = new Random();
  private readonly states = new StateMaker();
  private next = 0;

  constructor(options: GeneratorOptions) {
    this.options = options;
    const { included } = forms(options.only, options.anywhere);
    this.byCode = included;
    const groups = new Map<Mnemonic, Form[]>();
    for (const form of included) groups.set(form.mnemonic, [...(groups.get(form.mnemonic) ?? []), form]);
    this.byMnemonic = [...groups.values()];
    this.maker = new InstructionMaker(included);
    this.sequences = new SequenceMaker(this.maker, included, () => this.chooseForm());
  }

  /** Fills the batch with the cases that come next, whole codes at a time, and not more than `limit` in all. */
  fill(batch: Batch, limit: number): void {
    const { states } = this.options;
    batch.clear();
    while (this.next * states < limit && batch.hasRoom(states)) {
      this.addCode(batch, this.next++, limit, undefined);
    }
  }

  /** The one case of that number; an empty batch if there is none, since no state was found that may be run. */
  only(number: number): Batch {
    const batch = new Batch(1);
    this.addCode(batch, Math.floor(number / this.options.states), Number.POSITIVE_INFINITY, number);
    return batch;
  }

  private addCode(batch: Batch, index: number, limit: number, only: number | undefined): void {
    const { seed, states } = this.options;
    const random = this.random.restart(seed, index);
    const code = this.makeCode();
    if (code === undefined) return;
    for (let n = 0; n < states; n++) {
      const number = index * states + n;
      if (number >= limit) return;
      const found = this.states.make(random, code);
      if (found && (only === undefined || only === number)) batch.add(number, code, this.states);
    }
  }

  private makeCode(): FuzzCode | undefined {
    const length = this.chooseLength();
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      const code =
        length === 1
          ? this.maker.make(this.random, this.chooseForm())
          : this.sequences.make(this.random, length);
      if (code !== undefined) return code;
    }
    return undefined;
  }

  private chooseLength(): number {
    const { length, only } = this.options;
    if (only !== undefined) return 1;
    return length ?? (this.random.chance(SEQUENCES) ? 2 + this.random.below(MAX_LENGTH - 1) : 1);
  }

  /** Half the time any encoding is as likely as another, half the time any mnemonic. */
  private chooseForm(): Form {
    const { random } = this;
    return random.chance(50) ? random.pick(this.byCode) : random.pick(random.pick(this.byMnemonic));
  }
}
