// What TypeScript keeps beside a machine's memory and has to follow its snapshots: loaded images, for one.

import type { Journal } from "./journal.ts";

/** All that is kept beside one machine. */
export class Keeper {
  /** While snapshots are made: what was there before it is replaced. */
  journal: Journal<Kept<object>, object> | undefined;
  /** How often any of it was replaced: what was found out from it holds for as long as this stays. */
  changes = 0;
}

/** A value that is replaced as a whole and never changed in place: restoring a snapshot puts back the one of that time. */
export class Kept<V extends object> {
  private readonly keeper: Keeper;
  private readonly replaced: (() => void) | undefined;
  private present: V;

  /** `replaced` is called whenever there is another value, by `value` or by a snapshot. */
  constructor(keeper: Keeper, initial: V, replaced?: () => void) {
    this.keeper = keeper;
    this.present = initial;
    this.replaced = replaced;
  }

  get value(): V {
    return this.present;
  }

  set value(value: V) {
    this.keeper.journal?.note(this as unknown as Kept<object>, this.present);
    this.present = value;
    this.keeper.changes++;
    this.replaced?.();
  }
}
