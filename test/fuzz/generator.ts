// Case after case from a seed.

import type { Mnemonic } from "iced-x86";
import { Batch, STATES } from "./batch.ts";
import { type Form, forms } from "./forms.ts";
import { type FuzzInstruction, InstructionMaker } from "./instruction.ts";
import { Random } from "./random.ts";
import { StateMaker } from "./state.ts";

const ATTEMPTS = 200;

export interface GeneratorOptions {
  readonly seed: number;
  readonly only?: Mnemonic | undefined;
}

export class Generator {
  private readonly seed: number;
  private readonly byCode: readonly Form[];
  private readonly byMnemonic: readonly (readonly Form[])[];
  private readonly maker: InstructionMaker;
  private readonly random = new Random();
  private readonly states = new StateMaker();
  private next = 0;

  constructor({ seed, only }: GeneratorOptions) {
    this.seed = seed;
    const { included } = forms(only);
    this.byCode = included;
    const groups = new Map<Mnemonic, Form[]>();
    for (const form of included) groups.set(form.mnemonic, [...(groups.get(form.mnemonic) ?? []), form]);
    this.byMnemonic = [...groups.values()];
    this.maker = new InstructionMaker(included);
  }

  get isEmpty(): boolean {
    return this.byCode.length === 0;
  }

  /** Fills the batch with the cases that come next, whole instructions at a time, and not more than `limit` in all. */
  fill(batch: Batch, limit: number): void {
    batch.clear();
    while (this.next * STATES < limit && batch.count + STATES <= batch.numbers.length) {
      this.addInstruction(batch, this.next++, limit, undefined);
    }
  }

  /** The one case of that number; an empty batch if there is none, since no state was found that may be run. */
  only(number: number): Batch {
    const batch = new Batch(1);
    this.addInstruction(batch, Math.floor(number / STATES), Number.POSITIVE_INFINITY, number);
    return batch;
  }

  private addInstruction(batch: Batch, index: number, limit: number, only: number | undefined): void {
    const random = this.random.restart(this.seed, index);
    const instruction = this.makeInstruction();
    if (instruction === undefined) return;
    const { states } = this;
    for (let n = 0; n < STATES; n++) {
      const number = index * STATES + n;
      if (number >= limit) return;
      const found = states.make(random, instruction);
      if (found && (only === undefined || only === number)) batch.add(number, instruction, states);
    }
  }

  /** Half the time any encoding is as likely as another, half the time any mnemonic. */
  private makeInstruction(): FuzzInstruction | undefined {
    const { random } = this;
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      const form = random.chance(50) ? random.pick(this.byCode) : random.pick(random.pick(this.byMnemonic));
      const instruction = this.maker.make(random, form);
      if (instruction !== undefined) return instruction;
    }
    return undefined;
  }
}
