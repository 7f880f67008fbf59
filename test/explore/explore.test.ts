// The explorer, on systems whose states can be counted by hand: a few words of guest memory.

import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Addr, offset } from "../../src/base/addr.ts";
import type { Chooser } from "../../src/base/chooser.ts";
import { recorded } from "../../src/explore/chooser.ts";
import { type Advance, type Explorable, explore } from "../../src/explore/explore.ts";
import { Machine } from "../../src/machine/machine.ts";
import { RW, TEXT } from "../machine/guest.ts";

const WORDS = TEXT;

let machine: Machine;
beforeAll(() => {
  machine = new Machine();
  machine.memory.map(WORDS, 4096, RW);
});
afterAll(() => machine.dispose());

type Words = [number, number];
/** What becomes of the words in a step; undefined if there is none. */
type Rule = (words: Words, choose: Chooser["choose"]) => Words | string | undefined;

/** A system of two words, which begin as zeroes. */
function system(rule: Rule): Explorable {
  const { memory } = machine;
  const at = (n: number): Addr => offset(WORDS, 8 * n);
  const read = (): Words => [memory.readNumber(at(0))!, memory.readNumber(at(1))!];
  const write = (words: Words) => {
    for (const [n, word] of words.entries()) memory.writeWord(at(n), BigInt(word));
  };
  write([0, 0]);
  return {
    machine,
    key: () => read().join(),
    advance(chooser): Advance {
      const next = rule(read(), (kind, count) => chooser.choose(kind, count));
      if (next === undefined) return { kind: "over" };
      if (typeof next === "string") return { kind: "wrong", what: next };
      write(next);
      return { kind: "on" };
    },
  };
}

/** Each word is counted up to 3, in any order. */
const counters: Rule = ([a, b], choose) => {
  if (a === 3 && b === 3) return undefined;
  const first = b === 3 || (a < 3 && choose("vcpu", 2) === 0);
  return first ? [a + 1, b] : [a, b + 1];
};

describe.each(["depth", "breadth"] as const)("in %s first", (order) => {
  test("reaches every state once, by every transition", () => {
    const { states, transitions, deepest, ends, finding } = explore(system(counters), { order });
    expect({ states, transitions, deepest, ends, finding }).toEqual({
      states: 16,
      transitions: 24,
      deepest: 6,
      ends: 1,
      finding: undefined,
    });
  });

  test("tries every combination of answers, whatever questions earlier ones lead to", () => {
    const seen: number[][] = [];
    const rule: Rule = ([a], choose) => {
      if (a !== 0) return undefined;
      const first = choose("vcpu", 3);
      const answers = [first, ...(first === 1 ? [choose("byte", 2), choose("byte", 2)] : [])];
      seen.push(answers);
      return [1 + seen.length, 0];
    };
    expect(explore(system(rule), { order })).toMatchObject({ states: 7, transitions: 6, ends: 6 });
    expect(seen).toEqual([[0], [1, 0, 0], [1, 0, 1], [1, 1, 0], [1, 1, 1], [2]]);
  });

  test("gives the way to what is wrong, which can be gone again", () => {
    const rule: Rule = (words, choose) =>
      words[0] === 2 && words[1] === 1 ? "2 and 1" : counters(words, choose);
    const found = explore(system(rule), { order }).finding!;
    expect(found).toMatchObject({ what: "2 and 1", steps: 4 });
    const again = system(rule);
    const chooser = recorded(found.choices);
    const went = Array.from({ length: found.steps }, () => again.advance(chooser));
    expect(went.at(-1)).toEqual({ kind: "wrong", what: "2 and 1" });
  });

  test("finds what goes round for ever, and lets be what can leave", () => {
    const around =
      (mayLeave: boolean): Rule =>
      ([a, b], choose) => {
        if (b === 1) return undefined;
        if (a < 3) return choose("vcpu", 2) === 0 ? [a + 1, 0] : [a, 1];
        const leave = mayLeave && a === 5 && choose("vcpu", 2) === 1;
        return leave ? [a, 1] : [a === 5 ? 3 : a + 1, 0]; // 3, 4, 5, 3
      };
    expect(explore(system(around(true)), { order }).finding).toBeUndefined();
    expect(explore(system(around(false)), { order }).finding).toMatchObject({
      what: expect.stringContaining("no way leads to an end"),
      steps: 3,
    });
  });

  test("gives back every snapshot", () => {
    const before = machine.snapshotStats.snapshots;
    explore(system(counters), { order });
    explore(
      system(() => "at once"),
      { order },
    );
    expect(machine.snapshotStats.snapshots).toBe(before);
  });
});

test("breadth first finds a shortest way", () => {
  // The last answer is looked at first: in depth, that is the long way round.
  const rule: Rule = ([a, b], choose) => {
    if (a === 9) return "nine";
    if (a === 8 || b === 5) return [9, 0];
    return choose("vcpu", 2) === 0 ? [8, 0] : [0, b + 1];
  };
  expect(explore(system(rule), { order: "breadth" }).finding?.steps).toBe(3);
  expect(explore(system(rule)).finding?.steps).toBeGreaterThan(3);
});

test("goes the longest way to an end, if nothing is wrong", () => {
  const { longest } = explore(system(counters));
  expect(longest.steps).toBe(6);
  const again = system(counters);
  const chooser = recorded(longest.choices);
  for (let step = 0; step < longest.steps; step++) expect(again.advance(chooser)).toEqual({ kind: "on" });
  expect(again.advance(chooser)).toEqual({ kind: "over" });
});
