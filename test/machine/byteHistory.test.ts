// Every short history of two bytes: what can be seen is what whole copies say, and what is kept depends on that alone.

import { expect, test } from "vitest";
import {
  afterOwnStore,
  afterStore,
  contentsOf,
  type History,
  indexesOf,
  versionsOf,
  withoutFrame,
} from "../../src/machine/byteHistory.ts";
import type { Frame } from "../../src/machine/memory.ts";

const frame = (at: number): Frame => ({ at, pages: [], code: true, tracked: -1 });
/** The two bytes are of two frames, as at the end of a page. */
const FRAMES = [frame(4096), frame(8192)];
const AT = [4096, 8192];
const WINDOWS = [[0], [1], [0, 1]];
const STEPS = 4;

interface Step {
  readonly own: boolean;
  /** By byte; undefined where it is not stored to. */
  readonly values: readonly (number | undefined)[];
}

interface Truth {
  readonly copies: readonly (readonly number[])[];
  /** The copy after the vCPU's own last store to each byte. */
  readonly own: readonly number[];
}

const BEGIN: Truth = { copies: [[0, 0]], own: [0, 0] };

function happen({ copies, own }: Truth, step: Step): Truth {
  const now = copies.at(-1)!.map((value, n) => step.values[n] ?? value);
  return {
    copies: [...copies, now],
    own: own.map((n, byte) => (step.own && step.values[byte] !== undefined ? copies.length : n)),
  };
}

function record(history: History | undefined, { copies }: Truth, step: Step): History | undefined {
  const stores = step.values.flatMap((after, n) =>
    after === undefined ? [] : [{ frame: FRAMES[n]!, offset: 0, before: copies.at(-1)![n]!, after }],
  );
  if (step.own) return history && afterOwnStore(history, stores);
  const changes = stores.filter(({ before, after }) => before !== after);
  return changes.length === 0 ? history : afterStore(history, changes);
}

const byLast = (list: readonly string[]): string[] =>
  list.filter((text, n) => !list.slice(n + 1).includes(text));

/** For each row of bytes, what may be there as a whole; and what each byte may be. */
function expected({ copies, own }: Truth): string {
  const seen = WINDOWS.map((window) => {
    const first = Math.max(...window.map((n) => own[n]!));
    return byLast(copies.slice(first).map((copy) => window.map((n) => copy[n]).join()));
  });
  return JSON.stringify(seen);
}

function found(history: History | undefined, now: readonly number[]): string {
  if (history === undefined)
    return JSON.stringify(WINDOWS.map((window) => [window.map((n) => now[n]).join()]));
  const indexes = AT.map((at) => indexesOf(history).get(at) ?? -1);
  const seen = WINDOWS.map((window) => {
    const present = Uint8Array.from(window, (n) => now[n]!);
    const places = window.map((n) => indexes[n]!);
    const [place] = places;
    const contents = contentsOf(history, places, present).map((content) => content.join());
    return window.length === 1 && place! >= 0 ? versionsOf(history, place!).map(String) : contents;
  });
  return JSON.stringify(seen);
}

/** What is kept, the places in order. */
function formOf(history: History | undefined): string {
  if (history === undefined) return "";
  const { instants, since } = history;
  const columns = AT.flatMap((at) => indexesOf(history).get(at) ?? []);
  return JSON.stringify([
    [...indexesOf(history).keys()].sort(),
    instants.map((content) => columns.map((n) => content[n])),
    columns.map((n) => since[n]),
  ]);
}

const STORES: Step[] = [true, false].flatMap((own) =>
  [undefined, 0, 1].flatMap((a) =>
    [undefined, 0, 1].flatMap((b) => (a === undefined && b === undefined ? [] : [{ own, values: [a, b] }])),
  ),
);

test("is what whole copies say, in one form", () => {
  const forms = new Map<string, string>();
  const visit = (truth: Truth, history: History | undefined, steps: number) => {
    const what = expected(truth);
    const now = truth.copies.at(-1)!;
    if (found(history, now) !== what) expect(found(history, now)).toBe(what);
    const form = formOf(history);
    const key = `${what} ${now}`;
    if ((forms.get(key) ?? form) !== form) expect([key, form]).toEqual([key, forms.get(key)]);
    forms.set(key, form);
    if (steps > 0)
      for (const step of STORES) visit(happen(truth, step), record(history, truth, step), steps - 1);
  };
  visit(BEGIN, undefined, STEPS);
  expect(forms.size).toBeGreaterThan(50);
});

test("without the bytes of a frame, it is as if they had never been stored to", () => {
  const stores = (values: readonly number[], before: readonly number[]) =>
    values.map((after, n) => ({ frame: FRAMES[n]!, offset: 0, before: before[n]!, after }));
  const both = afterStore(afterStore(undefined, stores([1, 1], [0, 0])), stores([2], [1]));
  const first = afterStore(afterStore(undefined, stores([1], [0])), stores([2], [1]));
  expect(formOf(withoutFrame(both, FRAMES[1]!))).toBe(formOf(first));
  expect(withoutFrame(first, FRAMES[0]!)).toBeUndefined();
});
