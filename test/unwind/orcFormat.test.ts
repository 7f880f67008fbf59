// ORC on disk: what is written is read again, what the kernel's layouts say is what we read, and what is broken is refused.

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { type Addr, addr } from "../../src/base/addr.ts";
import { parseHexBytes } from "../../src/base/bytes.ts";
import { Refusal } from "../../src/base/refuse.ts";
import type { Image } from "../../src/image/image.ts";
import { KERNEL_TEXT } from "../../src/image/layout.ts";
import { link } from "../../src/image/link.ts";
import {
  type BpRegister,
  type CfaRegister,
  describeRule,
  frameless,
  type OrcEntry,
  type OrcRule,
} from "../../src/unwind/orc/entry.ts";
import { type OrcLayout, type OrcSections, readOrc, writeOrc } from "../../src/unwind/orc/format.ts";
import { tableInSections } from "../../src/unwind/orc/image.ts";
import { sorted } from "../../src/unwind/orc/table.ts";
import { object, section, symbol } from "../image/objects.ts";

const TEXT = { address: KERNEL_TEXT, size: 4096 };
const IPS = addr(KERNEL_TEXT + 0x10000);
const at = (bytes: number) => (KERNEL_TEXT + bytes) as Addr;

const REGISTERS: CfaRegister[] = ["dx", "di", "bp", "sp", "r10", "r13", "bp-indirect", "sp-indirect"];
const short = fc.integer({ min: -32768, max: 32767 });
const bpPlace = fc.oneof(
  fc.constant({ register: "undefined" as BpRegister, offset: 0 }),
  fc.record({ register: fc.constantFrom<BpRegister>("prevsp", "bp"), offset: short }),
);
const framed = fc.record({
  type: fc.constantFrom("CALL" as const, "REGS" as const, "REGS_PARTIAL" as const),
  cfa: fc.record({ register: fc.constantFrom(...REGISTERS), offset: short }),
  bp: bpPlace,
  signal: fc.boolean(),
});

/** Every rule that the layout can hold. */
const ruleOf: Record<OrcLayout, fc.Arbitrary<OrcRule>> = {
  "6.1": fc.oneof(
    fc.constantFrom(frameless("UNDEFINED"), frameless("END_6_1")),
    framed.map((rule) => ({ ...rule, signal: rule.type !== "CALL" })),
  ),
  "6.12": fc.oneof(fc.constantFrom(frameless("UNDEFINED"), frameless("END_OF_STACK")), framed),
};

describe.each(["6.1", "6.12"] as const)("the layout of %s", (layout) => {
  test("holds every rule, in any order", () => {
    const entries = fc.array(
      fc
        .tuple(fc.integer({ min: 0, max: 4096 }), ruleOf[layout])
        .map(([place, rule]): OrcEntry => ({ address: at(place), ...rule })),
    );
    fc.assert(
      fc.property(entries, (entries) => {
        const sections = writeOrc(layout, entries, IPS);
        expect(sections.rules.length).toBe(6 * entries.length);
        expect(sections.ip.length).toBe(4 * entries.length);
        expect(sections.header?.length).toBe(layout === "6.1" ? undefined : 20);
        expect(readOrc("test", sections, IPS, [TEXT])).toEqual(entries);
      }),
    );
  });

  test("of any six bytes is read as a rule that is written as these bytes, or refused", () => {
    const { ip, header } = writeOrc(layout, [{ address: at(0), ...frameless("UNDEFINED") }], IPS);
    const seen = { read: 0, refused: 0 };
    // Most words of flags mean nothing, least of all with offsets from nowhere.
    const bytes = fc
      .tuple(
        fc.constantFrom(0, 8, 255),
        fc.constantFrom(0, 240),
        fc.nat(0xfff),
        fc.constantFrom(0, 0, 0, 0x1000),
      )
      .map(([cfa, bp, low, high]) => Uint8Array.of(cfa, 0, bp, 0, low & 255, (low | high) >> 8));
    const property = fc.property(bytes, (rules) => {
      const sections = { ip, rules, ...(header && { header }) };
      try {
        const entries = readOrc("test", sections, IPS, [TEXT]);
        expect(writeOrc(layout, entries, IPS).rules).toEqual(rules);
        seen.read++;
      } catch (error) {
        expect(error).toBeInstanceOf(Refusal);
        seen.refused++;
      }
    });
    fc.assert(property, { numRuns: 4000, seed: 1 });
    expect(Math.min(seen.read, seen.refused)).toBeGreaterThan(50);
  });
});

