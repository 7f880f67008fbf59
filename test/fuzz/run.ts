// The pipeline: while the oracle is at one batch, the engine is held against what it made of the one before.

import type { Mnemonic } from "iced-x86";
import { Batch } from "./batch.ts";
import { BulkEngine, faultOf } from "./bulkEngine.ts";
import type { EngineKind } from "./bulkMachine.ts";
import { Generator } from "./generator.ts";
import type { Outcomes } from "./outcomes.ts";
import type { Reference } from "./reference.ts";
import { type Difference, programOf } from "./report.ts";

const BATCH = 65_536;
/** Of one encoding, so many differences are kept to be shown. */
const SHOWN = 2;

export interface FuzzOptions {
  readonly seed: number;
  readonly cases: number;
  /** How many states each code is run with. */
  readonly states: number;
  readonly length?: number | undefined;
  readonly engines: readonly EngineKind[];
  /** Regions are made for one single instruction in so many: compiling one costs as much as many cases. */
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

/** How many differences something explains. */
export interface Explained {
  count: number;
  /** Of these, the host's processor does as this engine does. */
  confirmed: number;
  /** Of these, the host's processor is known not to be a judge. */
  open: number;
}

export interface FuzzResult {
  /** By family, in the order of their names. */
  readonly families: ReadonlyMap<string, Tally>;
  readonly cases: number;
  /** How many of the codes are different from each other. */
  readonly codes: number;
  /** How many step functions were compiled. */
  readonly forms: number;
  /** By engine: how many cases it ran. */
  readonly ran: Readonly<Record<EngineKind, number>>;
  /** Differences that nothing explains. */
  readonly differenceCount: number;
  /** The first of each encoding. */
  readonly shown: readonly Difference[];
  /** By what explains them, in the order of the names. */
  readonly explained: ReadonlyMap<string, Explained>;
}

/** Runs the cases. Throws if the oracle dies of one, with the range that it is in. */
export async function fuzz(options: FuzzOptions, reference: Reference): Promise<FuzzResult> {
  const { oracle, anywhere } = reference;
  const generator = new Generator({ ...options, anywhere });
  const judge = new Judge(options, reference);
  if (options.number !== undefined) {
    const batch = generator.only(options.number);
    if (batch.count > 0) await judge.compare(batch, await oracle.run(batch));
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
    await judge.compare(current, outcomes);
    options.onProgress?.(judge.cases, judge.differenceCount);
    [current, following] = [following, current];
  }
  await pending;
  return judge.result();
}

class Judge {
  cases = 0;
  differenceCount = 0;
  private readonly options: FuzzOptions;
  private readonly reference: Reference;
  private readonly engines: readonly { kind: EngineKind; engine: BulkEngine }[];
  private readonly families = new Map<string, Tally>();
  private readonly codes = new Set<string>();
  private readonly ran: Record<EngineKind, number> = { stepped: 0, regions: 0 };
  private readonly shown: Difference[] = [];
  private readonly shownOf = new Map<string, number>();
  private readonly explained = new Map<string, Explained>();

  constructor(options: FuzzOptions, reference: Reference) {
    this.options = options;
    this.reference = reference;
    this.engines = options.engines.map((kind) => ({ kind, engine: new BulkEngine(kind, reference.strict) }));
  }

  async compare(batch: Batch, outcomes: Outcomes): Promise<void> {
    this.count(batch, outcomes);
    for (const { kind, engine } of this.engines) {
      const takes = (index: number) => kind === "stepped" || this.isForRegions(batch, index);
      const found: Found[] = [];
      this.ran[kind] += engine.compare(batch, outcomes, takes, (index, aspects) => {
        const why = this.reference.explain(batch, outcomes, index, aspects);
        found.push({ index, why, arbiter: "none" });
      });
      await this.arbitrate(batch, found, engine);
      for (const one of found) this.note(batch, one, kind);
    }
    this.cases += batch.count;
    if (outcomes.count === batch.count) return;
    const [from, to] = [batch.numbers[outcomes.count], batch.numbers[batch.count - 1]];
    throw new Error(`one of cases ${from} to ${to} broke the oracle: a case that must not be generated`);
  }

  result(): FuzzResult {
    const byName = <T>(map: ReadonlyMap<string, T>) => new Map([...map].sort(([a], [b]) => (a < b ? -1 : 1)));
    const { cases, ran, differenceCount, shown } = this;
    return {
      families: byName(this.families),
      cases,
      codes: this.codes.size,
      forms: Math.max(...this.engines.map(({ engine }) => engine.formCount)),
      ran,
      differenceCount,
      shown,
      explained: byName(this.explained),
    };
  }

  /** All sequences, and of the single instructions one in so many. */
  private isForRegions(batch: Batch, index: number): boolean {
    const { states, regionsEvery } = this.options;
    const code = Math.floor(batch.numbers[index]! / states);
    return batch.codes[index]!.count > 1 || code % regionsEvery === 0;
  }

  private count(batch: Batch, outcomes: Outcomes): void {
    for (let n = 0; n < outcomes.count; n++) {
      const code = batch.codes[n]!;
      if (n === 0 || code !== batch.codes[n - 1]) this.codes.add(Buffer.from(code.bytes).toString("latin1"));
      const tally = this.tally(code.family);
      tally.cases++;
      if (faultOf(code, outcomes.words, outcomes.starts[n]!) !== undefined) tally.faults++;
    }
  }

  private tally(family: string): Tally {
    const known = this.families.get(family);
    if (known !== undefined) return known;
    const tally: Tally = { cases: 0, faults: 0, differences: { stepped: 0, regions: 0 } };
    this.families.set(family, tally);
    return tally;
  }

  /** Asks whoever decides about the differences: those that it has, too, are this engine's. */
  private async arbitrate(batch: Batch, found: readonly Found[], engine: BulkEngine): Promise<void> {
    const { arbiter } = this.reference;
    if (arbiter === undefined || found.length === 0) return;
    const asked = new Batch(found.length);
    for (const { index } of found) asked.copy(batch, index);
    const answers = await arbiter.oracle.run(asked);
    for (const one of found) one.arbiter = "agrees";
    engine.compare(
      asked,
      answers,
      () => true,
      (n, aspects) => {
        const known = arbiter.explain(asked, answers, n, aspects) !== undefined;
        found[n]!.arbiter = known ? "is no judge" : "disagrees";
      },
    );
  }

  private note(batch: Batch, { index, why, arbiter }: Found, engine: EngineKind): void {
    if (why !== undefined && arbiter !== "disagrees") {
      const explained = this.explained.get(why) ?? { count: 0, confirmed: 0, open: 0 };
      explained.count++;
      if (arbiter === "agrees") explained.confirmed++;
      if (arbiter === "is no judge") explained.open++;
      this.explained.set(why, explained);
      return;
    }
    const code = batch.codes[index]!;
    this.differenceCount++;
    this.tally(code.family).differences[engine]++;
    const key = `${engine} ${code.code}`;
    const before = this.shownOf.get(key) ?? 0;
    this.shownOf.set(key, before + 1);
    if (before < SHOWN)
      this.shown.push({ number: batch.numbers[index]!, engine, code, program: programOf(batch, index) });
  }
}

/** A difference. */
interface Found {
  readonly index: number;
  /** What explains it. */
  readonly why: string | undefined;
  arbiter: "agrees" | "disagrees" | "is no judge" | "none";
}
