// Expressions against GNU as, and against arithmetic done another way.

import fc from "fast-check";
import { beforeAll, describe, expect, test } from "vitest";
import { type Assembler, loadAssembler } from "../../src/x86/assemble.ts";
import { gnuSummary, NO_GNU } from "./assemble-gnu.ts";

let assembler: Assembler;
beforeAll(async () => {
  assembler = await loadAssembler();
});

function valuesOf(texts: readonly string[], before = ""): bigint[] {
  const { sections } = assembler.assemble(
    "e.s",
    `${before}\n.data\n${texts.map((text) => `.quad ${text}`).join("\n")}`,
  );
  const { bytes } = sections.find(({ name }) => name === ".data")!;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return texts.map((_, i) => view.getBigInt64(8 * i, true));
}

const OPERATORS = "+ - * | & ^ << >> == != <> < > <= >= && ||".split(" ");

/** Small numbers, so that shift counts stay in range; nothing divides by what may be zero. */
const number = fc.oneof(
  fc.integer({ min: 0, max: 40 }).map(String),
  fc.constantFrom("0x1f", "017", "0b101", "'a'", "'z"),
);
const text: fc.Arbitrary<string> = fc.letrec<{ whole: string }>((tie) => ({
  whole: fc.oneof(
    { maxDepth: 5 },
    number,
    fc
      .tuple(fc.constantFrom("-", "~", "!", "+"), tie("whole"))
      .map(([operator, of]) => `${operator} (${of})`),
    fc.tuple(fc.constantFrom("-", "~"), number).map(([operator, of]) => operator + of),
    fc
      .tuple(tie("whole"), fc.constantFrom("/", "%"), fc.integer({ min: 1, max: 9 }))
      .map(([a, operator, b]) => `(${a})${operator}${b}`),
    fc
      .tuple(tie("whole"), fc.constantFrom("<<", ">>"), fc.integer({ min: 0, max: 63 }))
      .map(([a, operator, b]) => `(${a}) ${operator} ${b}`),
    fc
      .tuple(
        tie("whole"),
        fc.constantFrom(...OPERATORS.filter((operator) => !/<<|>>/.test(operator))),
        tie("whole"),
      )
      .map(([a, operator, b]) => `${a} ${operator} ${b}`),
    tie("whole").map((inner) => `(${inner})`),
  ),
})).whole;

describe.skipIf(NO_GNU)(`expressions${NO_GNU ? ` (skipped: ${NO_GNU})` : ""}`, () => {
  test("of any shape are what GNU as makes of them", () => {
    const samples = fc.sample(text, { numRuns: 3000, seed: 1 });
    const source = `.data\n${samples.map((sample) => `.quad ${sample}`).join("\n")}\n`;
    const hex = gnuSummary(source).sections[0]!.split(": ")[1]!;
    const expected = samples.map((_, i) =>
      Buffer.from(hex.slice(16 * i, 16 * i + 16), "hex").readBigInt64LE(),
    );
    const values = valuesOf(samples);
    const wrong = samples.flatMap((sample, i) =>
      values[i] === expected[i] ? [] : [`${sample} = ${values[i]}, not ${expected[i]}`],
    );
    expect(wrong).toEqual([]);
  });
});

const word = fc.bigInt({ min: -(2n ** 63n), max: 2n ** 64n - 1n });
const signed = (value: bigint) => BigInt.asIntN(64, value);

describe("arithmetic is 64 bits wide", () => {
  test("any number is itself, in every base", () => {
    fc.assert(
      fc.property(word, (value) => {
        const sign = value < 0n ? "-" : "";
        const size = value < 0n ? -value : value;
        const texts = [10, 16, 2, 8].map(
          (base) => sign + ({ 16: "0x", 2: "0b", 8: "0" }[base] ?? "") + size.toString(base),
        );
        expect(valuesOf(texts)).toEqual(texts.map(() => signed(value)));
      }),
    );
  });

  test("sums, products and bits wrap", () => {
    fc.assert(
      fc.property(word, word, (a, b) => {
        const values = valuesOf([
          `(${a}) + (${b})`,
          `(${a}) - (${b})`,
          `(${a}) * (${b})`,
          `(${a}) & (${b})`,
          `(${a}) ! (${b})`,
        ]);
        expect(values).toEqual([a + b, a - b, a * b, a & b, a | ~b].map(signed));
      }),
    );
  });

  test("division is signed, a right shift is not", () => {
    fc.assert(
      fc.property(word, word, fc.integer({ min: 0, max: 63 }), (a, b, count) => {
        fc.pre(signed(b) !== 0n);
        const values = valuesOf([
          `(${a}) / (${b})`,
          `(${a}) % (${b})`,
          `(${a}) >> ${count}`,
          `(${a}) << ${count}`,
        ]);
        const shifted = [BigInt.asUintN(64, a) >> BigInt(count), a << BigInt(count)];
        expect(values).toEqual([signed(a) / signed(b), signed(a) % signed(b), ...shifted].map(signed));
      }),
    );
  });
});

test("labels of one section fold in any sum that balances", () => {
  fc.assert(
    fc.property(
      fc.array(fc.integer({ min: 0, max: 200 }), { minLength: 3, maxLength: 8 }),
      fc.integer(),
      (gaps, extra) => {
        const before = `.data\n${gaps.map((gap, i) => `l${i}: .skip ${gap}`).join("\n")}\n.section .other,"aw"\n`;
        const offsets = gaps.map((_, i) => gaps.slice(0, i).reduce((sum, gap) => sum + gap, 0));
        const last = gaps.length - 1;
        const texts = [
          `l${last} - l0 + ${extra}`,
          `-(l1 - l${last}) * 3`,
          `l0 + l${last} - l1 - l2 + 7`,
          `(l1 - l0) == ${offsets[1]}`,
        ];
        const { sections } = assembler.assemble(
          "e.s",
          `${before}${texts.map((piece) => `.quad ${piece}`).join("\n")}`,
        );
        const { bytes, relocations } = sections.find(({ name }) => name === ".other")!;
        const view = new DataView(bytes.buffer, bytes.byteOffset);
        expect(relocations).toEqual([]);
        expect(texts.map((_, i) => Number(view.getBigInt64(8 * i, true)))).toEqual([
          offsets[last]! + extra,
          3 * (offsets[last]! - offsets[1]!) + 0,
          offsets[last]! - offsets[1]! - offsets[2]! + 7,
          -1,
        ]);
      },
    ),
  );
});
