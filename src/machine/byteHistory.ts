// What was in some bytes of code, instant by instant, as far as one vCPU may still see it.
//
// Never changed, so that vCPUs and snapshots share it. It is kept in a form that depends on what may still be seen
// and on nothing else: a content that came back is one instant, so that poking to and fro does not make it grow.

import type { HostAddress } from "./host.ts";
import type { Frame } from "./memory.ts";

export interface Place {
  readonly frame: Frame;
  readonly offset: number;
}

/** What a store makes of one byte. */
export interface ByteStore extends Place {
  readonly before: number;
  readonly after: number;
}

export interface History {
  readonly places: readonly Place[];
  /**
   * What was in the places, a byte for each; 0 where it cannot be seen. Every content once, by when it was there last:
   * the last one is there now.
   */
  readonly instants: readonly Uint8Array[];
  /** By place: the first instant that may still be seen there; a later one if the vCPU has stored there itself. */
  readonly since: readonly number[];
}

const indexesByPlaces = new WeakMap<readonly Place[], ReadonlyMap<HostAddress, number>>();

/** The index of each place, by its host address. */
export function indexesOf({ places }: History): ReadonlyMap<HostAddress, number> {
  const known = indexesByPlaces.get(places);
  if (known !== undefined) return known;
  const indexes = new Map(places.map((place, n) => [hostAddress(place), n]));
  indexesByPlaces.set(places, indexes);
  return indexes;
}

export function hostAddress({ frame, offset }: Place): HostAddress {
  return frame.at + offset;
}

/** `history` with one more instant, after a store by somebody else, which changed all these bytes. */
export function afterStore(history: History | undefined, stores: readonly ByteStore[]): History {
  const wide = history === undefined ? begun(stores) : widened(history, stores);
  const latest = latestAfter(wide, stores);
  const { instants, since } = wide;
  // What comes back is what it was: it is now.
  const stay = instants.map((content, n) => since.some((first, p) => first <= n && content[p] !== latest[p]));
  return kept({ ...wide, instants: [...instants, latest] }, [...stay, true]);
}

/** The same after a store by the vCPU itself: what was in these bytes before, it cannot see. Undefined if nothing is left. */
export function afterOwnStore(history: History, stores: readonly ByteStore[]): History | undefined {
  const wide = widened(history, stores);
  const { places, instants } = wide;
  const own = new Set(stores.map(hostAddress));
  const isOwn = places.map((place) => own.has(hostAddress(place)));
  const since = wide.since.map((first, p) => (isOwn[p] ? instants.length : first));
  const blotted = instants.map((content) => content.map((byte, p) => (isOwn[p] ? 0 : byte)));
  return reduced({ places, instants: [...blotted, latestAfter(wide, stores)], since });
}

/** `history` without the bytes of `frame`. */
export function withoutFrame(history: History, frame: Frame): History | undefined {
  return reduced(
    selected(
      history,
      history.places.map((place) => place.frame !== frame),
    ),
  );
}

/** The values that the byte at place `index` may have, by when it had them last. */
export function versionsOf({ instants, since }: History, index: number): number[] {
  const values = instants.slice(since[index]!).map((content) => content[index]!);
  return [...new Set(values.reverse())].reverse();
}

/**
 * What was at each instant that may be seen in a row of bytes, each content once, by when it was there last.
 * `indexes` are their places, or -1 for one that has always been as `present` says.
 */
export function contentsOf(history: History, indexes: readonly number[], present: Uint8Array): Uint8Array[] {
  // A vCPU that has stored to one of them sees the others as they were then, or later.
  const first = Math.max(0, ...indexes.map((index) => (index < 0 ? 0 : history.since[index]!)));
  const contents = history.instants
    .slice(first)
    .map((content) => present.map((byte, n) => (indexes[n]! < 0 ? byte : content[indexes[n]!]!)));
  const last = lastOccurrences(contents);
  return contents.filter((_, n) => last[n]);
}

/** A history without an instant yet but the one that the stores end. */
function begun(stores: readonly ByteStore[]): History {
  return {
    places: stores.map(({ frame, offset }) => ({ frame, offset })),
    instants: [Uint8Array.from(stores, ({ before }) => before)],
    since: stores.map(() => 0),
  };
}

/** `history` with places for all the stores: what has not changed until now was the same at all instants. */
function widened(history: History, stores: readonly ByteStore[]): History {
  const { places, instants, since } = history;
  const known = indexesOf(history);
  const added = stores.filter((store) => !known.has(hostAddress(store)));
  if (added.length === 0) return history;
  const more = begun(added);
  return {
    places: [...places, ...more.places],
    instants: instants.map((content) => Uint8Array.of(...content, ...more.instants[0]!)),
    since: [...since, ...more.since],
  };
}

/** What the stores, which all have a place, make of the latest instant. */
function latestAfter(history: History, stores: readonly ByteStore[]): Uint8Array {
  const indexes = indexesOf(history);
  const latest = history.instants.at(-1)!.slice();
  for (const store of stores) latest[indexes.get(hostAddress(store))!] = store.after;
  return latest;
}

/** `history` without the instants that come again; undefined if only the present is left of it. */
function reduced(history: History): History | undefined {
  const { instants, since } = history;
  const stay = instants.map(() => true);
  // What can be seen of an instant becomes more at each of these.
  for (const first of new Set([0, ...since])) {
    const last = lastOccurrences(instants.map((content) => content.filter((_, p) => since[p]! <= first)));
    const next = Math.min(instants.length, ...since.filter((later) => later > first));
    for (let n = first; n < next; n++) stay[n] = last[n]!;
  }
  const left = kept(history, stay);
  return left.instants.length === 1 ? undefined : left;
}

/** Of the instants those that `stay`, and of the places those that this leaves something to say of. */
function kept(history: History, stay: readonly boolean[]): History {
  if (stay.every(Boolean)) return history;
  const instants = history.instants.filter((_, n) => stay[n]);
  let count = 0;
  const before = stay.map((stays) => (stays ? count++ : count));
  const since = history.since.map((first) => before[first]!);
  return selected(
    { places: history.places, instants, since },
    since.map((first, p) => first > 0 || instants.some((content) => content[p] !== instants[0]![p])),
  );
}

function selected(history: History, places: readonly boolean[]): History {
  if (places.every(Boolean)) return history;
  return {
    places: history.places.filter((_, n) => places[n]),
    instants: history.instants.map((content) => content.filter((_, n) => places[n])),
    since: history.since.filter((_, n) => places[n]),
  };
}

/** Of each content, whether no later one is the same. */
function lastOccurrences(contents: readonly Uint8Array[]): boolean[] {
  const last = new Map(contents.map((content, n) => [content.join(), n]));
  return contents.map((content, n) => last.get(content.join()) === n);
}
