// What a map held, key by key, before it was changed: for state that TypeScript keeps and snapshots restore.

export interface Change<K, V> {
  readonly key: K;
  /** Undefined where the map had nothing. */
  readonly before: V | undefined;
  readonly after: V | undefined;
}

export class Journal<K, V> {
  private readonly before = new Map<K, V | undefined>();

  get isEmpty(): boolean {
    return this.before.size === 0;
  }

  /** Keys of which anything is noted. */
  get size(): number {
    return this.before.size;
  }

  /** Says that what `key` has, `value`, is about to change. Later values are of no interest until `clear`. */
  note(key: K, value: V | undefined): void {
    if (!this.before.has(key)) this.before.set(key, value);
  }

  /** Says that `key` has `value` by now: if it had that before, there is nothing to note of it. */
  settle(key: K, value: V | undefined): void {
    if (this.before.get(key) === value) this.before.delete(key);
  }

  /** What has changed, given what the keys have now. */
  changes(now: (key: K) => V | undefined): readonly Change<K, V>[] {
    if (this.isEmpty) return NONE;
    return [...this.before]
      .map(([key, before]) => ({ key, before, after: now(key) }))
      .filter(({ before, after }) => before !== after);
  }

  clear(): void {
    if (!this.isEmpty) this.before.clear();
  }
}

/** A map that snapshots restore: what has changed in it, and what it is going to have. */
export class Restorable<K, V> {
  /** For whoever changes the map to note what it had. */
  readonly journal = new Journal<K, V>();
  private readonly get: (key: K) => V | undefined;
  private readonly set: (key: K, value: V | undefined) => void;
  /** Empty but between the first of `revert` and `repeat`, and `apply`. */
  private readonly next = new Map<K, V | undefined>();

  constructor(get: (key: K) => V | undefined, set: (key: K, value: V | undefined) => void) {
    this.get = get;
    this.set = set;
  }

  /** Since the journal was cleared. */
  changes(): readonly Change<K, V>[] {
    return this.journal.changes(this.get);
  }

  /** Plans to undo `changes`. */
  revert(changes: readonly Change<K, V>[]): void {
    for (const { key, before } of changes) this.next.set(key, before);
  }

  /** Plans to bring about `changes`. */
  repeat(changes: readonly Change<K, V>[]): void {
    for (const { key, after } of changes) this.next.set(key, after);
  }

  /** Does what was planned; the last plan for a key is the one that counts. */
  apply(): void {
    if (this.next.size === 0) return;
    for (const [key, value] of this.next) if (this.get(key) !== value) this.set(key, value);
    this.next.clear();
  }
}

/** Shared, because most snapshots have none. */
export const NONE: readonly never[] = [];

/** The changes of `first` and then `second` in one. */
export function composeChanges<K, V>(
  first: readonly Change<K, V>[],
  second: readonly Change<K, V>[],
): readonly Change<K, V>[] {
  if (first.length === 0) return second;
  if (second.length === 0) return first;
  const composed = new Map(first.map((change) => [change.key, change]));
  for (const { key, before, after } of second) {
    const earlier = composed.get(key);
    composed.set(key, { key, before: earlier === undefined ? before : earlier.before, after });
  }
  return [...composed.values()].filter(({ before, after }) => before !== after);
}
