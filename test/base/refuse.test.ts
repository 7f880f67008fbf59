import { describe, expect, test } from "vitest";
import { bug, REFUSALS, Refusal, type RefusalCode, refuse } from "../../src/base/refuse.ts";

const CODES = Object.keys(REFUSALS) as RefusalCode[];

function refusal(act: () => never): Refusal {
  try {
    act();
  } catch (error) {
    if (error instanceof Refusal) return error;
  }
  return expect.fail("not refused");
}

test("a refusal has its code and its sentence, filled in, on one line", () => {
  const made = refusal(() => refuse("assembly", { at: "a.S:3", problem: "no {such}\n  thing", text: "mov" }));
  expect(made.code).toBe("assembly");
  expect(made.name).toBe("Refusal");
  expect(made.message).toBe("a.S:3: no {such} thing, in 'mov'; mend that line");
});

test("numbers and dollar signs are printed as they are", () => {
  const made = refusal(() => refuse("assembly", { at: 12, problem: "$& and $1", text: "{at}" }));
  expect(made.message).toBe("12: $& and $1, in '{at}'; mend that line");
});

describe("the catalogue", () => {
  test.each(CODES)("%s: one line with a next step", (code) => {
    const sentence: string = REFUSALS[code];
    expect(code).toMatch(/^[a-z]+(-[a-z]+)*$/);
    expect(sentence).not.toContain("\n");
    expect(sentence).toMatch(/; |, .*again/);
    expect(sentence).not.toMatch(/\.$/);
  });

  test.each(CODES)("%s: every placeholder is filled", (code) => {
    const names = [...REFUSALS[code].matchAll(/\{(\w+)\}/g)].map(([, name]) => [name!, `<${name}>`]);
    const made = refusal(() => refuse(code, Object.fromEntries(names)));
    expect(made.message).not.toMatch(/[{}]|undefined/);
    for (const [, value] of names) expect(made.message).toContain(value);
  });
});

test("a bug of ours is no refusal", () => {
  expect(() => bug("two and two")).toThrow("fentrylab bug: two and two");
  expect(() => bug("x")).not.toThrow(Refusal);
});