describe("the bits, by hand", () => {
  const ip = writeOrc("6.1", [{ address: at(0), ...frameless("UNDEFINED") }], IPS).ip;
  const read = (layout: OrcLayout, hex: string) => {
    const sections = {
      ip,
      rules: parseHexBytes(hex),
      ...(layout === "6.12" && { header: new Uint8Array(20) }),
    };
    return describeRule(readOrc("test", sections, IPS, [TEXT])[0]!);
  };

  // Offsets of cfa and bp, then from the lowest bit: 4 of cfa's register, 4 of bp's, the type.
  test.each([
    ["6.1", "10 00 f0 ff 15 00", "CALL cfa:sp+16 bp:prevsp-16"],
    ["6.1", "10 00 f0 ff 14 00", "CALL cfa:bp+16 bp:prevsp-16"],
    ["6.1", "00 00 00 00 46 00", "CALL cfa:r10+0 bp:bp+0"],
    ["6.1", "f8 ff 00 00 48 00", "CALL cfa:(bp-8) bp:bp+0"],
    ["6.1", "00 00 00 00 05 01", "REGS cfa:sp+0 bp:(und) signal"],
    ["6.1", "08 00 00 00 09 02", "REGS_PARTIAL cfa:(sp)+8 bp:(und) signal"],
    ["6.1", "00 00 00 00 00 00", "UNDEFINED"],
    ["6.1", "00 00 00 00 00 04", "END_6_1"],
    ["6.12", "10 00 f0 ff 15 02", "CALL cfa:sp+16 bp:prevsp-16"],
    ["6.12", "10 00 f0 ff 15 0a", "CALL cfa:sp+16 bp:prevsp-16 signal"],
    ["6.12", "00 00 00 00 05 0b", "REGS cfa:sp+0 bp:(und) signal"],
    ["6.12", "00 00 00 00 05 0c", "REGS_PARTIAL cfa:sp+0 bp:(und) signal"],
    ["6.12", "00 00 00 00 07 02", "CALL cfa:r13+0 bp:(und)"],
    ["6.12", "00 00 00 00 00 00", "UNDEFINED"],
    ["6.12", "00 00 00 00 00 01", "END_OF_STACK"],
  ] as const)("%s: %s is %s", (layout, hex, rule) => expect(read(layout, hex)).toBe(rule));

  test.each([
    ["6.1", "10 00 f0 ff 15 03", "the fourth type"],
    ["6.1", "10 00 f0 ff 15 08", "a bit behind `end`"],
    ["6.1", "10 00 f0 ff 15 04", "an end that has a frame"],
    ["6.1", "10 00 00 00 11 00", "a cfa that is found from itself"],
    ["6.1", "10 00 00 00 0a 00", "a register that there is not"],
    ["6.1", "10 00 00 00 55 00", "a caller's rbp at rsp"],
    ["6.1", "10 00 08 00 05 00", "an offset from nowhere"],
    ["6.1", "08 00 00 00 00 00", "a frame at an offset from nowhere"],
    ["6.1", "00 00 00 00 00 01", "registers nowhere"],
    ["6.12", "10 00 f0 ff 15 05", "the sixth type"],
    ["6.12", "10 00 f0 ff 15 12", "a bit behind `signal`"],
    ["6.12", "10 00 f0 ff 15 01", "an end that has a frame"],
    ["6.12", "00 00 00 00 00 08", "a signal frame of which nothing is known"],
    ["6.12", "00 00 00 00 00 02", "a call without a frame"],
  ] as const)("%s: %s is refused: %s", (layout, hex, _) => {
    expect(() => read(layout, hex)).toThrow(/ORC entry 0, [0-9a-f ]+, has bits that mean nothing/);
  });
});

test("6.1 has one `end` for the end of a stack and for nothing known: what is written as one is read as either", () => {
  const written = writeOrc("6.1", [{ address: at(0), ...frameless("END_OF_STACK") }], IPS);
  expect(readOrc("test", written, IPS, [TEXT])[0]!.type).toBe("END_6_1");
  const end = { address: at(0), ...frameless("END_6_1") };
  expect(() => writeOrc("6.12", [end], IPS)).toThrow("bug");
});

