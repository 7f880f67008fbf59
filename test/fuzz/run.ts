// The pipeline: while the processor runs one batch in its own process, the engine is held against the one before.

import type { Mnemonic } from "iced-x86";
import { Batch } from "./batch.ts";
import { BulkEngine, type EngineKind } from "./bulkEngine.ts";
import { BulkOracle, type Outcomes } from "./bulkOracle.ts";
import { Generator } from "./generator.ts";
import type { FuzzInstruction } from "./instruction.ts";
import { type Difference, programOf } from "./report.ts";

const BATCH = 65_536;
/** Of one instruction's encoding, so many differences are kept to be shown. */
const SHOWN = 2;

export interface FuzzOptions {
  readonly seed: number;
  readonly cases: number;
  readonly engines: readonly EngineKind[];
  /** Regions are made for one instruction in so many: compiling one costs as much as many cases. */
  readonly regionsEvery: number;
  readonly only?: Mnemonic | undefined;
  /** Just this case. */
  readonly number?: number | undefined;
  readonly onProgress?: (cases: number, differences: number) => void;
}

export interface Tally {
  cases: number;
  faults: number;
  /** By engine. */
  readonly differences: Record<EngineKind, number>;
}

export interface FuzzResult {
  /** By family, in the order of their names. */
  readonly families: ReadonlyMap<string, Tally>;
  readonly cases: number;
  /** By engine: how many cases it ran. */
  readonly ran: Readonly<Record<EngineKind, number>>;
  readonly differenceCount: number;
  /** The first of each encoding. */
  readonly shown: readonly Difference[];
}

/** Runs the cases. Throws if the harness dies of one, with the range that it is in. */
export async function fuzz(options: FuzzOptions): Promise<FuzzResult> {
  const generator = new Generator(options);
  const oracle = await BulkOracle.open();
  const judge = new Judge(options);
  try {
    if (options.number !== undefined) {
      const batch = generator.only(options.number);
      if (batch.count > 0) judge.compare(batch, await oracle.run(batch));
      return judge.result();
    }
    let current = new Batch(BATCH);
    let following = new Batch(BATCH);
    generator.fill(current, options.cases);
    let pending = oracle.run(current);
    while (current.count > 0) {
      generator.fill(following, options.cases);
      const outcomes = await pending;
      pending = oracle.run(following);
      judge.compare(current, outcomes);
      options.onProgress?.(judge.cases, judge.differenceCount);
      [current, following] = [following, current];
    }
    await pending;
    return judge.result();
  } finally {
    oracle.close();
  }
}

class Judge {
  cases = 0;
  differenceCount = 0;
  private readonly engines: readonly { kind: EngineKind; engine: BulkEngine; every: number }[];
  private readonly families = new Map<string, Tally>();
  private readonly ran: Record<EngineKind, number> = { stepped: 0, regions: 0 };
  private readonly shown: Difference[] = [];
  private readonly shownOf = new Map<string, number>();

  constructor({ engines, regionsEvery }: FuzzOptions) {
    this.engines = engines.map((kind) => ({
      kind,
      engine: new BulkEngine(kind),
      every: kind === "regions" ? regionsEvery : 1,
    }));
  }

  compare(batch: Batch, outcomes: Outcomes): void {
    for (const [n, { kind, engine, every }] of this.engines.entries()) {
      const differs = (index: number) => this.note(batch, index, kind);
      const count = (instruction: FuzzInstruction, faulted: boolean) => {
        this.ran[kind]++;
        if (n > 0) return;
        const tally = this.tally(instruction.family);
        tally.cases++;
        if (faulted) tally.faults++;
      };
      engine.compare(batch, outcomes, every, differs, count);
    }
    this.cases += batch.count;
    if (outcomes.count === batch.count) return;
    const [from, to] = [batch.numbers[outcomes.count], batch.numbers[batch.count - 1]];
    throw new Error(`one of cases ${from} to ${to} killed the harness: a case that must not be generated`);
  }

  result(): FuzzResult {
    const families = new Map([...this.families].sort(([a], [b]) => (a < b ? -1 : 1)));
    const { cases, ran, differenceCount, shown } = this;
    return { families, cases, ran, differenceCount, shown };
  }

  private tally(family: string): Tally {
    const known = this.families.get(family);
    if (known !== undefined) return known;
    const tally: Tally = { cases: 0, faults: 0, differences: { stepped: 0, regions: 0 } };
    this.families.set(family, tally);
    return tally;
  }

  private note(batch: Batch, index: number, engine: EngineKind): void {
    const instruction = batch.instructions[index]!;
    this.differenceCount++;
    this.tally(instruction.family).differences[engine]++;
    const key = `${engine} ${instruction.code}`;
    const before = this.shownOf.get(key) ?? 0;
    this.shownOf.set(key, before + 1);
    if (before < SHOWN)
      this.shown.push({ number: batch.numbers[index]!, engine, program: programOf(batch, index) });
  }
}