describe("sections in an image", () => {
  const call = (offset: number): OrcRule => ({
    type: "CALL",
    cfa: { register: "sp", offset },
    bp: { register: "undefined", offset: 0 },
    signal: false,
  });
  const entries: OrcEntry[] = [
    { address: at(0), ...call(8) },
    { address: at(4), ...call(16) },
    { address: at(16), ...frameless("UNDEFINED") },
  ];

  /** An image whose ORC sections hold what `change` makes of `entries`. */
  function image(
    layout: OrcLayout,
    change: (
      sections: OrcSections,
    ) => Partial<Record<keyof OrcSections, Uint8Array | undefined>> = () => ({}),
    list = entries,
  ): Image {
    const data = (name: string, bytes: Uint8Array | undefined) =>
      bytes === undefined ? [] : [section(name, bytes.length, { bytes, execute: false })];
    const linked = (sections: OrcSections) => {
      const { ip, rules, header } = { ...sections, ...change(sections) };
      const orc = [
        ...data(".orc_unwind_ip", ip),
        ...data(".orc_unwind", rules),
        ...data(".orc_header", header),
      ];
      const file = object("t.o", [section(".text", 16), ...orc], [symbol("f", 0, { size: 16 })]);
      return link([file], { text: KERNEL_TEXT, name: "t" });
    };
    // The addresses are relative to where the linker puts them.
    const place = linked(writeOrc(layout, list, IPS)).sectionsNamed(".orc_unwind_ip")[0];
    return linked(writeOrc(layout, list, place?.address ?? IPS));
  }

  test.each(["6.1", "6.12"] as const)("of layout %s make a table", (layout) => {
    expect(tableInSections(image(layout))?.entries).toEqual(entries);
  });

  test("that are not there make none", () => {
    const file = object("t.o", [section(".text", 16)], []);
    expect(tableInSections(link([file], { text: KERNEL_TEXT }))).toBeUndefined();
  });

  test("are sorted, a section's end before the next one's first function", () => {
    const [first, second, end] = entries as [OrcEntry, OrcEntry, OrcEntry];
    const list = [second, end, first, { ...end, address: second.address }];
    expect(tableInSections(image("6.1", undefined, list))?.entries.map(describeRule)).toEqual([
      "CALL cfa:sp+8 bp:(und)",
      "UNDEFINED",
      "CALL cfa:sp+16 bp:(und)",
      "UNDEFINED",
    ]);
    expect(sorted(list).map(({ address }) => address)).toEqual([at(0), at(4), at(4), at(16)]);
  });

  const cut = (bytes: Uint8Array, by: number) => bytes.subarray(0, bytes.length - by);
  test.each<[string, Image, RegExp]>([
    [
      "rules cut short",
      image("6.1", ({ rules }) => ({ rules: cut(rules, 1) })),
      /17 bytes, no multiple of 6/,
    ],
    ["an address too few", image("6.1", ({ ip }) => ({ ip: cut(ip, 4) })), /8 bytes, where 3 rules need 12/],
    [
      "addresses cut short",
      image("6.1", ({ ip }) => ({ ip: cut(ip, 1) })),
      /11 bytes, where 3 rules need 12/,
    ],
    ["no addresses", image("6.1", () => ({ ip: undefined })), /only \.orc_unwind of the two/],
    ["no rules", image("6.1", () => ({ rules: undefined })), /only \.orc_unwind_ip of the two/],
    ["a short header", image("6.12", () => ({ header: new Uint8Array(19) })), /19 bytes, not 20/],
    ["an empty header", image("6.12", () => ({ header: new Uint8Array(0) })), /0 bytes, not 20/],
    [
      "headers that differ",
      image("6.12", () => ({ header: Uint8Array.from({ length: 40 }, (_, n) => Number(n === 30)) })),
      /different layouts, by \.orc_header/,
    ],
    [
      "an address behind the text",
      image("6.1", undefined, [{ ...entries[0]!, address: at(17) }]),
      /ORC entry 0 is for 0xffffffff81000011, where it has no code/,
    ],
    [
      "an address before the text",
      image("6.1", undefined, [{ ...entries[0]!, address: at(-1) }]),
      /0xffffffff80ffffff, where it has no code/,
    ],
    [
      "two rules for one address",
      image("6.1", undefined, [entries[0]!, { ...entries[1]!, address: at(0) }]),
      /two ORC rules for 0xffffffff81000000/,
    ],
  ])("are refused in one line: %s", (_, broken, message) => {
    let refused: unknown;
    try {
      tableInSections(broken);
    } catch (error) {
      refused = error;
    }
    expect(refused).toBeInstanceOf(Refusal);
    expect((refused as Refusal).message).toMatch(message);
    expect((refused as Refusal).message).toMatch(/^t: [^\n]+; [^\n]+$/);
  });
});
